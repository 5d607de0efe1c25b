"""Dashboards as plain values, and how they become Grafana's.

A ``Dashboard`` is rows of ``Panel``; a panel asks one or more ``Query``. ``grafana`` gives the document, made by
Grafana's own builders, with stable uids and ids, so that it can be committed and compared. The same values are read
by the tests, which ask a real Prometheus every query, and by the script that draws a dashboard for the documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from grafana_foundation_sdk.builders import bargauge, common, heatmap, statetimeline, timeseries
from grafana_foundation_sdk.builders import dashboard as built
from grafana_foundation_sdk.builders import prometheus as prometheus_builder
from grafana_foundation_sdk.builders import stat as stat_builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models import prometheus as prometheus_model

from dashboards.promql import Expr
from vbnet.errors import UsageError

__all__ = [
    "BAD",
    "GOOD",
    "GREY",
    "WARN",
    "Dashboard",
    "Kind",
    "Mark",
    "Panel",
    "Query",
    "Row",
    "Variable",
    "grafana",
]

GOOD, WARN, BAD, GREY = "green", "orange", "red", "#8e8e8e"
_TAG: Final = "vbnet"
_STAT_HEIGHT, _HEIGHT = 4, 8
_SOURCE: Final = model.DataSourceRef("prometheus", "${datasource}")


class Kind(StrEnum):
    """How a panel shows its values."""

    LINES = "timeseries"
    NUMBER = "stat"
    BARS = "bargauge"
    STATES = "state-timeline"
    HEAT = "heatmap"


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked, and how each series is called: ``{{label}}`` stands for a label's value."""

    expr: Expr
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Args:
        title: of the panel.
        queries: what it asks; all in one unit.
        means: what one sees. do: what to do when it is red, or looks wrong.
        kind: how it shows it. width: of 24. unit: Grafana's name, where that of the queries will not do.
        limits: from where it is orange, and red; where only bad matters, both are one.
        words: what values are called, with their colours.
        is_stacked: lines add up. top: of the axis, where it is known.
        empty_until: what must happen before it shows anything; "" for one that always does.
    """

    title: str
    queries: Sequence[Query]
    means: str
    do: str
    kind: Kind = Kind.LINES
    width: int = 12
    unit: str = ""
    limits: tuple[float, float] | None = None
    words: tuple[tuple[int, str, str], ...] = ()
    is_stacked: bool = False
    top: float | None = None
    empty_until: str = ""

    @property
    def shown_unit(self) -> str:
        """Of its values.

        Raises:
            UsageError: the queries have several.
        """
        units = {query.expr.unit for query in self.queries}
        if self.unit:
            return self.unit
        if len(units) != 1:
            raise UsageError(f"panel {self.title!r} has units {sorted(units)}", title=self.title)
        return units.pop()

    @property
    def height(self) -> int:
        """In rows of Grafana's grid."""
        return _STAT_HEIGHT if self.kind is Kind.NUMBER else _HEIGHT


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard: values of a label, of what those before it leave."""

    name: str
    label: str
    query: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment that is marked in every panel: when ``expr`` has a value or, if ``is_at_value``, its values in ms."""

    name: str
    expr: Expr
    title: str
    text: str
    colour: str
    is_at_value: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard; ``uid`` never changes, because people and alerts link to it."""

    uid: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Sequence[Row]
    marks: Sequence[Mark]

    def panels(self) -> Iterator[Panel]:
        """All of them."""
        for row in self.rows:
            yield from row.panels


def grafana(dashboard: Dashboard) -> dict[str, Any]:
    """Return Grafana's document."""
    made = (
        built.Dashboard(dashboard.title)
        .uid(dashboard.uid)
        .description(dashboard.description)
        .tags([_TAG])
        .timezone("browser")
        .time("now-15m", "now")
        .refresh("5s")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(_source_variable())
        .link(_links())
    )
    for variable in dashboard.variables:
        made = made.with_variable(_variable(variable))
    for mark in dashboard.marks:
        made = made.annotation(
            built.AnnotationQuery()
            .name(mark.name)
            .datasource(_SOURCE)
            .enable(True)
            .icon_color(mark.colour)
            .expr(mark.expr.text)
        )
    for row in dashboard.rows:
        made = made.with_row(built.Row(row.title))
        for panel in row.panels:
            made = made.with_panel(_panel(panel))
    document: dict[str, Any] = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    for number, panel_document in enumerate(document["panels"], start=1):
        panel_document["id"] = number
    # What the builders do not know: what lists of variables show, and how a mark is captioned.
    for variable, choice in zip(dashboard.variables, document["templating"]["list"][1:], strict=True):
        choice["definition"] = variable.query
    for mark, annotation in zip(dashboard.marks, document["annotations"]["list"], strict=True):
        annotation.update(titleFormat=mark.title, textFormat=mark.text, step="5s")
        if mark.is_at_value:
            annotation.update(useValueForTime=True)
    return document


def _source_variable() -> built.DatasourceVariable:
    return built.DatasourceVariable("datasource").label("Data source").type("prometheus")


def _variable(variable: Variable) -> built.QueryVariable:
    return (
        built.QueryVariable(variable.name)
        .label(variable.label)
        .datasource(_SOURCE)
        .query({"query": variable.query, "refId": f"{variable.name}-values", "qryType": 1})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.NATURAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _links() -> built.DashboardLink:
    return (
        built.DashboardLink("vbnet")
        .type(model.DashboardLinkType.DASHBOARDS)
        .tags([_TAG])
        .as_dropdown(True)
        .include_vars(True)
        .keep_time(True)
        .icon("external link")
        .tooltip("The other dashboards, with the same choices and the same time")
    )


_Builder = timeseries.Panel | stat_builder.Panel | bargauge.Panel | statetimeline.Panel | heatmap.Panel


def _panel(panel: Panel) -> _Builder:
    made = (
        _BUILDERS[panel.kind](panel)
        .title(panel.title)
        .description(f"{panel.means}\n\n**What to do:** {panel.do}")
        .datasource(_SOURCE)
        .height(panel.height)
        .span(panel.width)
        .unit(panel.shown_unit)
        .no_value("none" if panel.empty_until else "no data")
    )
    if panel.limits is not None:
        made = made.thresholds(_thresholds(panel.limits))
    if panel.words:
        named = {
            str(value): model.ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, text, colour) in enumerate(panel.words)
        }
        made = made.mappings([model.ValueMap(options=named)])
    for letter, query in zip("ABCDEFGHIJ", panel.queries, strict=False):
        made = made.with_target(_target(panel, query, letter))
    return made


def _target(panel: Panel, query: Query, letter: str) -> prometheus_builder.Dataquery:
    target = (
        prometheus_builder.Dataquery()
        .expr(query.expr.text)
        .legend_format(query.legend)
        .ref_id(letter)
        .datasource(_SOURCE)
        .editor_mode(prometheus_model.QueryEditorMode.CODE)
    )
    if panel.kind is Kind.HEAT:
        return target.range().format(prometheus_model.PromQueryFormat.HEATMAP)
    return target.instant() if panel.kind in {Kind.NUMBER, Kind.BARS} else target.range()


def _thresholds(limits: tuple[float, float]) -> built.ThresholdsConfig:
    orange, red = limits
    steps = [model.Threshold(None, GOOD), model.Threshold(orange, WARN), model.Threshold(red, BAD)]
    if orange == red:
        steps.pop(1)
    return built.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def _lines(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().show_legend(True).placement(common_model.LegendPlacement.BOTTOM)
    legend = legend.display_mode(common_model.LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"])
    tooltip = common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI)
    made = timeseries.Panel().legend(legend).tooltip(tooltip.sort(common_model.SortOrder.DESCENDING))
    made = made.line_width(1).fill_opacity(60 if panel.is_stacked else 8).min(0)
    made = made.show_points(common_model.VisibilityMode.NEVER)
    if panel.is_stacked:
        made = made.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL).group("A"))
    if panel.limits is not None:
        style = common.GraphThresholdsStyleConfig().mode(common_model.GraphThresholdsStyleMode.DASHED)
        made = made.thresholds_style(style)
    return made if panel.top is None else made.max(panel.top)


def _number(panel: Panel) -> stat_builder.Panel:
    made = stat_builder.Panel().graph_mode(common_model.BigValueGraphMode.NONE)
    made = made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    is_judged = panel.limits is not None or panel.words
    mode = common_model.BigValueColorMode.BACKGROUND if is_judged else common_model.BigValueColorMode.NONE
    return made.color_mode(mode).color_scheme(built.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))


def _bars(panel: Panel) -> bargauge.Panel:
    made = bargauge.Panel().orientation(common_model.VizOrientation.HORIZONTAL).min(0)
    made = made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    made = made.display_mode(common_model.BarGaugeDisplayMode.GRADIENT)
    return made if panel.top is None else made.max(panel.top)


def _states(_panel: Panel) -> statetimeline.Panel:
    made = statetimeline.Panel().merge_values(True).show_value(common_model.VisibilityMode.AUTO)
    return made.row_height(0.8).fill_opacity(80).line_width(0)


def _heat(panel: Panel) -> heatmap.Panel:
    colours = heatmap.HeatmapColorOptions().mode(heatmap_model.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    axis = heatmap.YAxisConfig().unit("s")
    return heatmap.Panel().calculate(False).color(colours).y_axis(axis).cell_gap(1).unit(panel.shown_unit)


_BUILDERS: Final[dict[Kind, Callable[[Panel], _Builder]]] = {
    Kind.LINES: _lines,
    Kind.NUMBER: _number,
    Kind.BARS: _bars,
    Kind.STATES: _states,
    Kind.HEAT: _heat,
}

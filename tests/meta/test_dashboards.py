"""Dashboards, rules and runbooks belong together, are fresh, and ask only for what is exported."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dashboards import rules
from dashboards.every import DASHBOARDS
from dashboards.files import files
from dashboards.panels import Dashboard, Kind, Panel, grafana
from dashboards.promql import families
from tests.meta import tree
from vbnet.cli.registry import ENTRIES

RUNBOOKS = tree.ROOT / "docs" / "runbooks"
RULE_TESTS = tree.ROOT / "tests" / "integration" / "prometheus" / "alerts_test.yml"
PROMETHEUS_OWN = {"ALERTS"}
UIDS = {"vbnet-overview", "vbnet-switching", "vbnet-guests", "vbnet-signals", "vbnet-workers", "vbnet-run"}
COMMAND = re.compile(r"`vbnet ([a-z-]+)(?: ([a-z][a-z-]*))?")
each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)


def panels() -> list[Panel]:
    """Every panel of every dashboard."""
    return [panel for dashboard in DASHBOARDS for panel in dashboard.panels()]


def asked() -> set[str]:
    """Every name that panels, marks and rules ask for."""
    exprs = [query.expr for panel in panels() for query in panel.queries]
    exprs += [mark.expr for dashboard in DASHBOARDS for mark in dashboard.marks]
    exprs += [record.expr for record in rules.records()] + [alert.expr for alert in rules.alerts()]
    return set().union(*(expr.metrics for expr in exprs))


def documents() -> dict[str, str]:
    """Panels' descriptions and runbooks, which tell a reader what to type."""
    texts = {f"panel {panel.title}": f"{panel.means} {panel.do}" for panel in panels()}
    return texts | {tree.name(path): path.read_text() for path in sorted(RUNBOOKS.glob("*.md"))}


def test_files_are_what_the_code_makes() -> None:
    """`make dashboards` makes them again; a difference means that one of the two was forgotten."""
    made = files()

    stale = [name for name, text in made.items() if (tree.ROOT / name).read_text(encoding="utf-8") != text]
    committed = {tree.name(path) for path in tree.under("vbnet/telemetry/deploy/grafana/dashboards", suffix=".json")}

    assert [] == stale
    assert committed == {name for name in made if name.endswith(".json")}


def test_script_writes_the_files_only_where_they_differ() -> None:
    """It says what it wrote, which in a fresh checkout is nothing."""
    said = subprocess.run(
        [sys.executable, str(tree.ROOT / "tools" / "make_dashboards.py")], capture_output=True, text=True, check=True
    )

    assert "" == said.stdout


def test_uids_stay_what_people_linked_to() -> None:
    """A dashboard may be renamed; its uid never changes, as bookmarks and other dashboards have it."""
    assert UIDS == {dashboard.uid for dashboard in DASHBOARDS}


def test_everything_that_is_asked_for_is_exported() -> None:
    """Names are those of the catalogue, of Prometheus itself, and of the process collector."""
    assert set() == asked() - set(families()) - PROMETHEUS_OWN


def test_everything_that_is_exported_is_on_a_panel() -> None:
    """What is counted somewhere is seen somewhere: drops by reason first of all."""
    shown = set().union(*(query.expr.metrics for panel in panels() for query in panel.queries))

    assert [] == sorted(set(families()) - shown)


@each_dashboard
def test_every_choice_narrows_a_query_and_every_query_has_its_choices(dashboard: Dashboard) -> None:
    """No choice is without effect, and none is used that is not offered; each is made of some before it."""
    offered = ["datasource", *(variable.name for variable in dashboard.variables)]

    used = {name for panel in dashboard.panels() for query in panel.queries for name in variables(query.expr.text)}

    assert used - {"__rate_interval"} == set(offered) - {"datasource"}
    for place, variable in enumerate(dashboard.variables):
        assert set(variables(variable.query)) <= set(offered[1 : place + 1])
        assert bool(place) is bool(variables(variable.query))


@each_dashboard
def test_document_has_what_grafana_needs(dashboard: Dashboard) -> None:
    """Ids are unique, panels fill the grid without touching, units and descriptions are there, nothing is fixed."""
    document = grafana(dashboard)
    shown = [panel for panel in document["panels"] if panel["type"] != "row"]

    assert len(document["panels"]) == len({panel["id"] for panel in document["panels"]})
    assert [] == [panel["title"] for panel in shown if not panel["fieldConfig"]["defaults"].get("unit")]
    assert [] == [panel["title"] for panel in shown if "**What to do:** " not in panel["description"]]
    assert {"${datasource}"} == {target["datasource"]["uid"] for panel in shown for target in panel["targets"]}
    assert [] == overlapping(document["panels"])
    [links] = document["links"]
    assert (True, True, ["vbnet"]) == (links["includeVars"], links["keepTime"], links["tags"])
    assert "vbnet" in document["tags"]
    for variable in document["templating"]["list"][1:]:
        assert (True, True, ".*") == (variable["multi"], variable["includeAll"], variable["allValue"])
    for mark in document["annotations"]["list"]:
        assert mark["enable"]
        assert mark["titleFormat"]


def test_panels_say_what_to_do() -> None:
    """Two sentences at least: what one sees, and what to do; rates are over the interval that suits the screen."""
    terse = [panel.title for panel in panels() if len(panel.means) < 20 or len(panel.do) < 15]
    fixed = [
        panel.title for panel in panels() for query in panel.queries if re.search(r"\[[0-9]+[smh]\]", query.expr.text)
    ]

    assert [] == terse
    assert [] == fixed
    assert set(Kind) == {panel.kind for panel in panels()}


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    """The runbook says what it means, how to look, what to do."""
    expected = {f"{alert.runbook}.md" for alert in rules.alerts()}
    found = {path.name: path.read_text() for path in RUNBOOKS.glob("*.md") if path.name != "README.md"}

    assert expected == set(found)
    for alert in rules.alerts():
        text = found[f"{alert.runbook}.md"]
        assert text.startswith(f"# {alert.name}\n\nSeverity: {alert.severity}. ")
        assert ["What it means", "How to look", "What to do"] == re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert f"[{alert.name}]({alert.runbook}.md) | {alert.severity} |" in (RUNBOOKS / "README.md").read_text()


def test_runbooks_named_on_panels_exist() -> None:
    """A reader who follows the name finds a page."""
    named = {name for panel in panels() for name in re.findall(r"[Rr]unbook (vbnet-[a-z-]+)", panel.do)}

    assert named
    assert set() == named - {alert.runbook for alert in rules.alerts()}


def test_commands_that_readers_are_told_to_type_exist() -> None:
    """`vbnet VERB` is a verb; a second word in small letters after a group is one of its verbs."""
    reference = (tree.ROOT / "docs" / "cli.md").read_text()
    groups = {name.split()[0] for name in re.findall(r"^#### vbnet (.+)$", reference, re.MULTILINE)}

    missing = [
        f"{where}: vbnet {verb} {word}"
        for where, text in documents().items()
        for verb, word in COMMAND.findall(text)
        if verb not in ENTRIES or (word and verb in groups and f"\n#### vbnet {verb} {word}\n" not in reference)
    ]

    assert [] == missing


def test_every_alert_is_seen_to_fire_in_the_tests_of_rules() -> None:
    """Promtool runs them; here it is only seen that none was forgotten."""
    text = RULE_TESTS.read_text()

    fires = set(re.findall(r"""'ALERTS\{alertname="(\w+)",alertstate="firing",severity""", text))

    assert {alert.name for alert in rules.alerts()} == fires


def variables(text: str) -> list[str]:
    """The variables of Grafana in a query."""
    return re.findall(r"\$(\w+)", text)


def overlapping(shown: list[dict[str, Any]]) -> list[str]:
    """Panels that lie on others, or outside of Grafana's 24 columns."""
    taken: dict[tuple[int, int], str] = {}
    wrong = []
    for panel in shown:
        place = panel["gridPos"]
        cells = [
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        if any(cell in taken for cell in cells) or place["x"] + place["w"] > 24:
            wrong.append(panel["title"])
        taken |= dict.fromkeys(cells, panel["title"])
    return wrong


def test_wheel_data_is_found_by_the_resolver() -> None:
    """`vbnet monitor` finds the same files in an installed wheel."""
    from vbnet.telemetry import shipped  # noqa: PLC0415 - next to what it is about

    assert [Path(name).name for name in sorted(files()) if name.endswith(".json")] == [
        path.name for path in shipped.dashboard_files()
    ]
    assert ["alerts.yml", "rules.yml"] == [path.name for path in shipped.rule_files()]

"""Queries made of metrics: a name or a label that nothing exports cannot be written.

    scope.rate(whole(PORT.values["receive_drop_no_room"]), "device", "reason")

becomes ``sum by (device, reason) (rate(vbnet_device_receive_drop_total{…}[…]))``, with the matchers and the window of
the scope, and knows its unit. A ``Metric`` means that one member of its family (its ``fixed`` labels are matched);
``whole(metric)`` means the family.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from vbnet.bus.kinds import discover
from vbnet.errors import UsageError
from vbnet.hostnode.metrics import Labelled
from vbnet.metric import PROGRAM_PREFIX, Metric, MetricKind
from vbnet.telemetry.catalogue import known
from vbnet.telemetry.own import OWN

__all__ = [
    "PROCESS",
    "SCRAPE",
    "TARGET_LABELS",
    "UP",
    "Asked",
    "Expr",
    "Family",
    "Scope",
    "any_of",
    "families",
    "none_of",
    "whole",
]

TARGET_LABELS: Final = ("job", "instance", "lab")
"""What Prometheus adds to every series: the scrape's job, the exporter, and from service discovery the lab."""

_AT_REST: Final = {"bytes": "bytes", "seconds": "s"}
_PER_SECOND: Final = {"bytes": "Bps", "packets": "pps", "requests": "reqps", "seconds": "percentunit"}
_RATIO: Final = "percentunit"


@dataclass(frozen=True, slots=True)
class Family:
    """All series of one name.

    Attributes:
        name: of the metric. unit: base unit in the plural. kind: how it moves.
        labels: all that its series have, those of the target too.
        values: what a label can say, where that is known.
        matched: labels that narrow it to one member.
    """

    name: str
    unit: str
    kind: MetricKind
    labels: tuple[str, ...]
    values: Mapping[str, frozenset[str]] = field(default_factory=dict, hash=False)
    matched: Mapping[str, str] = field(default_factory=dict, hash=False)


def _outside(name: str, unit: str, kind: MetricKind = MetricKind.GAUGE) -> Family:
    return Family(name, unit, kind, TARGET_LABELS)


UP: Final = _outside("up", "targets")
"""Prometheus' own: 1 while the last scrape of a target worked."""
SCRAPE: Final = {"seconds": _outside("scrape_duration_seconds", "seconds")}
"""Prometheus' own, of its last scrape of a target."""
PROCESS: Final = {
    "cpu_seconds": _outside("process_cpu_seconds_total", "seconds", MetricKind.COUNTER),
    "resident_bytes": _outside("process_resident_memory_bytes", "bytes"),
    "open_fds": _outside("process_open_fds", "descriptors"),
    "max_fds": _outside("process_max_fds", "descriptors"),
    "start_seconds": _outside("process_start_time_seconds", "seconds"),
}
"""What every client of Prometheus says of its process; here, of the host node's."""


@functools.cache
def families() -> dict[str, Family]:
    """Everything that can be asked for, by name."""
    found = {each.name: each for each in (UP, *SCRAPE.values(), *PROCESS.values())}
    for metric, labels in OWN.items():
        found[metric.name] = Family(metric.name, metric.unit, metric.kind, (*TARGET_LABELS, *labels))
    for name, members in known(discover(with_entry_points=False)).metrics.families.items():
        block, first = members[0]
        values = {label: frozenset(each.fixed[label] for _, each in members) for label in first.fixed}
        if first.states:
            values[first.shown_as] = frozenset(first.states)
        labels = (*TARGET_LABELS, *block.labels, *first.own_labels)
        found[name] = Family(name, first.unit, first.kind, labels, values)
    return found


def whole(metric: Metric | Labelled) -> Family:
    """Return the family of a metric, all members of it.

    Raises:
        UsageError: nothing exports it.
    """
    if isinstance(metric, Labelled):
        metric = next(iter(metric.members.values()))
    family = families().get(metric.name)
    if family is None:
        raise UsageError(f"nothing exports {metric.name}", name=metric.name)
    return family


def any_of(*values: str) -> str:
    """Match a label that is one of ``values``."""
    return f'=~"{"|".join(values)}"' if len(values) > 1 else f'="{values[0]}"'


def none_of(*values: str) -> str:
    """Match a label that is none of ``values``."""
    return f'!~"{"|".join(values)}"' if len(values) > 1 else f'!="{values[0]}"'


@dataclass(frozen=True, slots=True)
class Expr:
    """A query and what its values are.

    Attributes:
        text: in PromQL. unit: as Grafana calls it. metrics: names of the families it asks.
    """

    text: str
    unit: str
    metrics: frozenset[str]

    def __truediv__(self, other: Expr) -> Expr:
        """Return the share that this is of ``other``, 0 to 1; nothing where ``other`` is 0."""
        return Expr(f"{self} / ({other} > 0)", _RATIO, self.metrics | other.metrics).wrapped()

    def __add__(self, other: Expr) -> Expr:
        return Expr(f"{self} + {other}", self.unit, self.metrics | other.metrics).wrapped()

    def __sub__(self, other: Expr) -> Expr:
        return Expr(f"{self} - {other}", self.unit, self.metrics | other.metrics).wrapped()

    def __gt__(self, limit: Expr | float) -> Expr:
        other = limit.metrics if isinstance(limit, Expr) else frozenset()
        bound = str(limit) if isinstance(limit, Expr) else f"{limit:g}"
        return Expr(f"{self} > {bound}", self.unit, self.metrics | other)

    def __lt__(self, limit: float) -> Expr:
        return Expr(f"{self} < {limit:g}", self.unit, self.metrics)

    def __str__(self) -> str:
        return self.text

    def wrapped(self) -> Expr:
        """The same in parentheses."""
        return Expr(f"({self.text})", self.unit, self.metrics)

    def is_value(self, value: float) -> Expr:
        """Where this is ``value``."""
        return Expr(f"{self} == {value:g}", self.unit, self.metrics)

    def times(self, factor: float) -> Expr:
        """So many times this."""
        return Expr(f"{factor:g} * {self}", self.unit, self.metrics).wrapped()

    def share_of(self, whole_: Expr, *on: str) -> Expr:
        """The share that each series is of ``whole_``, which has only the labels ``on``."""
        text = f"({self}) / on ({', '.join(on)}) group_left () ({whole_} > 0)"
        return Expr(text, _RATIO, self.metrics | whole_.metrics)

    def while_(self, other: Expr, *on: str) -> Expr:
        """Where ``other`` also has a value for the same labels ``on``."""
        return Expr(f"{self} and on ({', '.join(on)}) ({other})", self.unit, self.metrics | other.metrics)

    def absent(self) -> Expr:
        """1 where there is no such series at all."""
        return Expr(f"absent({self})", self.unit, self.metrics)

    def rest(self) -> Expr:
        """What is left of 1, from 0 to 1."""
        return Expr(f"clamp(1 - {self}, 0, 1)", _RATIO, self.metrics)

    def also_in(self, unit: str) -> Expr:
        """The same beside queries in another unit that means the same: requests and calls are counts."""
        return Expr(self.text, unit, self.metrics)

    def mean(self) -> Expr:
        """The mean of all series."""
        return Expr(f"avg({self})", self.unit, self.metrics)

    def smallest(self, *by: str) -> Expr:
        """The smallest for each value of the labels ``by``."""
        return Expr(f"min by ({', '.join(by)}) ({self})", self.unit, self.metrics)

    def top(self, count: int) -> Expr:
        """The largest ``count`` series."""
        return Expr(f"topk({count}, {self})", self.unit, self.metrics)

    def largest(self, *by: str) -> Expr:
        """The largest for each value of the labels ``by``."""
        return Expr(f"max by ({', '.join(by)}) ({self})", self.unit, self.metrics)


Asked = Metric | Family


@dataclass(frozen=True, slots=True)
class Scope:
    """Which series are meant, and over how long rates are taken.

    Args:
        window: of rates: a duration or a variable of Grafana.
        matchers: by label, added wherever a metric has it.
        keep: labels of targets that every sum keeps.
    """

    window: str
    matchers: Mapping[str, str] = field(default_factory=dict, hash=False)
    keep: tuple[str, ...] = ()

    def now(self, asked: Asked, **matchers: str) -> Expr:
        """Each series as it is."""
        family = _family(asked)
        return Expr(self._selector(family, matchers), _AT_REST.get(family.unit, "short"), frozenset({family.name}))

    def total(self, asked: Asked, *by: str, how: str = "sum", **matchers: str) -> Expr:
        """Sum (or ``how``) of the series as they are, for each value of the labels ``by``."""
        return self._over(self.now(asked, **matchers), how, asked, by)

    def rate(self, asked: Asked, *by: str, how: str = "sum", **matchers: str) -> Expr:
        """How fast they grow, a second."""
        family = _family(asked)
        unit = _PER_SECOND.get(family.unit, "cps")
        return self._over(self._ranged("rate", family, unit, matchers), how, asked, by)

    def increase(self, asked: Asked, *by: str, window: str = "", **matchers: str) -> Expr:
        """By how much they grew within the window."""
        family = _family(asked)
        unit = _AT_REST.get(family.unit, "short")
        return self._over(self._ranged("increase", family, unit, matchers, window), "sum", asked, by)

    def changes(self, asked: Asked, *by: str, **matchers: str) -> Expr:
        """How often they changed within the window."""
        return self._over(self._ranged("changes", _family(asked), "short", matchers), "sum", asked, by)

    def resets(self, asked: Asked, *by: str, **matchers: str) -> Expr:
        """How often their owner began anew within the window."""
        return self._over(self._ranged("resets", _family(asked), "short", matchers), "max", asked, by)

    def gone(self, asked: Asked, window: str, **matchers: str) -> Expr:
        """What each series was at most within ``window``, where it is no more."""
        series = self.now(asked, **matchers)
        return Expr(f"max_over_time({series}[{window}]) unless {series}", series.unit, series.metrics)

    def age(self, asked: Asked, *, on_scrape: bool = True, **matchers: str) -> Expr:
        """How long before the scrape (else: before now) a timestamp was."""
        series = self.now(asked, **matchers)
        then = f"timestamp({series})" if on_scrape else "time()"
        return Expr(f"({then} - {series})", "s", series.metrics)

    def quantile(self, part: float, asked: Asked, *by: str, **matchers: str) -> Expr:
        """What ``part`` (0 to 1) of a histogram's observations within the window did not exceed, in either form."""
        classic, native = self._filling(asked, by, matchers)
        return Expr(
            f"(histogram_quantile({part:g}, {classic}) or histogram_quantile({part:g}, {native}))",
            _AT_REST.get(_family(asked).unit, "short"),
            classic.metrics,
        )

    def buckets(self, asked: Asked, *by: str, **matchers: str) -> Expr:
        """How fast each bucket of a histogram fills; a native histogram is one series that has all of them."""
        classic, native = self._filling(asked, by, matchers)
        return Expr(f"{classic} or ignoring (le) {native}", classic.unit, classic.metrics)

    def _filling(self, asked: Asked, by: Iterable[str], matchers: Mapping[str, str]) -> tuple[Expr, Expr]:
        """Classic and native: Prometheus keeps the one that it scraped, and the other is empty."""
        family = _family(asked)
        if family.kind is not MetricKind.HISTOGRAM:
            raise UsageError(f"{family.name} is no histogram", name=family.name)
        own = self._by(family, by)
        classic = self._rate_of_all("_bucket", family, ("le", *own), matchers)
        return classic, self._rate_of_all("", family, own, matchers)

    def _rate_of_all(self, suffix: str, family: Family, by: tuple[str, ...], matchers: Mapping[str, str]) -> Expr:
        selector = self._selector(family, matchers, suffix=suffix)
        over = f"sum by ({', '.join(by)}) " if by else "sum"
        return Expr(f"{over}(rate({selector}[{self.window}]))", "cps", frozenset({family.name}))

    def programs(self, kind: MetricKind) -> Expr:
        """What guests' own programs count, for each guest and name (label ``metric``).

        Counters are shown as how fast they grow, gauges as they are. Names are the programs' own, so nothing here can
        know them: the end of a name becomes a label, before ``rate`` takes the name away.
        """
        is_counter = kind is MetricKind.COUNTER
        which = "" if is_counter else ', __name__!~".+_total"'
        ending = "_total" if is_counter else ""
        common = "".join(f", {label}{matcher}" for label, matcher in self.matchers.items())
        series = f'{{__name__=~"{PROGRAM_PREFIX}.+{ending}"{which}{common}}}'
        named = f'label_replace({series}, "metric", "${{1}}", "__name__", "{PROGRAM_PREFIX}(.+?){ending}")'
        values = f"rate({named}[{self.window}:])" if is_counter else named
        return Expr(f"sum by (lab, guest, metric) ({values})", "cps" if is_counter else "short", frozenset())

    def label_values(self, asked: Asked | Iterable[Asked], label: str) -> str:
        """Return Grafana's query for what a label says."""
        several = [_family(asked)] if isinstance(asked, Metric | Family) else [_family(each) for each in asked]
        for family in several:
            _check_labels(family, [label])
        if len(several) == 1:
            return f"label_values({self._selector(several[0], {})}, {label})"
        names = any_of(*(family.name for family in several))
        common = [name for name in self.matchers if all(name in family.labels for family in several)]
        matched = ", ".join(f"{name}{self.matchers[name]}" for name in common)
        return f"label_values({{__name__{names}, {matched}}}, {label})"

    def _ranged(self, function: str, family: Family, unit: str, matchers: Mapping[str, str], window: str = "") -> Expr:
        if function in {"rate", "increase"} and family.kind is not MetricKind.COUNTER:
            raise UsageError(f"{family.name} is no counter, so it has no {function}", name=family.name)
        selector = self._selector(family, matchers)
        return Expr(f"{function}({selector}[{window or self.window}])", unit, frozenset({family.name}))

    def _over(self, series: Expr, how: str, asked: Asked, by: tuple[str, ...]) -> Expr:
        labels = ", ".join(self._by(_family(asked), by))
        return Expr(f"{how} by ({labels}) ({series})" if labels else f"{how}({series})", series.unit, series.metrics)

    def _by(self, family: Family, by: Iterable[str]) -> tuple[str, ...]:
        labels = tuple(dict.fromkeys((*self.keep, *by)))
        _check_labels(family, labels)
        return labels

    def _selector(self, family: Family, matchers: Mapping[str, str], suffix: str = "") -> str:
        common = {label: matcher for label, matcher in self.matchers.items() if label in family.labels}
        fixed = {label: any_of(value) for label, value in family.matched.items()}
        _check_labels(family, matchers)
        for label, matcher in matchers.items():
            _check_values(family, label, matcher)
        chosen = {**common, **fixed, **matchers}
        inside = ", ".join(f"{label}{matcher}" for label, matcher in chosen.items())
        return f"{family.name}{suffix}{{{inside}}}" if inside else f"{family.name}{suffix}"


def _family(asked: Asked) -> Family:
    if isinstance(asked, Family):
        return asked
    family = whole(asked)
    return Family(family.name, family.unit, family.kind, family.labels, family.values, asked.fixed)


def _check_labels(family: Family, labels: Iterable[str]) -> None:
    for label in labels:
        if label not in family.labels:
            known_labels = ", ".join(family.labels)
            raise UsageError(f"{family.name} has no label {label!r}; it has {known_labels}", name=family.name)


def _check_values(family: Family, label: str, matcher: str) -> None:
    known_values = family.values.get(label)
    if known_values is None:
        return
    asked = matcher.lstrip("=!~").strip('"').split("|")
    if strange := set(asked) - known_values:
        raise UsageError(f"{family.name} never has {label}={strange.pop()!r}", name=family.name, label=label)

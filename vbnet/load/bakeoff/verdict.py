"""What a record says of models and mechanisms, and of what changed since another record.

Where venet is ahead of each other model, where it is not and why; what each mechanism is worth; and what changed since
another record.

Two figures differ when no measurement of the one is as good as any of the other: their ranges do not overlap. Anything
less is called level, since one more repeat might turn it round; so is everything of fewer than three repeats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal

import msgspec

from vbnet.load.bakeoff.figures import FIGURES
from vbnet.load.bakeoff.record import COUNT_MIN, Cell, Median, Record, cells
from vbnet.load.bakeoff.subjects import BASE, MECHANISMS
from vbnet.load.bakeoff.workloads import WORKLOADS

__all__ = ["JUDGED", "Change", "Comparison", "Worth", "changes", "comparisons", "worths"]

JUDGED: Final = ("rate", "p99", "wakeups")
"""Figures in which venet is held against the other models."""

_COSTS: Final = ("wakeups", "traps", "system_calls", "cpu")
_CHANGE_SHARE: Final = 0.05
"""Less than this is no change, whatever the ranges say: a machine is not the same on another day."""

Standing = Literal["ahead", "level", "behind"]


class Comparison(msgspec.Struct, frozen=True):
    """Venet against another model in one figure of one workload.

    Attributes:
        workload, model, figure: of what.
        own, other: venet's and the other's.
        standing: venet's.
        why: what the counted costs say, where venet is not ahead; else nothing.
    """

    workload: str
    model: str
    figure: str
    own: Median
    other: Median
    standing: Standing
    why: str = ""


class Worth(msgspec.Struct, frozen=True):
    """What a mechanism is worth in one workload.

    Attributes:
        mechanism, workload, figure: of what.
        on, off: venet with and without it.
        gain: how many times better it is with it.
        is_certain: the ranges do not overlap.
    """

    mechanism: str
    workload: str
    figure: str
    on: Median
    off: Median
    gain: float
    is_certain: bool


class Change(msgspec.Struct, frozen=True):
    """One figure that is not what it was."""

    subject: str
    workload: str
    figure: str
    before: Median
    now: Median
    is_better: bool


def comparisons(record: Record) -> Iterator[Comparison]:
    """Yield venet against each other model, in every workload."""
    found = _by_place(cells(record.readings))
    for workload in WORKLOADS:
        own = found.get((workload, BASE))
        if own is None:
            continue
        for (name, subject), other in found.items():
            if name != workload or other.without or subject == BASE:
                continue
            for figure in JUDGED:
                if figure in own.figures and figure in other.figures:
                    yield _compared(workload, other.model, figure, own, other)


def worths(record: Record) -> Iterator[Worth]:
    """Yield what each mechanism that was switched off is worth, in every workload."""
    found = _by_place(cells(record.readings))
    for (workload, _), off in found.items():
        on = found.get((workload, BASE))
        if not off.without or on is None or off.without not in MECHANISMS:
            continue
        figure = WORKLOADS[workload].judged_by
        if figure in on.figures and figure in off.figures:
            one, other = on.figures[figure], off.figures[figure]
            gain = _ratio(one.median, other.median)
            if not FIGURES[figure].is_more_better:
                gain = _ratio(other.median, one.median)
            yield Worth(off.without, workload, figure, one, other, gain, not one.may_be(other))


def changes(old: Record, new: Record) -> Iterator[Change]:
    """Yield every figure that both records have and that differs beyond chance."""
    before = _by_place(cells(old.readings))
    for place, now in _by_place(cells(new.readings)).items():
        then = before.get(place)
        if then is None:
            continue
        for figure in now.figures:
            one, other = then.figures.get(figure), now.figures[figure]
            if one is None or figure not in FIGURES or one.may_be(other):
                continue
            if abs(other.median - one.median) <= _CHANGE_SHARE * max(abs(one.median), abs(other.median)):
                continue
            is_better = (other.median > one.median) is FIGURES[figure].is_more_better
            yield Change(now.subject, now.workload, figure, one, other, is_better)


def _by_place(found: Iterable[Cell]) -> dict[tuple[str, str], Cell]:
    return {(cell.workload, cell.subject): cell for cell in found}


def _compared(workload: str, model: str, figure: str, own: Cell, other: Cell) -> Comparison:
    one, two = own.figures[figure], other.figures[figure]
    standing: Standing = "level"
    if not one.may_be(two):
        standing = "ahead" if (one.median > two.median) is FIGURES[figure].is_more_better else "behind"
    why = "" if standing == "ahead" else _why(standing, one, own.figures, other.figures)
    return Comparison(workload, model, figure, one, two, standing, why)


def _why(standing: Standing, one: Median, own: Mapping[str, Median], other: Mapping[str, Median]) -> str:
    """Say what the costs that were counted have to do with it."""
    if standing == "level":
        return f"within the spread of {one.count} repeats" if one.count >= COUNT_MIN else "too few repeats to tell"
    dearer = [
        f"{FIGURES[name].says}: {FIGURES[name].say(own[name].median)} against {FIGURES[name].say(other[name].median)}"
        for name in _COSTS
        if name in own and name in other and own[name].median > other[name].median
    ]
    return "; ".join(dearer) or "none of the counted costs is higher: time that is spent waiting, or the memory's"


def _ratio(one: float, other: float) -> float:
    return one / other if other else float("inf") if one else 1.0

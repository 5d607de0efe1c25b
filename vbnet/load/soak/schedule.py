"""The schedule of a soak's faults, drawn from a seed before anything is started.

The same seed and profile make the same faults.

Kinds are drawn in rounds: each round has every kind as often as its weight says, in random order, so that none is left
out for long. A longer run begins with the faults of a shorter one.

Only ``Random.random`` is used, whose numbers are the same in every version of Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Final

import msgspec

__all__ = ["Fault", "Kind", "draw"]

_DIGITS: Final = 2
"""Of seconds: a schedule is read by people, and written again as it was read."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault of a schedule.

    Attributes:
        number: from 0 on.
        at_s: when, in seconds of the soak's own clock (which stands still while nobody soaks).
        kind: what is done, one of :data:`vbnet.load.soak.faults.KINDS`.
        target: to whom.
        for_s: how long it lasts; 0 for what lasts no time.
    """

    number: int
    at_s: float
    kind: str
    target: str
    for_s: float


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What is drawn from for one kind of fault.

    Attributes:
        name: of the kind.
        weight: how often in a round, >= 1.
        targets: whom it may hit, at least one.
        for_s: how long it lasts on average.
    """

    name: str
    weight: int
    targets: Sequence[str]
    for_s: float


def draw(kinds: Sequence[Kind], *, every_s: float, first_s: float, total_s: float, seed: int) -> list[Fault]:
    """Return the faults of a run, in their order.

    Args:
        kinds: what may happen; without any nothing does.
        every_s: mean time from one fault to the next; each is between half of it and one and a half.
        first_s: from when on.
        total_s: how long the run is; no fault goes on beyond its end.
        seed: what everything follows from.
    """
    return list(_drawn(kinds, every_s, first_s, total_s, Random(seed))) if kinds else []  # noqa: S311 -- not a secret


def _drawn(kinds: Sequence[Kind], every_s: float, first_s: float, total_s: float, random: Random) -> Iterator[Fault]:
    by_name: Mapping[str, Kind] = {kind.name: kind for kind in kinds}
    at_s, number = first_s, 0
    while True:
        for name in _shuffled([kind.name for kind in kinds for _ in range(kind.weight)], random):
            kind = by_name[name]
            at_s += every_s * (0.5 + random.random())
            target = kind.targets[int(random.random() * len(kind.targets))]
            for_s = round(kind.for_s * (0.5 + random.random()), _DIGITS)
            at_s = round(at_s, _DIGITS)
            if at_s + for_s > total_s:
                return
            yield Fault(number=number, at_s=at_s, kind=name, target=target, for_s=for_s)
            at_s += for_s
            number += 1


def _shuffled(names: list[str], random: Random) -> list[str]:
    for place in range(len(names) - 1, 0, -1):
        other = int(random.random() * (place + 1))
        names[place], names[other] = names[other], names[place]
    return names

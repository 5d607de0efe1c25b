"""Subject and baseline in turn: A B A B …, so that whatever happens to the machine happens to both.

```text
   probe  A  probe   probe  B  probe   probe  A  probe   …
      └──┬──┘
   same label before and after, and nobody else on the two cores: a reading. Otherwise it is measured again.
```

A hypervisor moves virtual processors about, and figures change by a factor of three to ten when it does. Every reading
therefore carries the placement it was taken in; at the end only readings of one placement are compared, that of most
turns. When the machine never holds still, everything is used and the row says ``moved``.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from vbnet.errors import UsageError
from vbnet.load.bench.summary import Summary

__all__ = ["BUSY", "MOVED", "Contender", "Outcome", "Surroundings", "take_turns"]

MOVED: Final = "moved"
"""Placement of readings during which the processors changed places."""
BUSY: Final = "busy"
"""Added to a placement when other programs used the cores."""
_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that is measured in turn with others.

    Args:
        name: unique among those it is measured with.
        measure: takes one reading: a few samples, in a unit all contenders share.
    """

    name: str
    measure: Callable[[], Sequence[float]]


class Surroundings(Protocol):
    """What a reading is taken in."""

    def settle(self) -> bool:
        """Wait, within bounds, until nobody else uses the cores. ``False``: given up, and trying twice with it."""

    def placement(self) -> str:
        """Where the two cores are to each other, right now."""

    def begin(self) -> None:
        """Start watching who uses the cores."""

    def is_disturbed(self) -> bool:
        """Whether somebody other than the bench used the cores since ``begin``."""


@dataclass(frozen=True, slots=True)
class _Reading:
    placement: str
    is_disturbed: bool
    samples: tuple[float, ...]

    @property
    def is_clean(self) -> bool:
        return self.placement != MOVED and not self.is_disturbed


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of all turns.

    Args:
        placement: the label of the readings that were compared.
        summaries: for each contender by name, its samples summed up.
        set_aside: readings that were not used.
    """

    placement: str
    summaries: dict[str, Summary]
    set_aside: int = 0


@dataclass(slots=True)
class _Ledger:
    readings: dict[str, list[_Reading]] = field(default_factory=lambda: collections.defaultdict(list))

    def pick(self, names: Iterable[str]) -> Outcome:
        """Compare like with like: the placement most clean readings share, if every contender has one there."""
        names = list(names)
        votes = collections.Counter(
            reading.placement for name in names for reading in self.readings[name] if reading.is_clean
        )
        for placement, _count in votes.most_common():
            chosen = {
                name: [found for found in self.readings[name] if found.is_clean and found.placement == placement]
                for name in names
            }
            if all(chosen.values()):
                return self._outcome(placement, chosen)
        return self._fallback(names)

    def _fallback(self, names: list[str]) -> Outcome:
        """Use everything, and say so."""
        every = {name: self.readings[name] for name in names}
        labels = {reading.placement for readings in every.values() for reading in readings}
        label = labels.pop() if len(labels) == 1 else MOVED
        if any(reading.is_disturbed for readings in every.values() for reading in readings):
            label = f"{label}, {BUSY}"
        return self._outcome(label, every)

    def _outcome(self, placement: str, chosen: dict[str, list[_Reading]]) -> Outcome:
        used = sum(map(len, chosen.values()))
        taken = sum(len(self.readings[name]) for name in chosen)
        return Outcome(
            placement=placement,
            summaries={
                name: Summary.of(sample for reading in readings for sample in reading.samples)
                for name, readings in chosen.items()
            },
            set_aside=taken - used,
        )


def take_turns(
    contenders: Sequence[Contender], turns: int, surroundings: Surroundings, attempts: int = _ATTEMPTS
) -> Outcome:
    """Measure every contender ``turns`` times, one after the other, and sum up what can be compared.

    Args:
        contenders: one or more, with different names.
        turns: readings of each, at least 1.
        surroundings: the probe and the watch.
        attempts: how often a reading is tried before one that was disturbed is kept as such, at least 1.

    Raises:
        UsageError: no contender, two of one name, or fewer than one turn or attempt (the caller's mistake).
    """
    names = [contender.name for contender in contenders]
    if not names or len(set(names)) != len(names) or turns < 1 or attempts < 1:
        raise UsageError(
            "turns need contenders of different names, at least one turn and one attempt",
            names=names,
            turns=turns,
            attempts=attempts,
        )
    ledger = _Ledger()
    for _ in range(turns):
        for contender in contenders:
            for _attempt in range(attempts):
                is_patient = surroundings.settle()
                reading = _read(contender, surroundings)
                ledger.readings[contender.name].append(reading)
                if reading.is_clean or not is_patient:
                    break
    return ledger.pick(names)


def _read(contender: Contender, surroundings: Surroundings) -> _Reading:
    before = surroundings.placement()
    surroundings.begin()
    samples = tuple(contender.measure())
    is_disturbed = surroundings.is_disturbed()
    after = surroundings.placement()
    return _Reading(before if before == after else MOVED, is_disturbed, samples)

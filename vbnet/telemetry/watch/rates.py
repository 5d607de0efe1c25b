"""Two looks at a node, and how much was counted between them.

A block whose generation changed was given to somebody who counts from 0, and so was a counter that is lower than
before, and every counter of a node that was started anew: what it shows was all counted since. No rate is ever
negative. A block that was not there before has no rate yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vbnet.bus.rundir import HostRecord
from vbnet.metric import HISTOGRAM_WORDS, MetricBlock, MetricCatalogue
from vbnet.sharedmem import histogram_quantile
from vbnet.telemetry.watch.look import Block, Look
from vbnet.units import SECOND_NS

__all__ = ["Pair", "Places"]


class Places:
    """Where declared values are in their blocks, asked for by the writers' names.

    Args:
        metrics: the declarations.
    """

    def __init__(self, metrics: MetricCatalogue) -> None:
        self.metrics = metrics
        self._known: dict[tuple[str, tuple[str, ...]], tuple[int, ...]] = {}

    def of(self, kind: str, *names: str) -> tuple[int, ...]:
        """First words of the values whose names are ``names`` or, where one ends in ``*``, begin so.

        Nothing for a kind that nobody declared, as when the package that brings it is not installed.

        Raises:
            KeyError: the kind has no value of that name (the caller's mistake).
        """
        found = self._known.get((kind, names))
        if found is None:
            declared = self.metrics.blocks.get(kind)
            found = () if declared is None else tuple(place for name in names for place in _matching(declared, name))
            self._known[kind, names] = found
        return found


def _matching(declared: MetricBlock, name: str) -> list[int]:
    if not name.endswith("*"):
        return [declared.index(name)]
    found = [place for place, known, _ in declared.places() if known.startswith(name[:-1])]
    if not found:
        raise KeyError(name)
    return found


def _is_other(before: HostRecord | None, now: HostRecord | None) -> bool:
    """Whether another process runs the node; one that has ended left its counters as they were, and no record."""
    return before is not None and now is not None and before != now


class Pair:
    """A look and the one before it.

    Args:
        before: None: there is none, so there are no rates.
        now: taken later.

    Attributes:
        seconds: time between the two; 0: there are no rates.
    """

    def __init__(self, before: Look | None, now: Look) -> None:
        self.before = before
        self.now = now
        self.seconds = 0.0 if before is None else max(0, now.taken_ns - before.taken_ns) / SECOND_NS
        self._is_other_node = before is not None and _is_other(before.facts.record, now.facts.record)
        self._has_same_blocks = before is not None and before.layout is now.layout

    def total(self, block: Block, places: Iterable[int]) -> int:
        """Sum of the words at ``places`` of a block; one that the block does not have is 0."""
        words, start, limit = self.now.words, block.start, block.words
        return sum([words[start + place] for place in places if place < limit])

    def rate(self, block: Block, places: Sequence[int]) -> float | None:
        """What was counted at ``places`` a second, >= 0; None: not known."""
        if self.before is None or self.seconds <= 0:
            return None
        old = block if self._has_same_blocks else self.before.layout.index.get(block.key)
        if old is None:
            return None
        if old.generation != block.generation or self._is_other_node:
            return self.total(block, places) / self.seconds
        words, past = self.now.words, self.before.words
        start, past_start, limit = block.start, old.start, min(block.words, old.words)
        more = 0
        for place in places:
            if place < limit:
                now, before = words[start + place], past[past_start + place]
                more += now - before if now >= before else now
        return more / self.seconds

    def quantile(self, block: Block, place: int, quantile: float) -> int | None:
        """The histogram's quantile over all its time; None: it is empty, or not whole."""
        words = self.now.words[block.start + place : block.start + min(place + HISTOGRAM_WORDS, block.words)].tolist()
        return histogram_quantile(words, quantile) if len(words) == HISTOGRAM_WORDS and words[0] else None

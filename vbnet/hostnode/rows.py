"""Rows of counters that are written from Python: one block of the host's counters file each.

Who writes what: the row's owner, mostly on the event loop; each addition is whole also when other threads add. Without
a counters file, or when it is full, a row counts in this process's own memory, and nobody outside sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from vbnet.errors import ResourceError
from vbnet.metric import MetricBlock

__all__ = ["Row", "label_text", "open_row"]


class _Words(Protocol):
    def add(self, index: int, amount: int = ...) -> None: ...
    def set(self, index: int, amount: int) -> None: ...
    def load(self, index: int) -> int: ...
    def close(self) -> None: ...


class _OwnWords:
    """The same in memory of our own."""

    def __init__(self, count: int) -> None:
        self._words = [0] * count

    def add(self, index: int, amount: int = 1) -> None:
        self._words[index] += amount

    def set(self, index: int, amount: int) -> None:
        self._words[index] = amount

    def load(self, index: int) -> int:
        return self._words[index]

    def close(self) -> None:
        """Nothing is held."""


class Row:
    """What one owner counts, by the names of its declaration. Use ``open_row`` to make one."""

    def __init__(self, block: MetricBlock, words: _Words) -> None:
        self._words: _Words = words
        self._places = {name: place for place, name, _ in block.places()}
        self._count = block.words

    def add(self, name: str, count: int = 1) -> None:
        """Count ``count`` more; KeyError: the block has no value of that name."""
        self._words.add(self._places[name], count)

    def set(self, name: str, value: int) -> None:
        """Let a gauge show ``value``."""
        self._words.set(self._places[name], value)

    def shift(self, name: str, change: int) -> None:
        """Let a gauge show ``change`` more, or less; for its one writer."""
        place = self._places[name]
        self._words.set(place, self._words.load(place) + change)

    def value(self, name: str) -> int:
        """What was counted so far; 0 after ``close``."""
        return self._words.load(self._places[name])

    def close(self) -> None:
        """Give the block back: its series vanish. What is counted later is seen by nobody."""
        words, self._words = self._words, _OwnWords(self._count)
        words.close()


def open_row(
    block: MetricBlock,
    labels: Mapping[str, str],
    counters: Any = None,  # noqa: ANN401 - the native counter file, not known to this layer
) -> Row:
    """Make a row.

    Args:
        block: its declaration.
        labels: whose it is: a value for each of the block's labels.
        counters: the host's counter file; None counts in memory.
    """
    if counters is None:
        return Row(block, _OwnWords(block.words))
    text = label_text({name: labels[name] for name in block.labels})
    try:
        return Row(block, counters.allocate(block.kind, text, block.words))
    except ResourceError:
        return Row(block, _OwnWords(block.words))


def label_text(labels: Mapping[str, str]) -> str:
    """Labels as a block of the counters file says them (docs/wire/counters.md); any value, long ones are shortened."""
    from vbnet._native import counter_labels  # noqa: PLC0415 - hosts without a counter file do without

    return counter_labels(list(labels.items()))

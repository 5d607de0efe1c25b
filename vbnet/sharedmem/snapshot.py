"""What a counters file says right now, read from outside.

Nothing here disturbs, waits for, or needs the process that writes the file: it may be busy, hung or dead. Each
counter is correct; counters of one block need not be of one instant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike

from vbnet._native import parse_counter_labels, read_counters

__all__ = ["BlockSnapshot", "parse_labels", "read_blocks", "snapshots"]


@dataclass(frozen=True, slots=True)
class BlockSnapshot:
    """One owner's counters.

    Attributes:
        kind: names the declaration that says what each value means.
        labels: whose counters these are.
        generation: goes up when the block's memory changes hands: a counter that restarted, not one that ran backwards.
        values: the counters, in declared order.
    """

    kind: str
    labels: dict[str, str]
    generation: int
    values: tuple[int, ...]


def parse_labels(text: str) -> dict[str, str]:
    """The labels of a block's text, their values as they were (docs/wire/counters.md); nonsense in it is ignored."""
    return dict(parse_counter_labels(text))


def read_blocks(path: str | PathLike[str]) -> list[BlockSnapshot]:
    """Read every live block of the counters file at ``path``.

    Raises:
        ResourceError: the file cannot be opened.
        PeerFault: it is not a counters file, or of another version.
    """
    return snapshots(read_counters(path))


def snapshots(found: Iterable[tuple[str, str, int, list[int]]]) -> list[BlockSnapshot]:
    """Blocks as native code found them, with their labels taken apart."""
    return [
        BlockSnapshot(kind, parse_labels(labels), generation, tuple(values))
        for kind, labels, generation, values in found
    ]

"""What a counters file says right now, read from outside.

Nothing here disturbs, waits for, or needs the process that writes the file: it may be busy, hung or dead. Each
counter is correct; counters of one block need not be of one instant.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

from vbnet._native import read_counters

__all__ = ["BlockSnapshot", "parse_labels", "read_blocks"]


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
    """Split ``name=value,name=value``; a part without ``=`` is ignored, as labels may have been cut to fit."""
    pairs = (part.partition("=") for part in text.split(","))
    return {name: value for name, equals, value in pairs if equals}


def read_blocks(path: str | PathLike[str]) -> list[BlockSnapshot]:
    """Read every live block of the counters file at ``path``.

    Raises:
        ResourceError: the file cannot be opened.
        PeerFault: it is not a counters file, or of another version.
    """
    return [
        BlockSnapshot(kind, parse_labels(labels), generation, tuple(values))
        for kind, labels, generation, values in read_counters(path)
    ]

"""Counters by name, from the counters files that nodes leave in their run directory.

Only files are read: a node that hangs or has died can still be looked at, and none is disturbed. The names are those of
the declarations; a block of a kind that nobody declared shows its values by number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vbnet.errors import NotFoundError
from vbnet.metric import MetricBlock, MetricKind
from vbnet.sharedmem import BlockSnapshot, read_blocks
from vbnet.telemetry.catalogue import installed

__all__ = ["Counted", "read_counted"]


@dataclass(frozen=True, slots=True)
class Counted:
    """What one port, switch or worker counted so far.

    Attributes:
        kind: ``"port"``, ``"switch"``, ``"worker"`` or whatever else a node counts for.
        labels: whose counters these are.
        values: by the writer's name, in declared order; of a histogram ``NAME_count`` and ``NAME_sum``.
    """

    kind: str
    labels: Mapping[str, str]
    values: Mapping[str, int]


def read_counted(folder: Path, kind: str | None = None) -> list[Counted]:
    """Read every counters file in ``folder``.

    Args:
        folder: the ``counters`` folder of a run directory.
        kind: only blocks of this kind; None gives all.

    Raises:
        NotFoundError: there is no such folder, so no node has run there.
        PeerFault: a file there is no counters file.
    """
    if not folder.is_dir():
        raise NotFoundError(f"no node counts in {folder}; start one, or name another with --node", folder=str(folder))
    return [
        Counted(block.kind, block.labels, _named(block, installed().metrics.blocks.get(block.kind)))
        for path in sorted(folder.glob("*.counters"))
        for block in read_blocks(path)
        if kind in {None, block.kind}
    ]


def _named(block: BlockSnapshot, declared: MetricBlock | None) -> dict[str, int]:
    if declared is None:
        return {str(index): value for index, value in enumerate(block.values)}
    values: dict[str, int] = {}
    for place, name, metric in declared.places():
        words = block.values[place : place + metric.words]
        if metric.kind is MetricKind.HISTOGRAM:
            values.update(zip((f"{name}_count", f"{name}_sum"), words, strict=False))
        elif words:
            values[name] = words[0]
    return values

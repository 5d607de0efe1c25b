"""Counters by name, from the counters files that nodes leave in their run directory.

Only files are read: a node that hangs or has died can still be looked at, and none is disturbed. The names are those
the writers were compiled with (``PORT_COUNTERS`` and its like); a block of a kind not known here shows its values by
number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from vbnet._native import (
    LINE_COUNTERS,
    OUTBOX_COUNTERS,
    PORT_COUNTERS,
    SWITCH_COUNTERS,
    TIMER_COUNTERS,
    WORKER_COUNTERS,
)
from vbnet.errors import NotFoundError
from vbnet.sharedmem import read_blocks

__all__ = ["Counted", "read_counted"]

_NAMES: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "port": PORT_COUNTERS,
        "switch": SWITCH_COUNTERS,
        "worker": WORKER_COUNTERS,
        "signal": LINE_COUNTERS,
        "outbox": OUTBOX_COUNTERS,
        "timer": TIMER_COUNTERS,
    }
)


@dataclass(frozen=True, slots=True)
class Counted:
    """What one port, switch or worker counted so far.

    Attributes:
        kind: ``"port"``, ``"switch"``, ``"worker"`` or whatever else a node counts for.
        labels: whose counters these are.
        values: by name, in declared order.
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
    found = []
    for path in sorted(folder.glob("*.counters")):
        for block in read_blocks(path):
            if kind not in {None, block.kind}:
                continue
            names = _NAMES.get(block.kind, tuple(str(index) for index in range(len(block.values))))
            found.append(Counted(block.kind, block.labels, dict(zip(names, block.values, strict=False))))
    return found

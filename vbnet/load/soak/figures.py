"""What a process holds, as the kernel says it: memory, descriptors, threads.

Memory is told twice. *Resident* (RSS) counts every page that a process has mapped, also those that it shares; the
*proportional* share (PSS) divides shared pages among those that share them, so that the sum over all is what the lab
costs. *Shared* is the part of the resident memory that lies in memfds: RAM of guests with their rings.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from vbnet.cluster.process import Identity, identify

__all__ = ["ProcessFigures", "figures_of"]

_KIB = 1024


class ProcessFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One process at one moment.

    Attributes:
        start: when it began, in clock ticks since the machine's boot: with ``pid`` it names one life.
        resident_bytes, proportional_bytes, shared_bytes: memory, see above; the second is 0 where the kernel does not
            tell it.
        descriptors, threads: how many.
    """

    pid: int
    start: int
    resident_bytes: int
    proportional_bytes: int
    shared_bytes: int
    descriptors: int
    threads: int


def figures_of(identity: Identity | None) -> ProcessFigures | None:
    """Return what exactly this process holds; None: it is not there any more."""
    if identity is None:
        return None
    proc = Path(f"/proc/{identity.pid}")
    try:
        status = _numbers((proc / "status").read_text())
        descriptors = len(os.listdir(proc / "fd"))  # noqa: PTH208 -- names only, as cheap as can be
    except OSError:
        return None
    proportional = 0
    with suppress(OSError):  # another user's process, or a kernel without it
        proportional = _numbers((proc / "smaps_rollup").read_text()).get("Pss", 0)
    if identify(identity.pid) != identity:
        return None  # ended meanwhile, and the number may be another's
    return ProcessFigures(
        pid=identity.pid,
        start=identity.start,
        resident_bytes=status.get("VmRSS", 0) * _KIB,
        proportional_bytes=proportional * _KIB,
        shared_bytes=status.get("RssShmem", 0) * _KIB,
        descriptors=descriptors,
        threads=status.get("Threads", 0),
    )


def _numbers(text: str) -> dict[str, int]:
    """Lines such as ``VmRSS:   1234 kB`` by name."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found.setdefault(name, int(words[0]))
    return found

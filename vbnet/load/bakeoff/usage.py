"""What the kernel counted of some processes: processor time, sleeps, and system calls that read or write.

These are the kernel's own figures, so they are the same for every model and need no cooperation of what is measured:

* processor time in nanoseconds, of ``schedstat`` of every thread (a tick is too coarse for a short measurement);
* sleeps: voluntary context switches of every thread. Each is followed by one wake-up;
* system calls: ``syscr`` and ``syscw``, which count reads and writes, of eventfds too; waiting (epoll) is not in it.

A thread that ended takes its figures along; what is measured does not end threads. Source: proc(5).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["Usage", "read_usage"]

_PROC: Final = Path("/proc")


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What some processes used so far.

    Attributes:
        cpu_ns: processor time.
        sleeps: times a thread went to sleep of its own will.
        system_calls: reads and writes.
    """

    cpu_ns: int = 0
    sleeps: int = 0
    system_calls: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            cpu_ns=self.cpu_ns + other.cpu_ns,
            sleeps=self.sleeps + other.sleeps,
            system_calls=self.system_calls + other.system_calls,
        )

    def since(self, before: Usage) -> Usage:
        """Return what was used after ``before``; nothing that went back."""
        return Usage(
            cpu_ns=max(0, self.cpu_ns - before.cpu_ns),
            sleeps=max(0, self.sleeps - before.sleeps),
            system_calls=max(0, self.system_calls - before.system_calls),
        )


def read_usage(pids: Iterable[int], proc: Path = _PROC) -> Usage:
    """Read what these processes used so far; one that is gone used nothing."""
    total = Usage()
    for pid in pids:
        total = total + _of_process(proc / str(pid))
    return total


def _of_process(folder: Path) -> Usage:
    calls = _fields(folder / "io")
    total = Usage(system_calls=calls.get("syscr", 0) + calls.get("syscw", 0))
    for thread in _threads(folder):
        total = total + Usage(
            cpu_ns=_first_number(thread / "schedstat"),
            sleeps=_fields(thread / "status").get("voluntary_ctxt_switches", 0),
        )
    return total


def _threads(folder: Path) -> list[Path]:
    try:
        return list((folder / "task").iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # it ended meanwhile, or this kernel does not tell


def _first_number(path: Path) -> int:
    words = _text(path).split()
    return int(words[0]) if words and words[0].isdigit() else 0


def _fields(path: Path) -> dict[str, int]:
    """Numbers behind ``name:``, one a line."""
    found = {}
    for line in _text(path).splitlines():
        name, separator, value = line.partition(":")
        if separator and value.strip().isdigit():
            found[name] = int(value)
    return found

"""The two guests of the bench ``sched``, both pinned to one core: one that spins, one that must be on time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final

from vbnet._native import Ram, SchedPage
from vbnet.devices.sched import wire

__all__ = ["PAGE_BYTES", "PAGE_OFFSET", "Spinner", "Waker", "nice_to", "percentile"]

PAGE_OFFSET: Final = 4096
PAGE_BYTES: Final = wire.HEADER_BYTES + wire.RECORD_BYTES
_WORK_SECONDS: Final = 20e-6
_NS: Final = 1_000_000_000


def percentile(values: list[float], share: float) -> float:
    """The value that ``share`` of all do not exceed; of at least one."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Member:
    """A process with one record; says what it wants when asked to."""

    def __init__(self, ram_fd: int, kick_fd: int) -> None:
        self._ram = Ram.open(ram_fd)
        page = SchedPage(self._ram, PAGE_OFFSET, 1)
        page.connect(kick_fd)
        self.record = page.record(0)
        self.tid = threading.get_native_id()

    def withdraw(self) -> None:
        """Want nothing."""
        self.record.withdraw()

    def applied(self) -> int:
        """Class in force plus one."""
        return self.record.verdict()[0]


class Spinner(_Member):
    """Uses up whatever it is given."""

    def declare(self) -> None:
        """Be in no hurry."""
        self.record.declare(self.tid, wire.Class.IDLE)

    def spin(self, seconds: float) -> float:
        """Spin; gives how long it did."""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            pass
        return time.monotonic() - begun


class Waker(_Member):
    """Sleeps for a short time, again and again, and measures how late it wakes."""

    def declare(self, period_s: float) -> None:
        """Need a little of the processor in each period, on time."""
        period_ns = round(period_s * _NS)
        self.record.declare(self.tid, wire.Class.DEADLINE, runtime_ns=period_ns // 4, deadline_ns=period_ns)

    def wake(self, seconds: float, period_s: float, windows: int) -> list[float]:
        """Sleep and wake; gives the 99th percentile of lateness in ns, a window each."""
        return [self._window(seconds, period_s, (self.record.running, self.record.idle)) for _ in range(windows)]

    def _window(self, seconds: float, period_s: float, turn: tuple[Callable[[], None], Callable[[], None]]) -> float:
        running, idle = turn
        late: list[float] = []
        end = time.monotonic() + seconds
        due = time.monotonic() + period_s
        while due < end or not late:
            idle()
            time.sleep(max(0.0, due - time.monotonic()))
            running()
            now = time.monotonic()
            late.append((now - due) * _NS)
            while time.monotonic() - now < _WORK_SECONDS:
                pass
            due = max(due, now) + period_s
        return percentile(late, 0.99)


def nice_to(pid: int, nice: int) -> None:
    """Give a process a nice value, by hand: what the coordinator is held against."""
    os.setpriority(os.PRIO_PROCESS, pid, nice)

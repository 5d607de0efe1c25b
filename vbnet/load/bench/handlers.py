"""Python handlers at two priorities of a controller, timed (runs in a process of its own, on the guests' core).

One thread serves priority 0, whose handlers each compute for a while with the interpreter's lock held; one serves
priority 7, in the real-time class where permitted. The native pacer raises the signal measured and reads the times.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import Final

from vbnet._native import BenchRange, IntcLevel

__all__ = ["Handlers"]

_URGENT: Final = 7
_MEASURED: Final = 0
_BUSY_NS: Final = 20_000
_LOOK_SECONDS: Final = 0.1
_JOIN_SECONDS: Final = 2.0
_READY_SECONDS: Final = 10.0


class Handlers:
    """The side that measures.

    Args:
        near: core of the guests, where this process is.
        far: core of the host.
    """

    def __init__(self, near: int, far: int) -> None:
        self._cores = (near, far)

    def p99_ns(self, flooders: int, is_prioritised: bool, switch_interval: float, pause: float, length: float) -> float:
        """99th percentile of the time from raise to Python handler, in nanoseconds."""
        sys.setswitchinterval(switch_interval)
        bench = BenchRange(self._cores, flooders, is_prioritised)
        is_over = threading.Event()
        # A thread that the flood has not let run yet is not in the real-time class either.
        are_ready = threading.Barrier(3)
        threads = [
            threading.Thread(
                target=_serve, args=(bench, bench.level(priority), priority, are_ready, is_over), daemon=True
            )
            for priority in (0, _URGENT)
        ]
        for thread in threads:
            thread.start()
        try:
            are_ready.wait(_READY_SECONDS)
            samples = sorted(bench.pace(pause, length))
        finally:
            is_over.set()
            bench.close()
            for thread in threads:
                thread.join(_JOIN_SECONDS)
        return float(samples[len(samples) * 99 // 100])

    def close(self) -> None:
        """Nothing outlives a measurement."""


def _serve(
    bench: BenchRange, level: IntcLevel, priority: int, are_ready: threading.Barrier, is_over: threading.Event
) -> None:
    if priority:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    are_ready.wait(_READY_SECONDS)
    while not is_over.is_set():
        for vector in level.wait(64, _LOOK_SECONDS):
            level.begin(vector)
            if vector == _MEASURED:
                bench.handled()
            else:
                end = time.monotonic_ns() + _BUSY_NS
                while time.monotonic_ns() < end:
                    pass
            level.end()

"""Time, through one door: everything that waits or measures is given a Clock.

Production code gets a ``MonotonicClock``; tests get ``vbnet.testing.ManualClock`` and move time by hand, so that no
test sleeps. A process sets few timers (one heartbeat, and one for each request under way): an idle node must cost
nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from vbnet.units import SECOND_NS

__all__ = ["Clock", "MonotonicClock", "Timer"]


class Timer(Protocol):
    """A callback that is due later and can be called off."""

    def cancel(self) -> None:
        """Call it off; harmless when it has run or was cancelled."""


class Clock(Protocol):
    """Where time comes from."""

    def now_ns(self) -> int:
        """Nanoseconds since some fixed moment; never goes backwards."""

    def call_later(self, delay_ns: int, callback: Callable[[], object]) -> Timer:
        """Run ``callback`` on the event loop once ``delay_ns`` nanoseconds have passed (<= 0: next turn)."""


class MonotonicClock:
    """The machine's own clock; timers need a running asyncio event loop."""

    def now_ns(self) -> int:
        """Nanoseconds of ``CLOCK_MONOTONIC``."""
        return time.monotonic_ns()

    def call_later(self, delay_ns: int, callback: Callable[[], object]) -> Timer:
        """Run ``callback`` on the running event loop after ``delay_ns`` nanoseconds."""
        return asyncio.get_running_loop().call_later(max(0, delay_ns) / SECOND_NS, callback)

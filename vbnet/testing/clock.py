"""A clock that a test moves."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from vbnet.units import seconds_to_ns

__all__ = ["ManualClock"]


@dataclass(slots=True, order=True)
class _Due:
    at_ns: int
    order: int
    callback: Callable[[], object] = field(compare=False)
    is_cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.is_cancelled = True


class ManualClock:
    """Time stands still until ``advance``; timers then run in order, each at its own moment."""

    def __init__(self) -> None:
        self._now_ns = 0
        self._order = itertools.count()
        self._timers: list[_Due] = []

    def now_ns(self) -> int:
        """Nanoseconds since the clock was made."""
        return self._now_ns

    def call_later(self, delay_ns: int, callback: Callable[[], object]) -> _Due:
        """Run ``callback`` when ``advance`` passes the moment ``delay_ns`` from now."""
        due = _Due(self._now_ns + max(0, delay_ns), next(self._order), callback)
        heapq.heappush(self._timers, due)
        return due

    def advance(self, seconds: float) -> None:
        """Move on, running every timer that falls due on the way."""
        end_ns = self._now_ns + seconds_to_ns(seconds)
        while self._timers and self._timers[0].at_ns <= end_ns:
            due = heapq.heappop(self._timers)
            self._now_ns = max(self._now_ns, due.at_ns)
            if not due.is_cancelled:
                due.callback()
        self._now_ns = end_ns

    @property
    def pending(self) -> int:
        """Timers that are set and not cancelled."""
        return sum(not due.is_cancelled for due in self._timers)

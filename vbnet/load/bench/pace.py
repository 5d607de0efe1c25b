"""How long a bench measures: a thorough run, and one that only shows that it works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vbnet._native import BenchWindows

__all__ = ["FULL", "QUICK", "Pace"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to measure.

    Args:
        turns: readings of each contender.
        attempts: how often a disturbed reading is tried.
        warm_up_seconds, window_seconds, windows: of one reading; one sample a window.
        probe_seconds: of one look at the placement.
        calm_seconds: how long all readings of a bench together wait at most until nobody else uses the cores. Once that
            is spent, nothing is tried twice either: the machine is busy, and the rows will say so.
        watch_seconds: how long idle guests are watched.
    """

    turns: int
    attempts: int
    warm_up_seconds: float
    window_seconds: float
    windows: int
    probe_seconds: float
    calm_seconds: float
    watch_seconds: float

    def native(self, least_window_seconds: float = 0.0) -> BenchWindows:
        """The windows as the native module wants them, each at least so long."""
        return BenchWindows(self.warm_up_seconds, max(self.window_seconds, least_window_seconds), self.windows)


FULL: Final = Pace(
    turns=5,
    attempts=4,
    warm_up_seconds=0.05,
    window_seconds=0.1,
    windows=3,
    probe_seconds=0.05,
    calm_seconds=60.0,
    watch_seconds=10.0,
)
QUICK: Final = Pace(
    turns=1,
    attempts=1,
    warm_up_seconds=0.005,
    window_seconds=0.01,
    windows=2,
    probe_seconds=0.005,
    calm_seconds=0.0,
    watch_seconds=1.0,
)

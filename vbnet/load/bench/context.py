"""What every bench is given: two cores, a pace, and the rules by which figures become rows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from vbnet._native import bench_placement, bench_probe
from vbnet.load.bench.machine import Cores, CoreTimes, core_times, process_ticks
from vbnet.load.bench.pace import Pace
from vbnet.load.bench.summary import Summary
from vbnet.load.bench.turns import Contender, Outcome, take_turns

__all__ = ["Context", "Watch"]

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_OTHERS_SHARE: Final = 0.04
"""Share of both cores' time that others may take before a reading counts as disturbed."""
_LOOK_SECONDS: Final = 0.05
_OTHERS_TICKS: Final = 2
"""Ticks that may be miscounted: the clock of /proc/stat is coarse."""


@dataclass(slots=True)
class Watch:
    """Looks where two cores are, and whether others use them.

    What others used is what both cores were busy (or kept from running by the hypervisor), less what this process, its
    children that ended and the helpers it tells of used. ``calm_seconds`` is what is left of the time that all readings
    together may wait for calm.
    """

    cores: Cores
    probe_seconds: float
    calm_seconds: float = 0.0
    helpers: set[int] = field(default_factory=set)
    _began: float = 0.0
    _times: CoreTimes = field(default_factory=lambda: CoreTimes(0, 0))
    _own: int = 0

    def settle(self) -> bool:
        """Wait until nobody else uses the cores, in all ``calm_seconds``. ``False``: they are spent."""
        while self.calm_seconds > 0:
            self.begin()
            time.sleep(_LOOK_SECONDS)
            if not self.is_disturbed():
                return True
            self.calm_seconds -= _LOOK_SECONDS
        return False

    def placement(self) -> str:
        """Where the two cores are to each other, from a cache line's round trip."""
        return bench_placement(self.round_trip_ns().median)

    def round_trip_ns(self) -> Summary:
        """Nanoseconds of a cache line's round trip, right now."""
        return Summary.of(bench_probe(self.cores.pair, self.probe_seconds))

    def begin(self) -> None:
        """Start watching who uses the cores."""
        self._began = time.monotonic()
        self._times = core_times(self.cores)
        self._own = self._own_ticks()

    def is_disturbed(self) -> bool:
        """Whether others took more of the cores since ``begin`` than can be overlooked."""
        elapsed_ticks = (time.monotonic() - self._began) * _TICKS_A_SECOND * 2
        now = core_times(self.cores)
        used = now.busy - self._times.busy + now.steal - self._times.steal
        others = used - (self._own_ticks() - self._own)
        return others > max(_OTHERS_TICKS, _OTHERS_SHARE * elapsed_ticks)

    def _own_ticks(self) -> int:
        return process_ticks(os.getpid()) + sum(process_ticks(pid) for pid in self.helpers)


@dataclass(slots=True)
class Context:
    """What a bench measures with."""

    cores: Cores
    pace: Pace
    watch: Watch

    @property
    def is_quick(self) -> bool:
        """Whether this run is to show that it works, not how fast."""
        return self.pace.turns == 1

    def compete(self, contenders: Sequence[Contender]) -> Outcome:
        """Measure ``contenders`` in turn; see :func:`vbnet.load.bench.turns.take_turns`."""
        return take_turns(contenders, self.pace.turns, self.watch, self.pace.attempts)

    @contextmanager
    def helpers(self, pids: Sequence[int]) -> Iterator[None]:
        """Count what the processes ``pids`` use as the bench's own."""
        self.watch.helpers.update(pids)
        try:
            yield
        finally:
            self.watch.helpers.difference_update(pids)

"""Bench of the scheduler coordinator: how late a guest wakes beside one that spins, on one core.

The same two processes are measured in turn with the coordinator on, with it off, and with nice values given by hand
(the spinner 19, the waker -15): the three ways to share a core that a user has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Final

from vbnet._native import Ram, SchedCoordinator
from vbnet.errors import DeadlineError
from vbnet.load.bench.context import Context
from vbnet.load.bench.row import Row
from vbnet.load.bench.sched_sides import PAGE_BYTES, PAGE_OFFSET, nice_to
from vbnet.load.bench.side import Side
from vbnet.load.bench.summary import AtMost
from vbnet.load.bench.turns import Contender

__all__ = ["sched"]

_PERIOD_SECONDS: Final = 0.002
_RAM_BYTES: Final = 1 << 16
_ANSWER_SECONDS: Final = 60.0
_APPLY_SECONDS: Final = 5.0
_ON, _OFF, _NICE = "coordinated", "coordinator off", "nice by hand"
_MODULE: Final = "vbnet.load.bench.sched_sides"


def sched(context: Context) -> Iterator[Row]:
    """How late a guest wakes beside one that spins on its core, p99, by the scheduler coordinator and without."""
    with ExitStack() as stack:
        pair = _Pair(context, stack)
        stack.enter_context(context.helpers(pair.pids))
        outcome = context.compete(
            [
                Contender(_ON, pair.coordinated),
                Contender(_OFF, pair.measure),
                Contender(_NICE, pair.nice),
            ]
        )
    params: dict[str, str | int | float] = {"period_us": round(_PERIOD_SECONDS * 1e6), "figure": "p99 lateness"}
    note = "" if pair.is_able else "without CAP_SYS_NICE: no realtime, no nice below 0"
    on = outcome.summaries[_ON]
    for other in (_OFF, _NICE):
        baseline = (other, outcome.summaries[other])
        wanted = AtMost(1.0) if other == _OFF else None
        yield Row.of("sched", params, "ns", on, outcome.placement, baseline=baseline, wanted=wanted, note=note)


class _Pair:
    """Two guests on one core, and a coordinator that they take part in or not."""

    def __init__(self, context: Context, stack: ExitStack) -> None:
        self._context = context
        core = context.cores.near
        self._coordinator = SchedCoordinator()
        stack.callback(self._coordinator.close)
        self.is_able = self._coordinator.abilities()["realtime"]
        self._sides: dict[str, Side] = {}
        for name in ("Spinner", "Waker"):
            ram = Ram.create(_RAM_BYTES)
            stack.callback(ram.close)
            kick = os.eventfd(0, os.EFD_NONBLOCK)
            stack.callback(os.close, kick)
            fds = (ram.fileno(), kick)
            side = Side(f"{_MODULE}:{name}", core, {"ram_fd": fds[0], "kick_fd": kick}, pass_fds=fds)
            stack.callback(side.close)
            self._coordinator.join(name, side.pid, ram, (PAGE_OFFSET, PAGE_BYTES), kick)
            self._sides[name] = side

    @property
    def pids(self) -> list[int]:
        """Of both."""
        return [side.pid for side in self._sides.values()]

    def measure(self) -> Sequence[float]:
        """One reading, as things are."""
        pace = self._context.pace
        seconds = max(pace.window_seconds, 5 * _PERIOD_SECONDS)
        spinner, waker = self._sides["Spinner"], self._sides["Waker"]
        spinner.begin("spin", seconds=seconds * (pace.windows + 1))
        waker.begin("wake", seconds=seconds, period_s=_PERIOD_SECONDS, windows=pace.windows)
        late: list[float] = waker.finish(_ANSWER_SECONDS)
        spinner.finish(_ANSWER_SECONDS)
        return late

    def coordinated(self) -> Sequence[float]:
        """One reading with both taking part."""
        self._ask("Spinner", "declare")
        self._ask("Waker", "declare", period_s=_PERIOD_SECONDS)
        self._await(lambda: all(self._ask(name, "applied") for name in self._sides))
        try:
            return self.measure()
        finally:
            for name in self._sides:
                self._ask(name, "withdraw")
            self._await(lambda: not any(self._ask(name, "applied") for name in self._sides))

    def nice(self) -> Sequence[float]:
        """One reading with nice values given by hand; without privilege only the spinner gets one, once and for all."""
        values = {"Spinner": 19, "Waker": -15} if self.is_able else {}
        for name, value in values.items():
            nice_to(self._sides[name].pid, value)
        try:
            return self.measure()
        finally:
            for name in values:
                nice_to(self._sides[name].pid, 0)

    def _ask(self, name: str, method: str, **arguments: object) -> int:
        side = self._sides[name]
        side.begin(method, **arguments)
        answer: int = side.finish(_ANSWER_SECONDS)
        return answer

    @staticmethod
    def _await(is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + _APPLY_SECONDS
        while not is_so():
            if time.monotonic() > end:
                raise DeadlineError(f"the coordinator did not act within {_APPLY_SECONDS} s", deadline_s=_APPLY_SECONDS)

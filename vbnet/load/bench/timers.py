"""Benches of timers: what arming one costs, and how late it comes, beside what people use without vbnet.

The guest's thread has the near core, the host's timekeeper the far one; a bare timerfd's thread has the near core too.
Lateness is what a thousand expiries a second show: half of them, and 99 of 100, were not later than the figure.
"""

from __future__ import annotations

import asyncio
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from vbnet._native import bench_timer_arm, bench_timer_bare, bench_timer_late
from vbnet.devices.timer.wire import LEAD_US
from vbnet.load.bench.context import Context
from vbnet.load.bench.row import Row
from vbnet.load.bench.summary import AtMost
from vbnet.load.bench.turns import Contender

__all__ = ["arm", "late"]

_NS: Final = 1e9
_PERIOD_S: Final = 0.001
_FAR_S: Final = 3600.0
_ARM_LIMIT_NS: Final = 50.0
_LATE_LIMIT: Final = 1.2
_ARMED: Final = (1, 1000, 100_000)
_ARMED_QUICK: Final = (1, 1000)
_LEAD: Final = f"up to {LEAD_US} µs"
_BARE: Final = "timerfd of its own"
_ASYNCIO: Final = "asyncio call_later"
_WINDOW_SECONDS: Final = 0.5

Percentile = Callable[[Sequence[float]], float]


def _p99(samples: Sequence[float]) -> float:
    return sorted(samples)[min(len(samples) - 1, len(samples) * 99 // 100)]


_PERCENTILES: Final[dict[str, Percentile]] = {"p50": statistics.median, "p99": _p99}


def arm(context: Context) -> Iterator[Row]:
    """Move a timer to a later deadline while the host sleeps: no system call."""
    windows = context.pace.native()
    measure = functools.partial(bench_timer_arm, context.cores.pair, windows)
    outcome = context.compete(
        [Contender("vbnet", measure), Contender(_ASYNCIO, functools.partial(_asyncio_arm, context))]
    )
    yield Row.of("timer.arm", {}, "ns", outcome.summaries["vbnet"], outcome.placement, wanted=AtMost(_ARM_LIMIT_NS))
    yield Row.of(
        "timer.arm",
        {},
        "ns",
        outcome.summaries["vbnet"],
        outcome.placement,
        baseline=(_ASYNCIO, outcome.summaries[_ASYNCIO]),
        note="asyncio cancels and makes a handle",
    )


def _asyncio_arm(context: Context) -> list[float]:
    loop = asyncio.new_event_loop()
    try:
        samples = []
        for _ in range(context.pace.windows):
            handle = loop.call_later(_FAR_S, int)
            start, arms = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - start) < context.pace.window_seconds:
                for _ in range(100):
                    handle.cancel()
                    handle = loop.call_later(_FAR_S, int)
                arms += 100
            handle.cancel()
            samples.append(elapsed * _NS / arms)
        return samples
    finally:
        loop.close()


def late(context: Context) -> Iterator[Row]:
    """How late a thousand expiries a second come, against a thread with a timerfd and asyncio."""
    for armed in _ARMED_QUICK if context.is_quick else _ARMED:
        for name, percentile in _PERCENTILES.items():
            yield from _late(context, armed, name, percentile)


def _late(context: Context, armed: int, name: str, percentile: Percentile) -> Iterator[Row]:
    windows = context.pace.native() if context.is_quick else context.pace.native(_WINDOW_SECONDS)
    cores = context.cores.pair

    def reading(measure: Callable[[], Sequence[float]]) -> Callable[[], Sequence[float]]:
        return lambda: [percentile(measure())]

    outcome = context.compete(
        [
            Contender("lead", reading(functools.partial(bench_timer_late, cores, windows, armed, LEAD_US * 1000))),
            Contender("no lead", reading(functools.partial(bench_timer_late, cores, windows, armed, 0))),
            Contender(_BARE, reading(functools.partial(bench_timer_bare, cores, windows))),
            Contender(_ASYNCIO, reading(functools.partial(_asyncio_late, context, armed))),
        ]
    )
    for lead, baseline, wanted in (
        (_LEAD, _BARE, AtMost(_LATE_LIMIT)),
        ("none", _BARE, None),
        (_LEAD, _ASYNCIO, None),
    ):
        yield Row.of(
            "timer.late",
            {"armed": armed, "percentile": name, "lead": lead},
            "ns",
            outcome.summaries["no lead" if lead == "none" else "lead"],
            outcome.placement,
            baseline=(baseline, outcome.summaries[baseline]),
            wanted=wanted,
        )


def _asyncio_late(context: Context, armed: int) -> list[float]:
    """How late ``call_later`` calls, with so many handles, on the near core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {context.cores.pair[0]})
    loop = asyncio.new_event_loop()
    try:
        others = [loop.call_later(_FAR_S, int) for _ in range(armed - 1)]
        samples: list[float] = []
        seconds = context.pace.window_seconds if context.is_quick else _WINDOW_SECONDS
        end = loop.time() + seconds * context.pace.windows

        def tick(deadline: float) -> None:
            now = loop.time()
            samples.append((now - deadline) * _NS)
            following = max(deadline + _PERIOD_S, now)
            if following < end:
                loop.call_at(following, tick, following)
            else:
                loop.stop()

        first = loop.time() + _PERIOD_S
        loop.call_at(first, tick, first)
        loop.run_forever()
        for handle in others:
            handle.cancel()
        return samples
    finally:
        loop.close()
        os.sched_setaffinity(0, before)

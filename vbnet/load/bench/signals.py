"""Benches of signals: raising them, how long an urgent one waits under a flood, and what its end costs.

Host on the far core (signal thread and pacer), guests on the near one (handlers and flooders), all native; see
``rust/core/src/bench/irq.rs``. A latency's contender answers its 99th percentile, one a reading.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from vbnet._native import bench_signal_end, bench_signal_latency, bench_signal_raise, bench_signal_wakeups
from vbnet.errors import ResourceError
from vbnet.load.bench.context import Context
from vbnet.load.bench.row import Row
from vbnet.load.bench.side import Side
from vbnet.load.bench.summary import AtMost, Summary
from vbnet.load.bench.turns import Contender

__all__ = ["eoi", "priority", "raise_"]

_EVENTFD: Final = "write to an eventfd"
_RAISES: Final = 1_000_000
_RAISES_QUICK: Final = 10_000
_FLOODERS: Final = 8
_PAUSE_SECONDS: Final = 300e-6
_SECONDS: Final = 2.0
_SECONDS_QUICK: Final = 0.2
_CALL_SECONDS: Final = 60.0
_SHARED: Final = "shared memory"
_TRAPPED: Final = "emulated APIC"
_RATES: Final = (1_000, 100_000, 0)
_END_SECONDS: Final = 0.5
_END_SECONDS_QUICK: Final = 0.02
_END_ATTEMPTS: Final = 20
"""On a busy machine the one who serves may not run at all for as long as a quick reading takes."""
_SWITCH_DEFAULT: Final = 0.005
"""What Python begins with."""
_SWITCH_SHORT: Final = 0.0001
_IDLE: Final = "idle"
_ON: Final = "priorities on"
_OFF: Final = "priorities off"


class _Cost(NamedTuple):
    """What ``bench_signal_end`` answers."""

    events: int
    handled: int
    wakeups: int
    traps: int
    system_calls: int
    seconds: float


def raise_(context: Context) -> Iterator[Row]:
    """Raise a signal that is pending already, against a write to an eventfd; count wake-ups of a sleeper."""
    windows = context.pace.native()
    outcome = context.compete(
        [
            Contender("pending", functools.partial(bench_signal_raise, "pending", context.cores.pair, windows)),
            Contender(_EVENTFD, functools.partial(bench_signal_raise, "eventfd", context.cores.pair, windows)),
        ]
    )
    pending = outcome.summaries["pending"]
    params: dict[str, str | int | float] = {"signal": "pending already"}
    yield Row.of("signal.raise", params, "ns", pending, outcome.placement, wanted=AtMost(50.0))
    yield Row.of(
        "signal.raise",
        params,
        "ns",
        pending,
        outcome.placement,
        baseline=(_EVENTFD, outcome.summaries[_EVENTFD]),
        note="no system call against one",
    )
    raises = _RAISES_QUICK if context.is_quick else _RAISES
    for signals in (1, 1000):
        woken = float(bench_signal_wakeups(raises, signals))
        yield Row.of(
            "signal.raise",
            {"raises": raises, "signals": signals, "handler": "asleep"},
            "wake-ups",
            Summary.of([woken]),
            "-",
            wanted=AtMost(1.0),
        )


def priority(context: Context) -> Iterator[Row]:
    """Time from raise to handler at priority 7 (99th percentile) while 8 guests flood priority 0, against idle."""
    outcome = context.compete(
        [
            Contender(_IDLE, _p99(context, 0, is_prioritised=True)),
            Contender(_ON, _p99(context, _FLOODERS, is_prioritised=True)),
            Contender(_OFF, _p99(context, _FLOODERS, is_prioritised=False)),
        ]
    )
    idle = (_IDLE, outcome.summaries[_IDLE])
    for name, wanted in ((_ON, AtMost(1.5)), (_OFF, None)):
        yield Row.of(
            "signal.priority",
            {"flooding_guests": _FLOODERS, "priorities": name.rpartition(" ")[2], "handler": "native"},
            "ns",
            outcome.summaries[name],
            outcome.placement,
            baseline=idle,
            wanted=wanted,
            note="99th percentile" if wanted else "the same signal among those of priority 0",
        )
    yield from _python_handlers(context)


def _cost_of_ending(context: Context, rate: int, *, is_trapped: bool) -> _Cost:
    """Raise interrupts for a while; raises ResourceError when none was served, however often it is tried."""
    seconds = _END_SECONDS_QUICK if context.is_quick else _END_SECONDS
    for _ in range(_END_ATTEMPTS):
        cost = _Cost(*bench_signal_end(context.cores.pair, is_trapped, rate, seconds))
        if cost.handled:
            return cost
    raise ResourceError(f"no interrupt was served in {_END_ATTEMPTS} times {seconds} s; the machine is too busy")


def eoi(context: Context) -> Iterator[Row]:
    """What an interrupt costs until it is ended: shared memory against an emulated controller that traps.

    Events whose signal was pending already are one interrupt with the one before.
    """
    for rate in _RATES:
        readings: dict[str, list[_Cost]] = {_SHARED: [], _TRAPPED: []}

        def contender(name: str, rate: int = rate, readings: dict[str, list[_Cost]] = readings) -> Contender:
            def measure() -> Sequence[float]:
                cost = _cost_of_ending(context, rate, is_trapped=name == _TRAPPED)
                readings[name].append(cost)
                return [cost.handled / cost.seconds]

            return Contender(name, measure)

        outcome = context.compete([contender(_SHARED), contender(_TRAPPED)])
        for what, unit in (
            ("system_calls", "system calls/interrupt"),
            ("wakeups", "wake-ups/interrupt"),
            ("traps", "traps/interrupt"),
        ):
            ours, theirs = (
                Summary.of(getattr(cost, what) / cost.handled for cost in readings[name])
                for name in (_SHARED, _TRAPPED)
            )
            yield Row.of(
                "signal.eoi",
                {"events_per_second": rate or "as many as it can", "counted": what.replace("_", " ")},
                unit,
                ours,
                outcome.placement,
                baseline=(_TRAPPED, theirs),
            )
        if rate == 0:
            yield Row.of(
                "signal.eoi",
                {"events_per_second": "as many as it can", "counted": "interrupts served"},
                "interrupts/s",
                outcome.summaries[_SHARED],
                outcome.placement,
                baseline=(_TRAPPED, outcome.summaries[_TRAPPED]),
            )


def _python_handlers(context: Context) -> Iterator[Row]:
    """The same with handlers in Python, whose lock a flooded handler may hold when the urgent signal comes."""
    seconds = _SECONDS_QUICK if context.is_quick else _SECONDS
    params = {"near": context.cores.near, "far": context.cores.far}
    with Side("vbnet.load.bench.handlers:Handlers", context.cores.near, params) as side, context.helpers([side.pid]):

        def contender(name: str, flooders: int, interval: float) -> Contender:
            def measure() -> Sequence[float]:
                return [
                    side.call(
                        "p99_ns",
                        _CALL_SECONDS,
                        flooders=flooders,
                        is_prioritised=True,
                        switch_interval=interval,
                        pause=_PAUSE_SECONDS,
                        length=seconds,
                    )
                ]

            return Contender(name, measure)

        outcome = context.compete(
            [
                contender(_IDLE, 0, _SWITCH_DEFAULT),
                *(contender(str(interval), _FLOODERS, interval) for interval in (_SWITCH_DEFAULT, _SWITCH_SHORT)),
            ]
        )
    for interval in (_SWITCH_DEFAULT, _SWITCH_SHORT):
        yield Row.of(
            "signal.priority",
            {"flooding_guests": _FLOODERS, "priorities": "on", "handler": "Python", "switch_interval_s": interval},
            "ns",
            outcome.summaries[str(interval)],
            outcome.placement,
            baseline=(_IDLE, outcome.summaries[_IDLE]),
            note="99th percentile; the interpreter's lock changes hands once an interval",
        )


def _p99(context: Context, flooders: int, *, is_prioritised: bool) -> Callable[[], Sequence[float]]:
    seconds = _SECONDS_QUICK if context.is_quick else _SECONDS

    def measure() -> Sequence[float]:
        samples = sorted(bench_signal_latency(context.cores.pair, flooders, is_prioritised, _PAUSE_SECONDS, seconds))
        return [float(samples[len(samples) * 99 // 100])]

    return measure

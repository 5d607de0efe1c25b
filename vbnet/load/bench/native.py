"""Benches that run in the native module alone: what the machine can do, and vbnet's ring beside it.

``limit`` has no subject: it shows what each layout of a bare ring, each batch size, each ring size and each way to
sleep costs here. ``ring`` holds vbnet's ring against the best of the bare ones. ``fastcall`` holds a call of the host
and its answer against a bare round trip, and against two bare wake-ups when both sides sleep in between.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Final

from vbnet._native import bench_asleep, bench_bare, bench_fastcall, bench_fastcalls, bench_polled, bench_ring
from vbnet.load.bench.context import Context
from vbnet.load.bench.peers.testpmd import Memif, why_not_installed
from vbnet.load.bench.row import Row
from vbnet.load.bench.summary import AtLeast, AtMost
from vbnet.load.bench.turns import Contender

__all__ = ["BATCH", "SLOTS", "ahead_for", "fastcall", "limit", "ring"]

BATCH: Final = 32
SLOTS: Final = 1024
_AHEAD_BYTES: Final = 512
_LAYOUTS: Final = ("inline", "lengths", "descriptors", "flags", "headers")
_SLEEPS: Final = ("eventfd", "eventfd-poll", "futex", "pipe")
_LARGE_BYTES: Final = 65536
_BARE: Final = "bare ring"
_BARE_TRIP: Final = "bare round trip, polled"
_BARE_WAKES: Final = "bare round trip, asleep on eventfds"
_BARE_AHEAD: Final = "bare ring, lines asked for ahead"


def ahead_for(frame_bytes: int) -> int:
    """How many frames of this size ahead a bare ring's writer best asks for its lines: half a kilobyte's worth."""
    return max(1, _AHEAD_BYTES // frame_bytes)


def _slots_for(frame_bytes: int) -> int:
    """Slots that keep the ring within some tens of megabytes."""
    return 256 if frame_bytes >= _LARGE_BYTES else SLOTS


def _bare(context: Context, frame_bytes: int, **choices: int | str) -> Callable[[], Sequence[float]]:
    defaults: dict[str, int | str] = {"layout": "inline", "slots": _slots_for(frame_bytes), "batch": BATCH, "ahead": 0}
    return functools.partial(
        bench_bare,
        frame_bytes=frame_bytes,
        cores=context.cores.pair,
        windows=context.pace.native(),
        **{**defaults, **choices},  # type: ignore[arg-type]  # keywords by name; the native side checks them
    )


def limit(context: Context) -> Iterator[Row]:
    """Show what bare rings, round trips and wake-ups cost on this machine."""
    yield from _layouts(context)
    yield from _sizes(context)
    yield from _round_trips(context)


def _layouts(context: Context) -> Iterator[Row]:
    for frame_bytes in (64, 1500):
        for batch in (BATCH, 1):
            contenders = [
                Contender(
                    f"{layout}, ahead {ahead}", _bare(context, frame_bytes, layout=layout, batch=batch, ahead=ahead)
                )
                for layout in _LAYOUTS
                for ahead in ((0,) if layout == "headers" else (0, ahead_for(frame_bytes)))
            ]
            outcome = context.compete(contenders)
            held_against = ("inline", outcome.summaries["inline, ahead 0"])
            for name, samples in outcome.summaries.items():
                layout, _, ahead = name.partition(", ahead ")
                yield Row.of(
                    "limit",
                    {"layout": layout, "frame_bytes": frame_bytes, "slots": SLOTS, "batch": batch, "ahead": int(ahead)},
                    "frames/s",
                    samples,
                    outcome.placement,
                    baseline=held_against,
                )


def _sizes(context: Context) -> Iterator[Row]:
    """Frame sizes, ring sizes and batch sizes of the inline layout."""
    variants: list[tuple[int, int, int]] = [
        *((frame_bytes, _slots_for(frame_bytes), BATCH) for frame_bytes in (64, 256, 1500, _LARGE_BYTES)),
        *((frame_bytes, slots, BATCH) for frame_bytes in (64, 1500) for slots in (64, 256, 4096)),
        *((64, SLOTS, batch) for batch in (4, 8, 16, 64, 256)),
    ]
    for frame_bytes, slots, batch in variants:
        ahead = ahead_for(frame_bytes)
        outcome = context.compete(
            [
                Contender(str(each), _bare(context, frame_bytes, slots=slots, batch=batch, ahead=each))
                for each in (0, ahead)
            ]
        )
        for each in (0, ahead):
            yield Row.of(
                "limit",
                {"layout": "inline", "frame_bytes": frame_bytes, "slots": slots, "batch": batch, "ahead": each},
                "frames/s",
                outcome.summaries[str(each)],
                outcome.placement,
                baseline=None if each == 0 else ("inline, ahead 0", outcome.summaries["0"]),
            )


def _round_trips(context: Context) -> Iterator[Row]:
    windows = context.pace.native()
    one_core = (context.cores.near, context.cores.near)
    line = Contender("line", lambda: [context.watch.round_trip_ns().median])
    contenders = [line]
    contenders += [
        Contender(f"polled {frame_bytes}", functools.partial(bench_polled, frame_bytes, context.cores.pair, windows))
        for frame_bytes in (64, 1500, _LARGE_BYTES)
    ]
    contenders += [
        Contender(f"{way} on {where}", functools.partial(bench_asleep, way, cores, windows))
        for way in _SLEEPS
        for where, cores in (("two cores", context.cores.pair), ("one core", one_core))
    ]
    outcome = context.compete(contenders)
    for name, samples in outcome.summaries.items():
        yield Row.of("limit", {"round_trip": name}, "ns", samples, outcome.placement)


def ring(context: Context) -> Iterator[Row]:
    """Hold vbnet's ring, guest to host, against bare rings and DPDK's memif."""
    variants = [(64, BATCH), (1500, BATCH)]
    if not context.is_quick:
        variants += [(256, BATCH), (64, 1), (1500, 1)]
    for frame_bytes, batch in variants:
        yield from _ring(context, frame_bytes, batch)


def _ring(context: Context, frame_bytes: int, batch: int) -> Iterator[Row]:
    windows = context.pace.native()
    ahead = ahead_for(frame_bytes)
    contenders = [
        Contender("vbnet", functools.partial(bench_ring, frame_bytes, context.cores.pair, windows, SLOTS, batch)),
        Contender(_BARE, _bare(context, frame_bytes, batch=batch)),
        Contender(_BARE_AHEAD, _bare(context, frame_bytes, batch=batch, ahead=ahead)),
    ]
    missing = why_not_installed()
    with ExitStack() as stack:
        if missing is None and batch == BATCH and not context.is_quick:
            memif = stack.enter_context(Memif(context.cores, frame_bytes))
            stack.enter_context(context.helpers(memif.pids))
            contenders.append(Contender(memif.label, lambda: memif.frames_per_second(context.pace)))
        outcome = context.compete(contenders)
    params: dict[str, str | int | float] = {"frame_bytes": frame_bytes, "slots": SLOTS, "batch": batch}
    subject = outcome.summaries.pop("vbnet")
    for name, samples in outcome.summaries.items():
        wanted = {_BARE: AtLeast(0.8), _BARE_AHEAD: None}.get(name, AtLeast(1.0)) if batch == BATCH else None
        yield Row.of(
            "ring",
            params,
            "frames/s",
            subject,
            outcome.placement,
            baseline=(name, samples),
            wanted=wanted,
            note=missing if missing and name == _BARE else "",
        )


def fastcall(context: Context) -> Iterator[Row]:
    """Hold fastcalls against bare round trips, polled and asleep, and let several callers call at once."""
    cores, windows = context.cores.pair, context.pace.native()
    for data_bytes in (8, 48):
        outcome = context.compete(
            [
                Contender("vbnet", functools.partial(bench_fastcall, data_bytes, cores, windows)),
                Contender(_BARE_TRIP, functools.partial(bench_polled, data_bytes, cores, windows)),
            ]
        )
        yield Row.of(
            "fastcall",
            {"data_bytes": data_bytes, "callers": 1, "waits": "spinning"},
            "ns",
            outcome.summaries["vbnet"],
            outcome.placement,
            baseline=(_BARE_TRIP, outcome.summaries[_BARE_TRIP]),
            wanted=AtMost(1.5),
        )
    yield from _fastcalls_at_once(context)
    asleep = context.compete(
        [
            Contender("vbnet", functools.partial(bench_fastcall, 8, cores, windows, is_asleep=True)),
            Contender(_BARE_WAKES, functools.partial(bench_asleep, "eventfd-poll", cores, windows)),
        ]
    )
    yield Row.of(
        "fastcall",
        {"data_bytes": 8, "callers": 1, "waits": "asleep"},
        "ns",
        asleep.summaries["vbnet"],
        asleep.placement,
        baseline=(_BARE_WAKES, asleep.summaries[_BARE_WAKES]),
    )


def _fastcalls_at_once(context: Context) -> Iterator[Row]:
    cores, windows = context.cores.pair, context.pace.native()
    counts = (1, 2, 4, 8)
    outcome = context.compete(
        [Contender(str(count), functools.partial(bench_fastcalls, count, 8, cores, windows)) for count in counts]
    )
    for count in counts:
        yield Row.of(
            "fastcall",
            {"data_bytes": 8, "callers": count, "waits": "spinning"},
            "calls/s",
            outcome.summaries[str(count)],
            outcome.placement,
            baseline=None if count == 1 else ("1 caller", outcome.summaries["1"]),
        )

"""Benches through a switch: throughput, round trips, Python objects, and what many attached guests cost.

Placement as a host with one worker has it: generator and sink (both guests) share the near core, the host's worker has
the far one. Peers get the same: both ends of the guest on one core, the host on the other.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Final

from vbnet._native import bench_asleep, bench_polled
from vbnet.load.bench.context import Context
from vbnet.load.bench.native import BATCH, SLOTS
from vbnet.load.bench.pace import Pace
from vbnet.load.bench.peers import objects, testpmd
from vbnet.load.bench.row import Row
from vbnet.load.bench.sides import RARE_ETHERTYPE, Stage
from vbnet.load.bench.summary import AtLeast, AtMost
from vbnet.load.bench.turns import Contender

__all__ = ["UNDER_WAY", "capture_cost", "metrics_cost", "offloads", "python", "rtt", "rtt_asleep", "scale", "switch"]

UNDER_WAY: Final = 960
"""Frames between generator and sink at most: about what the peers have, and fewer than a ring has slots."""
_CALL_SECONDS: Final = 60.0
_IDLE_SLOTS: Final = 16
"""Rings of guests that are attached and do nothing."""
_ATTACHED: Final = (2, 16, 128, 1000)
_ATTACHED_QUICK: Final = (2, 16)
_FLAT_SHARE: Final = 0.9
_CAPTURED_SHARE: Final = 0.9
_RARE_ONLY: Final = b"".join(
    struct.pack("<HBBI", *instruction)
    for instruction in (
        (0x28, 0, 0, 12),
        (0x15, 0, 1, int.from_bytes(RARE_ETHERTYPE)),
        (0x06, 0, 0, 65535),
        (0x06, 0, 0, 0),
    )
)
"""``ether proto 0x88b6``, as libpcap compiles it."""
_UNCOUNTED: Final = "counting compiled out"
_COUNTED_SHARE: Final = 0.97


def _windows(pace: Pace) -> tuple[float, float, int]:
    return (pace.warm_up_seconds, pace.window_seconds, pace.windows)


def _frames(
    context: Context, stage: Stage, frame_bytes: int, batch: int = BATCH, **more: bool
) -> Callable[[], Sequence[float]]:
    return functools.partial(
        stage.guests.call,
        "frames_per_second",
        _CALL_SECONDS,
        frame_bytes=frame_bytes,
        batch=batch,
        under_way=UNDER_WAY,
        windows=_windows(context.pace),
        **more,
    )


def switch(context: Context) -> Iterator[Row]:
    """Frames from guest to guest through the switch, against DPDK's vhost loop."""
    for frame_bytes in (64, 1500):
        with ExitStack() as stack:
            stage = stack.enter_context(Stage.up(context.cores, slots=SLOTS))
            stack.enter_context(context.helpers(stage.pids))
            stage.guests.call("go_native", _CALL_SECONDS)
            contenders = [Contender("vbnet", _frames(context, stage, frame_bytes))]
            missing = testpmd.why_not_installed()
            if missing is None and not context.is_quick:
                for is_packed in (False, True):
                    loop = stack.enter_context(testpmd.VhostLoop(context.cores, frame_bytes, is_packed=is_packed))
                    stack.enter_context(context.helpers(loop.pids))
                    contenders.append(Contender(loop.label, functools.partial(loop.frames_per_second, context.pace)))
            outcome = context.compete(contenders)
        subject = outcome.summaries.pop("vbnet")
        params: dict[str, str | int | float] = {"frame_bytes": frame_bytes, "slots": SLOTS, "batch": BATCH}
        if not outcome.summaries:
            yield Row.of("switch", params, "frames/s", subject, outcome.placement, note=missing or "")
        best = max(outcome.summaries, key=lambda name: outcome.summaries[name].median, default="")
        for name, samples in outcome.summaries.items():
            yield Row.of(
                "switch",
                params,
                "frames/s",
                subject,
                outcome.placement,
                baseline=(name, samples),
                wanted=AtLeast(2.0) if name == best else None,
            )


def capture_cost(context: Context) -> Iterator[Row]:
    """``switch`` while a capture looks at the sender's port, for one frame in a thousand and for all of them."""
    quiet = "no capture"
    with ExitStack() as stack:
        stage = stack.enter_context(Stage.up(context.cores, slots=SLOTS))
        stack.enter_context(context.helpers(stage.pids))
        stage.guests.call("go_native", _CALL_SECONDS)
        plain = _frames(context, stage, 64, has_rare=True)

        def watched(program: bytes) -> Sequence[float]:
            capture = stage.host.call("capture", _CALL_SECONDS, program=program.hex())
            try:
                return plain()
            finally:
                stage.host.call("uncapture", _CALL_SECONDS, capture=capture)

        contenders: dict[str, Callable[[], Sequence[float]]] = {
            quiet: plain,
            "1 in 992 wanted": functools.partial(watched, _RARE_ONLY),
            "all wanted, ring full": functools.partial(watched, b""),
        }
        outcome = context.compete([Contender(name, measure) for name, measure in contenders.items()])
    for name in contenders:
        yield Row.of(
            "capture.cost",
            {"frame_bytes": 64, "slots": SLOTS, "batch": BATCH, "capture": name},
            "frames/s",
            outcome.summaries[name],
            outcome.placement,
            baseline=None if name == quiet else (quiet, outcome.summaries[quiet]),
            wanted=AtLeast(_CAPTURED_SHARE) if name == "1 in 992 wanted" else None,
        )


def metrics_cost(context: Context) -> Iterator[Row]:
    """``switch`` as it is, against the same with all counters and latencies compiled out."""
    for frame_bytes in (64, 1500):
        with ExitStack() as stack:
            contenders = []
            for name, does_count in (("vbnet", True), (_UNCOUNTED, False)):
                stage = stack.enter_context(Stage.up(context.cores, slots=SLOTS, does_count=does_count))
                stack.enter_context(context.helpers(stage.pids))
                stage.guests.call("go_native", _CALL_SECONDS, does_stamp=does_count)
                contenders.append(Contender(name, _frames(context, stage, frame_bytes)))
            outcome = context.compete(contenders)
        yield Row.of(
            "metrics.cost",
            {"frame_bytes": frame_bytes, "slots": SLOTS, "batch": BATCH},
            "frames/s",
            outcome.summaries["vbnet"],
            outcome.placement,
            baseline=(_UNCOUNTED, outcome.summaries[_UNCOUNTED]),
            wanted=AtLeast(_COUNTED_SHARE),
        )


def rtt(context: Context) -> Iterator[Row]:
    """One frame from guest to guest through the host, everybody awake, against a bare ring's ping-pong."""
    with ExitStack() as stack:
        stage = stack.enter_context(Stage.up(context.cores))
        stack.enter_context(context.helpers(stage.pids))
        stage.guests.call("go_native", _CALL_SECONDS)
        for frame_bytes in (64, 1500):
            outcome = context.compete(
                [
                    Contender("vbnet", _round_trips(context, stage, frame_bytes, is_asleep=False)),
                    Contender(
                        "bare ring ping-pong",
                        functools.partial(bench_polled, frame_bytes, context.cores.pair, context.pace.native()),
                    ),
                ]
            )
            yield Row.of(
                "rtt",
                {"frame_bytes": frame_bytes},
                "ns",
                outcome.summaries["vbnet"],
                outcome.placement,
                baseline=("bare ring ping-pong", outcome.summaries["bare ring ping-pong"]),
                wanted=AtMost(2.0) if frame_bytes == 64 else None,  # noqa: PLR2004 - the size the target is for
            )


def rtt_asleep(context: Context) -> Iterator[Row]:
    """One frame from guest to guest through the host, guest and host asleep in between, against two eventfds."""
    bare = "bare eventfd ping-pong"
    with ExitStack() as stack:
        stages = {}
        for burst_threshold_us in (0, 50):
            stage = stack.enter_context(Stage.up(context.cores, burst_threshold_us=burst_threshold_us))
            stack.enter_context(context.helpers(stage.pids))
            stage.guests.call("go_native", _CALL_SECONDS)
            stages[burst_threshold_us] = stage
        outcome = context.compete(
            [
                *(
                    Contender(f"vbnet {threshold}", _round_trips(context, stage, 64, is_asleep=True))
                    for threshold, stage in stages.items()
                ),
                Contender(bare, functools.partial(bench_asleep, "eventfd", context.cores.pair, context.pace.native())),
            ]
        )
    for threshold in stages:
        yield Row.of(
            "rtt.asleep",
            {"frame_bytes": 64, "burst_threshold_us": threshold},
            "ns",
            outcome.summaries[f"vbnet {threshold}"],
            outcome.placement,
            baseline=(bare, outcome.summaries[bare]),
            wanted=AtMost(1.15),
            note="the host sleeps as soon as it is idle" if threshold == 0 else "the host polls a while, as by default",
        )


def _round_trips(context: Context, stage: Stage, frame_bytes: int, *, is_asleep: bool) -> Callable[[], Sequence[float]]:
    return functools.partial(
        stage.guests.call,
        "round_trip_ns",
        _CALL_SECONDS,
        frame_bytes=frame_bytes,
        windows=_windows(context.pace),
        is_asleep=is_asleep,
    )


def python(context: Context) -> Iterator[Row]:
    """``bytes`` objects from one Python guest to another, against what Python programs use otherwise."""
    sizes = (64,) if context.is_quick else (64, 1500)
    for frame_bytes in sizes:
        yield from _python(context, frame_bytes)


def _python(context: Context, frame_bytes: int) -> Iterator[Row]:
    notes = []
    with ExitStack() as stack:
        stage = stack.enter_context(Stage.up(context.cores, slots=SLOTS))
        stack.enter_context(context.helpers(stage.pids))
        contenders = [
            Contender(
                str(batch),
                functools.partial(
                    stage.guests.call,
                    "objects_per_second",
                    _CALL_SECONDS,
                    frame_bytes=frame_bytes,
                    batch=batch,
                    under_way=UNDER_WAY,
                    windows=_windows(context.pace),
                ),
            )
            for batch in (BATCH, 1)
        ]
        for peer in objects.PEERS:
            missing = objects.why_not_installed(peer)
            if missing is not None:
                notes.append(missing)
                continue
            pair = stack.enter_context(peer.up(context.cores, frame_bytes))
            stack.enter_context(context.helpers(pair.pids))
            contenders.append(Contender(peer.label, functools.partial(pair.objects_per_second, context.pace)))
        outcome = context.compete(contenders)
    peers = {name: outcome.summaries[name] for name in outcome.summaries if not name.isdigit()}
    # The targets name these two; the socket is there for comparison.
    named = [name for name in peers if "SEQPACKET" not in name]
    best = max(named, key=lambda name: peers[name].median, default="")
    for batch, least in ((BATCH, 15.0), (1, 5.0)):
        for name, samples in peers.items():
            yield Row.of(
                "python",
                {"frame_bytes": frame_bytes, "batch": batch},
                "objects/s",
                outcome.summaries[str(batch)],
                outcome.placement,
                baseline=(name, samples),
                wanted=AtLeast(least) if name == best and frame_bytes == 64 else None,  # noqa: PLR2004 - as above
                note="; ".join(notes),
            )


def offloads(context: Context) -> Iterator[Row]:
    """Payload of TCP from one Python guest to another in long frames, whole or cut on the way, against plain ones."""
    kinds = {"plain": (0, False), "whole": (2, True), "cut by the worker": (1, True)}
    with ExitStack() as stack:
        contenders = []
        for kind, (granted, is_long) in kinds.items():
            stage = stack.enter_context(Stage.up(context.cores, slots=SLOTS, offloads=granted))
            stack.enter_context(context.helpers(stage.pids))
            run = functools.partial(
                stage.guests.call,
                "payload_per_second",
                _CALL_SECONDS,
                is_long=is_long,
                windows=_windows(context.pace),
            )
            contenders.append(Contender(kind, run))
        outcome = context.compete(contenders)
    for kind in kinds:
        yield Row.of(
            "offloads",
            {"mtu": 1500, "frames": kind},
            "bits/s",
            outcome.summaries[kind],
            outcome.placement,
            baseline=None if kind == "plain" else ("plain frames", outcome.summaries["plain"]),
            wanted=AtLeast(1.0) if kind == "whole" else None,
        )


def scale(context: Context) -> Iterator[Row]:
    """``switch`` with more and more attached guests, two of them active: the same rate, whatever is attached."""
    attached = _ATTACHED_QUICK if context.is_quick else _ATTACHED
    with ExitStack() as stack:
        contenders = []
        for count in attached:
            stage = stack.enter_context(Stage.up(context.cores, slots=SLOTS))
            stack.enter_context(context.helpers(stage.pids))
            stage.join(count - 2, mtu=1500, slots=_IDLE_SLOTS)
            stage.guests.call("go_native", _CALL_SECONDS)
            contenders.append(Contender(str(count), _frames(context, stage, 64)))
        outcome = context.compete(contenders)
    least = str(attached[0])
    for count in attached:
        yield Row.of(
            "scale",
            {"frame_bytes": 64, "attached": count, "active": 2},
            "frames/s",
            outcome.summaries[str(count)],
            outcome.placement,
            baseline=None if str(count) == least else (f"{least} attached", outcome.summaries[least]),
            wanted=None if str(count) == least else AtLeast(_FLAT_SHARE),
        )

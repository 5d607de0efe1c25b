"""The ``state`` bench: what it costs to publish and to sample the latest value.

Native figures are held against what is wanted of them; those of Python against what Python programs use for the same: a
blackboard of iceoryx2, and a structure in shared memory under a lock. The Python sides are in one process: the limit
there is the interpreter, and nothing that a second process does makes it faster.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import mmap
import multiprocessing
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Final

from vbnet._native import bench_state_publish, bench_state_sample
from vbnet.load.bench.context import Context
from vbnet.load.bench.pace import Pace
from vbnet.load.bench.row import Row
from vbnet.load.bench.summary import AtLeast, AtMost, Wanted
from vbnet.load.bench.turns import Contender
from vbnet.sharedmem import Schema, StatePage

__all__ = ["state"]

_VALUE_BYTES: Final = 32
_SCHEMA: Final = "x:f64 y:f64 t:u64 mode:u64"
_CALLS_A_LOOK: Final = 256
_PUBLISH_NS: Final = AtMost(30)
_SAMPLE_NS: Final = AtMost(60)
_TIMES_ICEORYX: Final = AtLeast(3.0)
_VBNET: Final = "vbnet"
_ICEORYX: Final = "iceoryx2 blackboard"
_LOCKED: Final = "shared ctypes under a lock"

Call = Callable[[], object]


def state(context: Context) -> Iterator[Row]:
    """Publish and sample the latest value, natively and from Python beside iceoryx2's blackboard."""
    yield from _native(context)
    yield from _python(context)


def _native(context: Context) -> Iterator[Row]:
    windows, cores = context.pace.native(), context.cores.pair
    cases: list[tuple[str, str, Callable[[], Sequence[float]], Wanted | None]] = []
    for clock, wanted in (("given", _PUBLISH_NS), ("asked", None)):
        measure = functools.partial(bench_state_publish, _VALUE_BYTES, clock == "asked", cores, windows)
        cases.append(("publish", f"moment {clock}", measure, wanted))
    for traffic, pause, most in (
        ("record at rest", None, _SAMPLE_NS),
        ("published now and then", 200, None),
        ("published without rest", 0, None),
    ):
        measure = functools.partial(bench_state_sample, _VALUE_BYTES, pause, cores, windows)
        cases.append(("sample", traffic, measure, most))
    for what, how, take, limit in cases:
        outcome = context.compete([Contender(_VBNET, take)])
        yield Row.of(
            "state",
            {"what": what, "how": how, "value_bytes": _VALUE_BYTES},
            "ns",
            outcome.summaries[_VBNET],
            outcome.placement,
            wanted=limit,
        )


def _python(context: Context) -> Iterator[Row]:
    missing = None
    with ExitStack() as stack:
        pairs = {_VBNET: _vbnet(stack), _LOCKED: _locked()}
        if importlib.util.find_spec("iceoryx2") is None:
            missing = f"{_ICEORYX} is not installed (PyPI: iceoryx2)"
        else:
            pairs[_ICEORYX] = _iceoryx()
        for index, what in enumerate(("publish", "sample")):
            outcome = context.compete(
                [
                    Contender(name, functools.partial(_calls_per_second, calls[index], context.pace))
                    for name, calls in pairs.items()
                ]
            )
            subject = outcome.summaries.pop(_VBNET)
            for name, samples in outcome.summaries.items():
                yield Row.of(
                    "state",
                    {"what": f"{what} from Python", "value_bytes": _VALUE_BYTES},
                    "objects/s",
                    subject,
                    outcome.placement,
                    baseline=(name, samples),
                    wanted=_TIMES_ICEORYX if name == _ICEORYX else None,
                    note=missing or "",
                )


def _calls_per_second(call: Call, pace: Pace) -> list[float]:
    rates: list[float] = []
    _rate(call, pace.warm_up_seconds)
    while len(rates) < pace.windows:
        rates.append(_rate(call, pace.window_seconds))
    return rates


def _rate(call: Call, seconds: float) -> float:
    begun = now = time.perf_counter()
    count = 0
    while now - begun < seconds:
        for _ in range(_CALLS_A_LOOK):
            call()
        count += _CALLS_A_LOOK
        now = time.perf_counter()
    return count / (now - begun) if count else 0.0


def _vbnet(stack: ExitStack) -> tuple[Call, Call]:
    page = StatePage.create(Schema(_SCHEMA))
    stack.callback(page.memory.close)
    publisher, sampler = page.publisher(), page.sampler()
    stack.callback(publisher.close)
    stack.callback(sampler.close)
    publisher.publish(1.0, 2.0, 3, 4)
    return functools.partial(publisher.publish, 1.0, 2.0, 3, 4), sampler.sample


class _Value(ctypes.Structure):
    """The same four fields, as ctypes has them."""

    _fields_ = (("x", ctypes.c_double), ("y", ctypes.c_double), ("t", ctypes.c_uint64), ("mode", ctypes.c_uint64))


def _locked() -> tuple[Call, Call]:
    """What ``multiprocessing.Value`` is made of, in memory that goes with the structure instead of with the process."""
    lock = multiprocessing.Lock()
    value = _Value.from_buffer(mmap.mmap(-1, ctypes.sizeof(_Value)))

    def publish() -> None:
        with lock:
            value.x, value.y, value.t, value.mode = 1.0, 2.0, 3, 4

    def sample() -> object:
        with lock:
            return value.x, value.y, value.t, value.mode

    return publish, sample


def _iceoryx() -> tuple[Call, Call]:
    """One entry of a blackboard; a sample is decoded into the structure, whose fields are then read."""
    import iceoryx2  # noqa: PLC0415 - a peer that need not be installed

    iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
    node = iceoryx2.NodeBuilder.new().create(iceoryx2.ServiceType.Ipc)
    key = ctypes.c_uint64(1)
    builder = node.service_builder(iceoryx2.ServiceName.new(f"vbnet-bench-{uuid.uuid4().hex}"))
    service = builder.blackboard_creator(ctypes.c_uint64).add(key, _Value()).create()
    writing = service.writer_builder().create().entry(key, _Value)
    reading = service.reader_builder().create().entry(key, _Value)

    def publish() -> None:
        writing.update_with_copy(_Value(1.0, 2.0, 3, 4))

    def sample() -> object:
        value = reading.get().decode_as(_Value)
        return value.x, value.y, value.t, value.mode

    return publish, sample

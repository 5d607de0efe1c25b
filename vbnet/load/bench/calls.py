"""Calls of a device by a Python guest: through memory, and as a message, to a host in a process of its own.

The device is an echo, whose handler is Python, too: what is compared is how a call gets there and back. The message is
awaited on the guest's own loop, which is the fastest it can be made.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from vbnet.bus.loopthread import LoopThread
from vbnet.bus.operator import SyncOperator
from vbnet.bus.rundir import RunDir
from vbnet.devices.echo.wire import EchoFunction
from vbnet.guestnode.node import GuestNode
from vbnet.hostnode.node import HostNode, HostOptions
from vbnet.load.bench.context import Context
from vbnet.load.bench.row import Row
from vbnet.load.bench.side import Side
from vbnet.load.bench.summary import AtMost
from vbnet.load.bench.turns import Contender

__all__ = ["CallGuest", "CallHost", "fastcall_python"]

_BUS: Final = "bench"
_CALL_SECONDS: Final = 60.0
_DATA_BYTES: Final = 8
_MESSAGE: Final = "message"
_SHARE: Final = 0.5
"""A call through memory should take half as long as a message, at most."""


class CallHost:
    """The host's side: an echo and a fastcall device on one bus (runs in a process of its own).

    Args:
        run_dir: of the host node.
    """

    def __init__(self, run_dir: str) -> None:
        self._loop = LoopThread("bench-host")
        self._host = self._loop.run(_started(RunDir(Path(run_dir))))
        with SyncOperator(RunDir(Path(run_dir))) as operator:
            operator.bus_create(_BUS)
            for kind in ("echo", "fastcall"):
                operator.device_create(kind, kind)
                operator.device_plug(kind, _BUS)

    def close(self) -> None:
        """End the host."""
        self._loop.run(self._host.stop())
        self._loop.close()


async def _started(run_dir: RunDir) -> HostNode:
    host = HostNode(HostOptions(run_dir=run_dir))
    await host.start()
    return host


class CallGuest:
    """The guest's side (runs in a process of its own).

    Args:
        run_dir: of the host node.
    """

    def __init__(self, run_dir: str) -> None:
        self._loop = LoopThread("bench-guest")
        self._node = self._loop.run(GuestNode.connect(run_dir, "caller"))
        session = self._loop.run(self._node.join("caller", _BUS))
        self._echo = self._loop.run(self._loop.run(session.wait_device("echo0")).open())

    def fastcall_ns(self, windows: tuple[float, float, int]) -> list[float]:
        """Nanoseconds a call through memory, one sample a window."""
        return _measured(windows, lambda: self._echo.fastcall(EchoFunction.ECHO, bytes(_DATA_BYTES)))

    def message_ns(self, windows: tuple[float, float, int]) -> list[float]:
        """Nanoseconds a call by message, one sample a window."""
        return self._loop.run(self._measure_messages(windows))

    async def _measure_messages(self, windows: tuple[float, float, int]) -> list[float]:
        warm_up, window, count = windows
        samples = []
        for seconds in (warm_up, *[window] * count):
            calls, start = 0, time.perf_counter_ns()
            while (spent := time.perf_counter_ns() - start) < seconds * 1e9 or not calls:
                await self._echo.call(EchoFunction.ECHO, bytes(_DATA_BYTES))
                calls += 1
            samples.append(spent / calls)
        return samples[1:]

    def close(self) -> None:
        """Leave."""
        self._loop.run(self._node.close())
        self._loop.close()


def _measured(windows: tuple[float, float, int], call: Callable[[], object]) -> list[float]:
    warm_up, window, count = windows
    samples = []
    for seconds in (warm_up, *[window] * count):
        calls, start = 0, time.perf_counter_ns()
        while (spent := time.perf_counter_ns() - start) < seconds * 1e9 or not calls:
            call()
            calls += 1
        samples.append(spent / calls)
    return samples[1:]


def fastcall_python(context: Context) -> Iterator[Row]:
    """Hold a Python guest's calls through memory against its calls by message."""
    pace = context.pace
    windows = (pace.warm_up_seconds, pace.window_seconds, pace.windows)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vbnet-"))
        params = {"run_dir": str(Path(folder) / "node")}
        host = stack.enter_context(Side(f"{__name__}:CallHost", context.cores.far, params))
        guest = stack.enter_context(Side(f"{__name__}:CallGuest", context.cores.near, params))
        stack.enter_context(context.helpers([host.pid, guest.pid]))

        def reading(method: str) -> Sequence[float]:
            samples: list[float] = guest.call(method, _CALL_SECONDS, windows=windows)
            return samples

        outcome = context.compete(
            [
                Contender("vbnet", functools.partial(reading, "fastcall_ns")),
                Contender(_MESSAGE, functools.partial(reading, "message_ns")),
            ]
        )
    yield Row.of(
        "fastcall.python",
        {"data_bytes": _DATA_BYTES},
        "ns",
        outcome.summaries["vbnet"],
        outcome.placement,
        baseline=(_MESSAGE, outcome.summaries[_MESSAGE]),
        wanted=AtMost(_SHARE),
    )

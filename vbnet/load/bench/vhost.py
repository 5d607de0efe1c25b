"""Benches of vhost-user ports: a DPDK application with two cards on a switch, beside the same on DPDK's own vhost.

```text
   near core: testpmd, virtio-user 0 and 1, io     far core, in turns: vbnet, a switch with two ports, one worker
              in by one card, out by the other                         testpmd, net_vhost 0 and 1, io
```

Guest, rings, frames and how many of them go round are the same; so is what the guest counts. DPDK's host looks at no
address: it hands what one card sends to the other.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from vbnet._native import CounterFile, Fabric
from vbnet.load.bench.context import Context
from vbnet.load.bench.pace import Pace
from vbnet.load.bench.peers import testpmd
from vbnet.load.bench.row import Row
from vbnet.load.bench.side import Side
from vbnet.load.bench.summary import AtLeast, AtMost
from vbnet.load.bench.turns import Contender, Outcome

__all__ = ["Listener", "rtt", "vhost"]

_SWITCH: Final = "bench"
_COUNTER_BYTES: Final = 4 << 20
_RATE_SHARE: Final = 1.0
_ROUND_TRIP_SHARE: Final = 1.1
_Measure = Callable[[testpmd.VhostPair, Pace], Sequence[float]]


class Listener:
    """A host with two vhost-user ports on a switch (runs in a process of its own).

    Args:
        folder: where their sockets are: ``0`` and ``1``.
    """

    def __init__(self, folder: str) -> None:
        self._fabric = Fabric(CounterFile.create(None, _COUNTER_BYTES), 1)
        self._fabric.switch_create(_SWITCH)
        for card in range(2):
            self._fabric.port_add_vhost_user(_SWITCH, f"card{card}", Path(folder, str(card)))

    def close(self) -> None:
        """End the worker."""
        self._fabric.close()


def _beside(context: Context, frame_bytes: int, measure: _Measure, *, is_packed: bool) -> tuple[Outcome, str]:
    """Measure vbnet and DPDK in turns; what DPDK is called."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vbnet-bench-")))
        host = stack.enter_context(Side(f"{__name__}:Listener", context.cores.far, {"folder": str(folder)}))
        stack.enter_context(context.helpers([host.pid]))
        sockets = (folder / "0", folder / "1")
        pairs = [
            stack.enter_context(testpmd.VhostPair(context.cores, frame_bytes, is_packed=is_packed, sockets=wanted))
            for wanted in (sockets, None)
        ]
        for pair in pairs:
            stack.enter_context(context.helpers(pair.pids))
        contenders = [Contender(pair.label, functools.partial(measure, pair, context.pace)) for pair in pairs]
        return context.compete(contenders), pairs[-1].label


def _rows(context: Context, name: str, unit: str, wanted: AtLeast | AtMost, measure: _Measure) -> Iterator[Row]:
    missing = testpmd.why_not_installed()
    if missing is not None:
        # Nobody to speak to: there is no figure without a front end.
        return
    for frame_bytes in (64,) if context.is_quick else (64, 1500):
        for is_packed in (False, True):
            outcome, peer = _beside(context, frame_bytes, measure, is_packed=is_packed)
            yield Row.of(
                name,
                {"frame_bytes": frame_bytes, "queues": "packed" if is_packed else "split"},
                unit,
                outcome.summaries["vbnet"],
                outcome.placement,
                baseline=(peer, outcome.summaries[peer]),
                wanted=wanted,
            )


def vhost(context: Context) -> Iterator[Row]:
    """Frames of a DPDK application from one vhost-user port to another, against DPDK's own vhost."""
    measure = testpmd.VhostPair.frames_per_second
    yield from _rows(context, "vhost", "frames/s", AtLeast(_RATE_SHARE), measure)


def rtt(context: Context) -> Iterator[Row]:
    """One frame of a DPDK application from one vhost-user port to another, against DPDK's own vhost."""
    yield from _rows(context, "vhost.rtt", "ns", AtMost(_ROUND_TRIP_SHARE), testpmd.VhostPair.round_trip_ns)

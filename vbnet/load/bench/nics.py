"""Models of network cards against each other: the same guest code and the same switch, in turns.

```text
   guest process (near core)                                    host process (far core)
   sender of one guest ── rings, or queues and traps ──► worker: switch ──► receiver of another guest of the process
```

One thread runs both guests natively: it sends a batch and receives what came, or sends one frame and sleeps until it is
there. Beside the rate each row tells what a frame cost in doorbells, wakeups and traps, from the host's own counters.
Source: VBUS's claim that a paravirtual card is cheap because it seldom leaves the guest.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import vbnet
from vbnet._native import PORT_COUNTERS, VIRTIO_COUNTERS, BenchExchange, BenchWindows
from vbnet.bus.kinds import discover
from vbnet.bus.loopthread import LoopThread
from vbnet.bus.operator import SyncOperator
from vbnet.bus.rundir import RunDir
from vbnet.hostnode.node import HostNode, HostOptions
from vbnet.hostnode.process import native_fabric
from vbnet.load.bench.context import Context
from vbnet.load.bench.row import Row
from vbnet.load.bench.side import Side
from vbnet.load.bench.turns import Contender
from vbnet.sharedmem import read_blocks

__all__ = ["NicGuests", "NicHost", "virtio_net"]

_CALL_SECONDS: Final = 60.0
_RAM_BYTES: Final = 8 << 20
_BATCH: Final = 32
_UNDER_WAY: Final = 128
_SENDER, _RECEIVER = "02:00:00:00:00:01", "02:00:00:00:00:02"


@dataclass(frozen=True, slots=True)
class _Card:
    """A card that is measured: a model, and what its traps cost on top.

    Args:
        name: of the contender.
        model: of the lab file.
        trap_cost_ns: on top.
    """

    name: str
    model: str
    trap_cost_ns: int = 0


_CARDS: Final = (
    _Card("venet", "venet"),
    _Card("virtio-net", "virtio-net"),
    _Card("virtio-net-mmio", "virtio-net-mmio"),
    _Card("virtio-net-pci", "virtio-net-pci"),
    _Card("virtio-net-pci+2us", "virtio-net-pci", 2000),
)
_WORKS: Final = (("flood", 64), ("flood", 1514), ("asleep", 64))
_COUNTED: Final = ("doorbells", "wakeups", "traps")


class NicHost:
    """The host's side: a switch and two cards for each contender (runs in a process of its own).

    Args:
        run_dir: of the host node.
    """

    def __init__(self, run_dir: str) -> None:
        place = RunDir(Path(run_dir))
        place.create()
        self._loop = LoopThread("bench-host")
        self._host = self._loop.run(_started(place))
        models = discover(with_entry_points=False).nics
        with SyncOperator(place) as operator:
            for number, card in enumerate(_CARDS):
                model = models[card.model]
                operator.switch_create(f"lan{number}")
                for end, mac in (("tx", _SENDER), ("rx", _RECEIVER)):
                    name = f"c{number}{end}"
                    attributes = {"switch": f"lan{number}", "mac": mac, **model.attributes}
                    if card.trap_cost_ns:
                        attributes["trap_cost_ns"] = str(card.trap_cost_ns)
                    operator.bus_create(name)
                    if model.has_traps:
                        operator.device_create(f"{name}.fast0", "fastcall")
                        operator.device_plug(f"{name}.fast0", name)
                    operator.device_create(f"{name}.eth0", model.device_class, attributes)
                    operator.device_plug(f"{name}.eth0", name)

    def close(self) -> None:
        """End the host."""
        self._loop.run(self._host.stop())
        self._loop.close()


async def _started(run_dir: RunDir) -> HostNode:
    host = HostNode(HostOptions(run_dir=run_dir), fabric=native_fabric(run_dir, 1))
    await host.start()
    return host


class NicGuests:
    """The guests' side: two guests for each contender (runs in a process of its own).

    Args:
        run_dir: of the host node.
    """

    def __init__(self, run_dir: str) -> None:
        self._counters = RunDir(Path(run_dir)).counters / "host.counters"
        self._guests: list[vbnet.Guest] = []
        self._exchanges: list[BenchExchange] = []
        for number in range(len(_CARDS)):
            pair = []
            for end in ("tx", "rx"):
                guest = vbnet.Guest(f"c{number}{end}", f"c{number}{end}", address=run_dir, ram_bytes=_RAM_BYTES)
                self._guests.append(guest)
                pair.append(guest.nic("eth0"))
            self._exchanges.append(BenchExchange(*pair))

    def samples(self, number: int, work: str, frame_bytes: int, windows: tuple[float, float, int]) -> list[float]:
        """Frames a second (``flood``), or nanoseconds a frame (``asleep``), one sample a window.

        Args:
            number: of the contender.
            work: ``flood`` or ``asleep``.
            frame_bytes: of a frame.
            windows: seconds to warm up, seconds of a window, and how many.
        """
        exchange, content = self._exchanges[number], _frame(frame_bytes)
        if work == "asleep":
            return exchange.round_trip_ns(content, BenchWindows(*windows), is_asleep=True)
        return exchange.frames_per_second(content, BenchWindows(*windows), batch=_BATCH, under_way=_UNDER_WAY)

    def counts(self, number: int) -> list[int]:
        """Frames so far, and the doorbells, wakeups and traps of both cards, as the host counted them."""
        frames = doorbells = wakeups = traps = 0
        for block in read_blocks(self._counters):
            if not block.labels.get("device", "").startswith(f"c{number}"):
                continue
            if block.kind == "port":
                counted: dict[str, Any] = dict(zip(PORT_COUNTERS, block.values, strict=True))
                frames += counted["transmit_frames"]
                doorbells += counted["kicks"] + counted["calls_rung"]
                wakeups += counted["wakeups"] + counted["calls_rung"]
            elif block.kind == "virtio":
                traps += dict(zip(VIRTIO_COUNTERS, block.values, strict=False))["traps"]
        return [frames, doorbells, wakeups, traps]

    def close(self) -> None:
        """Leave."""
        self._exchanges.clear()
        for guest in self._guests:
            guest.close()


def _frame(frame_bytes: int) -> bytes:
    macs = [bytes.fromhex(mac.replace(":", "")) for mac in (_RECEIVER, _SENDER)]
    return (macs[0] + macs[1] + b"\x88\xb5").ljust(frame_bytes, b"\xa5")


def virtio_net(context: Context) -> Iterator[Row]:
    """Hold virtio network cards, over each transport, against a venet: same guest code, same switch."""
    pace = context.pace
    windows = (pace.warm_up_seconds, pace.window_seconds, pace.windows)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="vbnet-")))
        params = {"run_dir": str(folder / "node")}
        host = stack.enter_context(Side(f"{__name__}:NicHost", context.cores.far, params))
        guests = stack.enter_context(Side(f"{__name__}:NicGuests", context.cores.near, params))
        stack.enter_context(context.helpers([host.pid, guests.pid]))
        for work, frame_bytes in _WORKS:
            yield from _rows(context, guests, (work, frame_bytes), windows)


def _rows(context: Context, guests: Side, work: tuple[str, int], windows: tuple[float, float, int]) -> Iterator[Row]:
    name, frame_bytes = work

    def reading(number: int) -> Sequence[float]:
        samples: list[float] = guests.call(
            "samples", _CALL_SECONDS, number=number, work=name, frame_bytes=frame_bytes, windows=windows
        )
        return samples

    numbers = range(len(_CARDS))
    before = [guests.call("counts", _CALL_SECONDS, number=number) for number in numbers]
    outcome = context.compete(
        [Contender(_CARDS[number].name, functools.partial(reading, number)) for number in numbers]
    )
    for number, card in enumerate(_CARDS):
        after = guests.call("counts", _CALL_SECONDS, number=number)
        frames, *counts = (new - old for new, old in zip(after, before[number], strict=True))
        told = (f"{count / max(frames, 1):.2g} {what}" for what, count in zip(_COUNTED, counts, strict=True))
        yield Row.of(
            "virtio-net",
            {"card": card.name, "work": name, "frame_bytes": frame_bytes},
            "ns" if name == "asleep" else "frames/s",
            outcome.summaries[card.name],
            outcome.placement,
            baseline=("venet", outcome.summaries["venet"]),
            note=f"a frame: {', '.join(told)}",
        )

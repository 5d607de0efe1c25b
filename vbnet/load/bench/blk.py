"""Disks over each transport, beside plain ``pread`` and ``pwrite`` of the same file, in turns.

```text
   guest process (near core)                         host process (far core)
   Disk.read_at, write_at ── queue, signal or trap ──► the disk's thread ── preadv, pwritev ──► file
   os.pread, os.pwrite ─────────────────────────────────────────────────────────────────────►  the same file
```

The file is in the page cache: what is measured is the way there and back. The same guest code and the same disk are
behind every transport; over ``mmio`` and ``pci`` each register access is a fastcall, as a trap would be.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import vbnet
from vbnet.bus.loopthread import LoopThread
from vbnet.bus.operator import SyncOperator
from vbnet.bus.rundir import RunDir
from vbnet.devices.virtio.driver import Disk, DiskFile
from vbnet.devices.virtio.wire import TRANSPORTS
from vbnet.hostnode.node import HostNode, HostOptions
from vbnet.load.bench.context import Context
from vbnet.load.bench.row import Row
from vbnet.load.bench.side import Side
from vbnet.load.bench.turns import Contender

__all__ = ["BlkGuest", "BlkHost", "blk"]

_BUS: Final = "bench"
_CALL_SECONDS: Final = 60.0
_FILE_BYTES: Final = 32 << 20
_RAM_BYTES: Final = 16 << 20
_PLAIN: Final = "plain"
_STEP: Final = 7919
"""Blocks between one random place and the next: a prime, so that every block has its turn."""


class BlkHost:
    """The host's side: a disk of one file for each transport, and a fastcall device (runs in a process of its own).

    Args:
        run_dir: of the host node.
        image: the file.
    """

    def __init__(self, run_dir: str, image: str) -> None:
        self._loop = LoopThread("bench-host")
        self._host = self._loop.run(_started(RunDir(Path(run_dir))))
        file = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        with SyncOperator(RunDir(Path(run_dir))) as operator:
            operator.bus_create(_BUS)
            operator.device_create("fastcall", "fastcall")
            operator.device_plug("fastcall", _BUS)
            for transport in TRANSPORTS:
                operator.device_create(transport, "virtio-blk", {"transport": transport})
                operator.device_insert(transport, file, image)
                operator.device_plug(transport, _BUS)
        os.close(file)

    def close(self) -> None:
        """End the host."""
        self._loop.run(self._host.stop())
        self._loop.close()


async def _started(run_dir: RunDir) -> HostNode:
    host = HostNode(HostOptions(run_dir=run_dir))
    await host.start()
    return host


class BlkGuest:
    """The guest's side (runs in a process of its own).

    Args:
        run_dir: of the host node.
        image: the file, for what is done to it without a disk.
    """

    def __init__(self, run_dir: str, image: str) -> None:
        self._guest = vbnet.Guest("reader", _BUS, address=run_dir, ram_bytes=_RAM_BYTES)
        self._file = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        self._disks: dict[str, Disk] = {}
        self._requests = dict.fromkeys((*TRANSPORTS, _PLAIN), 0)
        for transport in TRANSPORTS:
            found = self._guest.disk(transport)
            if isinstance(found, DiskFile):
                self._disks[transport] = found.disk

    def ns(self, way: str, work: str, block_bytes: int, windows: tuple[float, float, int]) -> list[float]:
        """Nanoseconds a request, one sample a window.

        Args:
            way: a transport, or ``plain``.
            work: ``read`` or ``write``, at random; ``sequential``: reads, one behind the other.
            block_bytes: of a request.
            windows: seconds to warm up, seconds of a window, and how many.
        """
        blocks = _FILE_BYTES // block_bytes
        step = 1 if work == "sequential" else _STEP
        request = self._request(way, work, block_bytes)
        warm_up, window, count = windows
        samples, place = [], 0
        for seconds in (warm_up, *[window] * count):
            done, start = 0, time.perf_counter_ns()
            while (spent := time.perf_counter_ns() - start) < seconds * 1e9 or not done:
                request(place * block_bytes)
                place = (place + step) % blocks
                done += 1
            samples.append(spent / done)
            self._requests[way] += done
        return samples[1:]

    def _request(self, way: str, work: str, block_bytes: int) -> Callable[[int], object]:
        data = bytes(block_bytes)
        buffer = bytearray(block_bytes)
        if way == _PLAIN:
            if work == "write":
                return lambda offset: os.pwrite(self._file, data, offset)
            return lambda offset: os.preadv(self._file, [buffer], offset)
        disk = self._disks[way]
        if work == "write":
            return lambda offset: disk.write_at(offset, data)
        return lambda offset: disk.read_into(offset, buffer)

    def tally(self, way: str) -> list[int]:
        """Requests of a transport so far, then its register accesses, kicks, doorbells rung and sleeps."""
        return [self._requests[way], *self._disks[way].tally()]

    def close(self) -> None:
        """Leave."""
        os.close(self._file)
        self._guest.close()


@dataclass(frozen=True, slots=True)
class _Work:
    """What is done to the disks.

    Args:
        name: ``read``, ``write`` or ``sequential``.
        block_bytes: of a request.
    """

    name: str
    block_bytes: int


_WORKS: Final = (_Work("read", 4096), _Work("write", 4096), _Work("sequential", 1 << 20))
_COUNTED: Final = ("register accesses", "kicks", "doorbells", "sleeps")


def blk(context: Context) -> Iterator[Row]:
    """Hold a disk's requests, over each transport, against plain reads and writes of the same file."""
    pace = context.pace
    windows = (pace.warm_up_seconds, pace.window_seconds, pace.windows)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vbnet-")))
        image = folder / "disk.img"
        image.write_bytes(bytes(_FILE_BYTES))
        params = {"run_dir": str(folder / "node"), "image": str(image)}
        host = stack.enter_context(Side(f"{__name__}:BlkHost", context.cores.far, params))
        guest = stack.enter_context(Side(f"{__name__}:BlkGuest", context.cores.near, params))
        stack.enter_context(context.helpers([host.pid, guest.pid]))
        for work in _WORKS:
            yield from _rows(context, guest, work, windows)


def _rows(context: Context, guest: Side, work: _Work, windows: tuple[float, float, int]) -> Iterator[Row]:
    def reading(way: str) -> Sequence[float]:
        samples: list[float] = guest.call(
            "ns", _CALL_SECONDS, way=way, work=work.name, block_bytes=work.block_bytes, windows=windows
        )
        return samples

    before = {way: guest.call("tally", _CALL_SECONDS, way=way) for way in TRANSPORTS}
    ways = (*TRANSPORTS, _PLAIN)
    outcome = context.compete([Contender(way, functools.partial(reading, way)) for way in ways])
    for way in TRANSPORTS:
        after = guest.call("tally", _CALL_SECONDS, way=way)
        requests, *counts = (new - old for new, old in zip(after, before[way], strict=True))
        told = (f"{count / max(requests, 1):.2g} {name}" for name, count in zip(_COUNTED, counts, strict=True))
        yield Row.of(
            "blk",
            {"transport": way, "work": work.name, "block_bytes": work.block_bytes},
            "ns",
            outcome.summaries[way],
            outcome.placement,
            baseline=("plain file", outcome.summaries[_PLAIN]),
            note=f"a request: {', '.join(told)}",
        )

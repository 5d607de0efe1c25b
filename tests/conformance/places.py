"""Where a conformance test finds its host: in the test's own process, or in a process of its own.

The guest is a guest node of the test's process in both cases, with its own connection, descriptors and memory; openers
that a test kills are processes in both cases.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.support.processes import HostProcess, warm_up
from tests.support.programs import make_fabric
from tests.support.waiting import PATIENCE
from vbnet.bus import messages
from vbnet.bus.kinds import Catalogue, discover, load
from vbnet.bus.loopthread import LoopThread
from vbnet.bus.operator import SyncOperator
from vbnet.bus.rundir import RunDir
from vbnet.devices.echo.driver import CellDriver
from vbnet.errors import VbnetError
from vbnet.guestnode.node import EventStream, GuestNode, GuestSession
from vbnet.guestnode.proxy import ProxyDevice
from vbnet.hostnode.device import Attribute, Device, DeviceClass, HostServices, Interface
from vbnet.hostnode.node import HostNode, HostOptions
from vbnet.testing import FakeFabric, ListLog, ManualClock

__all__ = ["CATALOGUE", "Facts", "Place", "Seat", "in_process", "separate"]

CATALOGUE: Catalogue = discover()
SWITCH = "conformance"
"""Whatever class has an attribute ``switch`` is joined to the switch of this name."""

T = TypeVar("T")


class Facts:
    """What the author of a class declared, found out without a host: the expected side of every test.

    Attributes:
        attributes: by name. interfaces: by name, as one plug shows them.
    """

    def __init__(self, class_name: str) -> None:
        made = load(CATALOGUE.classes[class_name])
        assert isinstance(made, type)
        assert issubclass(made, DeviceClass)
        self.device_class: DeviceClass = made()
        fabric = FakeFabric()
        services = HostServices(ManualClock(), ListLog(), lambda *_args, **_fields: None, fabric)
        device: Device = self.device_class.create(services, "facts.if0")
        table = device.attributes
        self.attributes: dict[str, Attribute[Any]] = {name: table.declaration(name) for name in table.texts()}
        self.interfaces: dict[str, Interface] = {shown.name: shown for shown in device.plug("facts")}
        device.unplug("facts")
        device.release()
        fabric.close()


class Place:
    """A host with its operator, and the guests a test seats around it."""

    def __init__(self, run_dir: RunDir, host_pid: int) -> None:
        self.run_dir, self.host_pid = run_dir, host_pid
        self.operator = SyncOperator(run_dir, deadline_s=PATIENCE)
        self.operator.switch_create(SWITCH)
        self._numbers = itertools.count(1)

    def name(self, word: str) -> str:
        """A name nobody had before."""
        return f"{word}{next(self._numbers)}"

    @contextmanager
    def bus(self) -> Iterator[str]:
        """A bus, removed afterwards with everything on it."""
        name = self.name("bus")
        self.operator.bus_create(name)
        yield name
        self.operator.bus_delete(name, force=True)

    @contextmanager
    def device(self, class_name: str | None) -> Iterator[str]:
        """A device of this class, or without one, deleted afterwards; the last part of its name is that of Facts."""
        name = self.name("device") + ".if0"
        self.operator.device_create(name)
        if class_name is not None:
            self.operator.device_set(name, "type", class_name)
            if "switch" in self.operator.device_get(name).attributes:
                self.operator.device_set(name, "switch", SWITCH)
        yield name
        with suppress(VbnetError):
            self.operator.device_delete(name, force=True)

    @contextmanager
    def seat(self, bus: str) -> Iterator[Seat]:
        """A guest on a bus."""
        with Seat(self.run_dir, self.name("guest"), bus) as seat:
            yield seat

    def ring_once(self) -> None:
        """Have a device ring: what the host makes for its first ring stays, and is no leak of a test."""
        with self.bus() as bus, self.device("echo") as device:
            self.operator.device_plug(device, bus)
            with self.seat(bus) as seat:
                shown = next(shown for shown in seat.session.devices if shown.abi_type == CellDriver.abi_type)
                cell = seat.run(CellDriver().probe(shown))
                seat.run(cell.reverse())
                seat.run(cell.remove())

    def close(self) -> None:
        """The operator hangs up."""
        self.operator.close()


class Seat:
    """A guest whose every verb a test may call, lawful or not; a context manager.

    Attributes:
        session: the guest.
    """

    RAM_BYTES = 1 << 20

    def __init__(self, run_dir: RunDir, name: str, bus: str) -> None:
        self._loop = LoopThread(name)
        self._where = run_dir, name, bus

    def __enter__(self) -> Self:
        run_dir, name, bus = self._where
        self.node = self.run(GuestNode.connect(run_dir, name, deadline_s=PATIENCE))
        self.session: GuestSession = self.run(self.node.join(name, bus, ram_bytes=self.RAM_BYTES))
        self.stream: EventStream = self.run(self._listen())
        return self

    def __exit__(self, *_exc: object) -> None:
        self.run(self.node.close())
        self._loop.close()

    async def _listen(self) -> EventStream:
        return self.session.events()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of this guest."""
        return self._loop.run(work)

    def devices(self) -> list[ProxyDevice]:
        """What is on the bus."""

        async def look() -> list[ProxyDevice]:
            return self.session.devices

        return self.run(look())

    def open(self, device: ProxyDevice, version: int) -> int:
        """Open a device; give its handle."""
        return self.run(self.session.open_device(device.dev_id, version))

    def call(self, handle: int, function: int, data: bytes = b"") -> bytes:
        """Call a function of an open device."""
        return self.run(self.session.call_device(handle, function, data, None))

    def close_handle(self, handle: int) -> None:
        """Close a handle, which may be forged: a refusal is not hidden."""
        self.run(self.node.ask(self.session.sid, messages.Close(handle)))

    def next_event(self) -> object:
        """The next event of this guest."""

        async def wait() -> object:
            async with asyncio.timeout(PATIENCE):
                return await anext(self.stream)

        return self.run(wait())


@contextmanager
def _root() -> Iterator[RunDir]:
    root = Path(tempfile.mkdtemp(prefix="vb-"))
    yield RunDir.for_node("host", root / "run")
    shutil.rmtree(root, ignore_errors=True)


@contextmanager
def in_process() -> Iterator[Place]:
    """A host on a thread of the test's process."""
    warm_up()
    with _root() as run_dir:
        run_dir.create()
        loop = LoopThread("host")
        host = loop.run(_start(run_dir))
        place = Place(run_dir, os.getpid())
        place.ring_once()
        yield place
        place.close()
        loop.run(host.stop())
        loop.close()


async def _start(run_dir: RunDir) -> HostNode:
    host = HostNode(HostOptions(run_dir=run_dir, name="test"), fabric=make_fabric(run_dir), log=ListLog())
    await host.start()
    return host


@contextmanager
def separate() -> Iterator[Place]:
    """A host in a process of its own."""
    with _root() as run_dir, HostProcess(run_dir.path) as host:
        place = Place(run_dir, host.pid)
        place.ring_once()
        yield place
        place.close()

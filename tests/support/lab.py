"""A host node process and guests around it, for tests of what they do together.

The test's own process is a guest node of its own, as far as the host can tell: it has its connection, its RAM and its
NICs (``Station``). Where two guests must be two processes, the second one is a ``GuestProcess``. Names are numbered, so
that tests may share a host and never meet each other's guests.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import Queue
from typing import Any, Self, TypeVar

from tests.support.processes import GuestProcess, HostProcess
from tests.support.programs import COUNTERS
from tests.support.waiting import PATIENCE, eventually
from vbnet import Guest
from vbnet._native import PORT_COUNTERS, SWITCH_COUNTERS, read_counters
from vbnet.bus.limits import Limits
from vbnet.bus.loopthread import LoopThread
from vbnet.bus.operator import EventStream, Operator, SyncOperator
from vbnet.bus.rundir import RunDir
from vbnet.devices.venet.driver import VenetDriver, VenetNic
from vbnet.devices.venet.wire import Capability
from vbnet.devices.virtio_net.driver import VirtioNetDriver
from vbnet.errors import VbnetError

__all__ = ["BROADCAST", "ETHERTYPE", "EventTap", "Lab", "Net", "Station", "ethernet", "numbered", "on_loop"]

BROADCAST = b"\xff" * 6
ETHERTYPE = b"\x88\xb5"
"""For local experiments, by IEEE 802."""

T = TypeVar("T")


def on_loop(guest: Guest, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine where the guest's bus runs."""
    return guest._thread.run(work)


def ethernet(to: bytes, source: bytes, length: int, number: int = 0) -> bytes:
    """A frame of ``length`` bytes, 14 or more, whose payload starts with ``number`` and goes on recognisably."""
    head = number.to_bytes(8, "big")
    payload = (head + bytes((number + index) & 0xFF for index in range(length)))[: length - 14]
    return bytes(to) + bytes(source) + ETHERTYPE + payload


def numbered(frame: bytes) -> int:
    """The number in a frame."""
    return int.from_bytes(frame[14:22], "big")


class Lab:
    """One host process and its operator; a context manager.

    Args:
        root: folder of its run directory.
        limits: what it grants its guests.
    """

    def __init__(self, root: Path, limits: Limits | None = None) -> None:
        self.run_dir = RunDir.for_node("host", root)
        self._limits = limits
        self.numbers = itertools.count(1)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.host = self._stack.enter_context(HostProcess(self.run_dir.path, self._limits))
        self.operator = self._stack.enter_context(SyncOperator(self.run_dir, deadline_s=PATIENCE))
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def ports(self) -> dict[str, dict[str, Any]]:
        """Every port by its name."""
        return {port["name"]: port for port in self.operator.port_list()}

    def port_counters(self, port: str) -> dict[str, int]:
        """What was counted for a port, from the mapped file: nobody is asked."""
        return self._counters("port", PORT_COUNTERS, f"device={port}")

    def switch_counters(self, switch: str) -> dict[str, int]:
        """What was counted for a switch."""
        return self._counters("switch", SWITCH_COUNTERS, f"switch={switch}")

    def _counters(self, kind: str, names: list[str], label: str) -> dict[str, int]:
        for found, labels, _generation, values in read_counters(self.run_dir.counters / COUNTERS):
            if found == kind and label in labels.split(","):
                return dict(zip(names, values, strict=True))
        raise LookupError(f"no {kind} has {label}")

    @contextmanager
    def net(self) -> Iterator[Net]:
        """A switch and whatever a test joins to it; all of it is gone afterwards."""
        net = Net(self)
        try:
            yield net
        finally:
            net.close()


class Net:
    """One test's part of a lab: a switch, devices, guests. Made by ``Lab.net``."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.operator = lab.operator
        self.switch = f"lan{next(lab.numbers)}"
        self._stack = ExitStack()
        self._devices: list[str] = []
        self._buses: list[str] = []
        self.operator.switch_create(self.switch)

    def close(self) -> None:
        """Guests leave, devices and buses are deleted."""
        self._stack.close()
        for device in self._devices:
            with suppress(VbnetError):
                self.operator.device_delete(device, force=True)
        for bus in self._buses:
            with suppress(VbnetError):
                self.operator.bus_delete(bus, force=True)
        self.operator.switch_delete(self.switch)

    def name(self, word: str = "guest") -> str:
        """A name nobody had before."""
        return f"{word}{next(self.lab.numbers)}"

    def bus(self, name: str) -> str:
        """Make a bus."""
        self.operator.bus_create(name)
        self._buses.append(name)
        return name

    def device(self, name: str, kind: str = "venet", **attributes: object) -> str:
        """Make a device, joined to this net's switch unless it is its own peer."""
        texts = {key: str(value) for key, value in attributes.items()}
        if kind in {"venet", "virtio-net"}:
            texts.setdefault("switch", self.switch)
        self.operator.device_create(name, kind, texts)
        self._devices.append(name)
        return name

    def plug_nic(self, kind: str = "venet", **attributes: object) -> str:
        """A bus of a new name with a NIC ``eth0`` on it, and what traps go through; gives the name."""
        name = self.bus(self.name())
        if attributes.get("transport", "vbus") != "vbus":
            self.operator.device_plug(self.device(f"{name}.fast0", "fastcall"), name)
        self.operator.device_plug(self.device(f"{name}.eth0", kind, **attributes), name)
        return name

    def guest(self, name: str, ram_bytes: int = 8 << 20) -> Guest:
        """A guest of this process on the bus of its name."""
        guest = Guest(name, name, address=self.lab.run_dir, ram_bytes=ram_bytes, deadline_s=PATIENCE)
        self._stack.callback(guest.close)
        return guest

    def station(
        self,
        kind: str = "venet",
        slots: int | None = None,
        wants: bool | Capability | Collection[str] = False,
        **attributes: object,
    ) -> Station:
        """A guest of this process with a NIC that is up; ``wants``: the offloads its driver asks for."""
        return Station(self, self.guest(self.plug_nic(kind, **attributes)), slots, wants)

    def process(self, kind: str = "venet", **attributes: object) -> GuestProcess:
        """A guest process with a NIC that is up."""
        return self._stack.enter_context(GuestProcess(self.lab.run_dir.path, self.plug_nic(kind, **attributes)))

    def events(self, *topics: str) -> EventTap:
        """Events of the host from now on."""
        return self._stack.enter_context(EventTap(self.lab.run_dir, *topics))


class Station:
    """A guest with one NIC, in the test's process.

    Attributes:
        guest: of this process. nic: its NIC. port: its name on the host.
    """

    def __init__(
        self,
        net: Net,
        guest: Guest,
        slots: int | None = None,
        wants: bool | Capability | Collection[str] = False,
    ) -> None:
        self.net, self.guest = net, guest
        guest.register(VenetDriver(slots, offloads=wants))
        if not isinstance(wants, Capability):
            guest.register(VirtioNetDriver(slots, offloads=wants))
        self.nic: VenetNic = guest.nic("eth0", PATIENCE)
        self.mac = bytes(self.nic.mac)
        self.port = f"{guest.name}.eth0"

    @property
    def counters(self) -> dict[str, int]:
        """What the host counted for this NIC."""
        return self.net.lab.port_counters(self.port)

    def set(self, attribute: str, value: object) -> None:
        """Change an attribute of the device."""
        self.net.operator.device_set(self.port, attribute, str(value))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of this guest."""
        return on_loop(self.guest, work)

    def to(self, other: Station | GuestProcess | bytes, length: int = 64, number: int = 0) -> bytes:
        """A frame from here to another station."""
        return ethernet(other if isinstance(other, bytes) else other.mac, self.mac, length, number)

    def gather(self, count: int, patience: float = PATIENCE) -> list[bytes]:
        """Receive so many frames; fewer when none came for ``patience`` seconds."""
        frames: list[bytes] = []
        while len(frames) < count and (batch := self.nic.recv(count - len(frames), patience)):
            frames += batch
        return frames

    def wait_given(self, frames: int) -> None:
        """Wait until the host has given so many frames to this NIC in all."""
        eventually(lambda: self.counters["receive_frames"] >= frames, f"{frames} frames given to {self.port}")

    def wait_taken(self, frames: int) -> None:
        """Wait until the host has taken so many frames from this NIC in all."""
        eventually(lambda: self.counters["transmit_frames"] >= frames, f"{frames} frames taken from {self.port}")


class EventTap:
    """The host's events, for plain functions; a context manager. Listens when ``__enter__`` has returned."""

    def __init__(self, run_dir: RunDir, *topics: str) -> None:
        self._run_dir, self._topics = run_dir, topics
        self._queue: Queue[dict[str, Any]] = Queue()
        self._thread = LoopThread("event-tap")

    def __enter__(self) -> Self:
        self._thread.run(self._listen())
        return self

    def __exit__(self, *_exc: object) -> None:
        self._thread.run(self._operator.close())
        self._thread.close()

    async def _listen(self) -> None:
        self._operator = await Operator.connect(self._run_dir, deadline_s=PATIENCE)
        stream = self._operator.events("bus.created", *self._topics)
        # A subscription travels by itself; once a bus made here is heard of, it has arrived.
        for number in itertools.count():
            name = f"tap-{id(self):x}-{number}"
            await self._operator.bus_create(name)
            await self._operator.bus_delete(name)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(stream)
                    break
        self._task = asyncio.create_task(self._pump(stream))

    async def _pump(self, stream: EventStream) -> None:
        with suppress(VbnetError):
            async for event in stream:
                self._queue.put(event)

    def next(self, topic: str, **fields: object) -> dict[str, Any]:
        """The next event of a topic with these fields; others are passed over."""
        while True:
            event = self._queue.get(timeout=PATIENCE)
            if event["topic"] == topic and fields.items() <= event.items():
                return event

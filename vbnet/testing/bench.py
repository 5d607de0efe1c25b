"""Both halves of a device on a bench: no processes, no sockets, no host node.

    bench = HostBench(EchoClass())
    connection = bench.open("echo0")
    assert connection.call(0, b"hello") == b"hello"

    guest = GuestBench(HostBench(EchoClass()))
    echo = await EchoDriver().probe(guest.device("echo0"))
    assert await echo.echo(b"hello") == b"hello"

The bench keeps the promises the host makes to devices (versions, exclusivity, order of closing) and nothing more: it
does not check bounds and quotas.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vbnet.bus.limits import RAM_HEADER_BYTES
from vbnet.errors import (
    BusyError,
    DeadlineError,
    NotFoundError,
    PeerFault,
    PeerGone,
    UnsupportedError,
    UsageError,
    error_from_refusal,
)
from vbnet.guestnode.memory import Memory
from vbnet.guestnode.proxy import FastSlots, ProxyDevice, RegionSpec, SharedSignal
from vbnet.hostnode.device import (
    Connection,
    DeviceClass,
    HostServices,
    Interface,
    Opener,
    SharedRegion,
    SignalEnds,
)
from vbnet.hostnode.signals import SignalBook
from vbnet.testing.clock import ManualClock
from vbnet.testing.fabric import FakeFabric
from vbnet.testing.log import ListLog

if TYPE_CHECKING:
    from vbnet.sharedmem import Ram

__all__ = ["FakeOpener", "GuestBench", "HostBench"]


class FakeOpener(Opener):
    """An opener that remembers what the device told it.

    Attributes:
        links: every carrier change, oldest first.
        rings: every signal it was called by, oldest first.
        faults: every rule it was reported to have broken.
        gifts: descriptors by ticket, as the guest gave them.
        lends: descriptors by ticket, as the device lent them.
        handles: signals by the number the guest knows them by.
        signals: the bench's signals.
    """

    def __init__(
        self,
        guest: str = "guest",
        bus: str = "bus",
        *,
        dev_id: int = 1,
        is_remote: bool = False,
        ram: Ram | None = None,
        signals: SignalBook | None = None,
    ) -> None:
        self.guest = guest
        self.bus = bus
        self.pid = os.getpid()
        self.uid = os.getuid()
        self.dev_id = dev_id
        self.is_remote = is_remote
        self.ram = ram
        self.links: list[bool] = []
        self.rings: list[SignalEnds] = []
        self.faults: list[PeerFault] = []
        self.gifts: dict[int, int] = {}
        self.lends: dict[int, int] = {}
        self.handles: dict[int, SignalEnds] = {}
        self.signals = SignalBook() if signals is None else signals
        self._lines: dict[SignalEnds, int] = {}
        self._tickets = itertools.count(1)

    def take_fd(self, ticket: int) -> int:
        """Hand out a gift."""
        try:
            return self.gifts.pop(ticket)
        except KeyError:
            raise NotFoundError(f"nothing was given under ticket {ticket}", ticket=ticket) from None

    def lend_fd(self, fd: int) -> int:
        """Keep a copy for the guest to take; to another machine none can be lent."""
        if self.is_remote:
            raise UnsupportedError("descriptors cannot be lent to another machine", guest=self.guest)
        ticket = next(self._tickets)
        self.lends[ticket] = os.dup(fd)
        return ticket

    def link_state(self, *, is_up: bool) -> None:
        """Remember the carrier."""
        self.links.append(is_up)

    def ring(self, signal: SignalEnds) -> None:
        """Remember the ring, and ring at once: the guest on a bench blocks nobody but itself."""
        self.rings.append(signal)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(signal.call_fd, 1)

    def line(self, signal: SignalEnds) -> int:
        """A line of the bench's own table, which leads to the call eventfd."""
        if signal not in self._lines:
            number = self.signals.create(self.guest, f"signal/{next(self._tickets)}", device="device")
            self.signals.route_to_fd(number, signal.call_fd)
            self._lines[signal] = number
        return self._lines[signal]

    def end_signal(self, signal: SignalEnds) -> None:
        """A signal is closed: so are its line and its handle."""
        if signal in self._lines:
            self.signals.destroy(self._lines.pop(signal))
        self.handles = {handle: ends for handle, ends in self.handles.items() if ends is not signal}

    def signal_of(self, handle: int) -> SignalEnds:
        """The signal that the bench gave this handle."""
        try:
            return self.handles[handle]
        except KeyError:
            raise NotFoundError(f"there is no signal handle {handle}", handle=handle) from None

    def fault(self, fault: PeerFault) -> None:
        """Remember the fault."""
        self.faults.append(fault)


class HostBench:
    """One device of a class, plugged into one bus.

    Args:
        device_class: makes the device.
        attributes: set before it is plugged.
        bus: name of the bus.

    Attributes:
        clock, log, fabric, signals: what the device was lent.
        published: every event it published, as ``(topic, fields)``.
        device: the device.
        interfaces: what it shows, by name.
    """

    def __init__(
        self, device_class: DeviceClass, attributes: Mapping[str, str] | None = None, *, bus: str = "bus"
    ) -> None:
        self.clock = ManualClock()
        self.log = ListLog()
        self.fabric = FakeFabric()
        self.published: list[tuple[str, dict[str, object]]] = []
        self.signals = SignalBook(publish=self._publish)
        services = HostServices(self.clock, self.log, self._publish, self.fabric, signals=self.signals)
        self.device = device_class.create(services, "device")
        for name, text in (attributes or {}).items():
            self.device.attributes.set_text(name, text, is_open=False)
        self._bus = bus
        self.interfaces: dict[str, Interface] = {found.name: found for found in self.device.plug(bus)}
        self._opens: list[tuple[str, Connection]] = []

    def open(self, interface: str, version: int | None = None, opener: Opener | None = None) -> Connection:
        """Open an interface as the host does.

        Raises:
            UsageError: not this version. BusyError: exclusive and open.
        """
        found = self.interfaces[interface]
        wanted = found.versions[0] if version is None else version
        if wanted not in found.versions:
            raise UsageError(f"{found.abi_type} does not speak version {wanted}", got=wanted)
        if found.exclusive and any(name == interface for name, _ in self._opens):
            raise BusyError(f"{interface!r} is open")
        opener = FakeOpener(bus=self._bus, signals=self.signals) if opener is None else opener
        connection = found.connect(opener, wanted)
        self._opens.append((interface, connection))
        return connection

    def close(self, connection: Connection) -> None:
        """Close one open."""
        self._opens = [(name, opened) for name, opened in self._opens if opened is not connection]
        connection.close()

    def close_all(self) -> None:
        """Close every open."""
        for _, connection in list(self._opens):
            self.close(connection)

    def unplug(self) -> None:
        """Close every open, then take the device off its bus."""
        self.close_all()
        self.device.unplug(self._bus)
        self.interfaces.clear()
        self.signals.close()

    def _publish(self, topic: str, **fields: object) -> None:
        self.published.append((topic, fields))


class GuestBench:
    """A guest on the other side of a ``HostBench``: gives drivers their ProxyDevice.

    Args:
        host: the device to drive.
        ram_bytes: memory to make; 0 for none.
    """

    def __init__(self, host: HostBench, *, ram_bytes: int = 0) -> None:
        self._host = host
        self._ram: Ram | None = None
        self.memory = Memory(0, 0)
        if ram_bytes:
            from vbnet.sharedmem import Ram  # noqa: PLC0415 - benches without memory do not need the native module

            self._ram = Ram.create(ram_bytes)
            self.memory = Memory(RAM_HEADER_BYTES, self._ram.size)
        self.opener = FakeOpener(ram=self._ram, signals=host.signals)
        self._names = dict(enumerate(host.interfaces, start=1))
        self._handles = itertools.count(1)
        self._signal_handles = itertools.count(1)
        self._connections: dict[int, Connection] = {}
        self._signals: dict[int, list[SignalEnds]] = {}
        self.devices = [
            ProxyDevice(self, dev_id, host.interfaces[name].abi_type, name) for dev_id, name in self._names.items()
        ]

    @property
    def ram(self) -> Ram:
        """The guest's memory; raises UsageError when there is none."""
        if self._ram is None:
            raise UsageError("this bench has no memory; make it with ram_bytes")
        return self._ram

    def device(self, name: str) -> ProxyDevice:
        """The device that shows the interface ``name``."""
        return next(device for device in self.devices if device.name == name)

    def unplug(self) -> None:
        """Have the device leave the bus, as drivers see it."""
        for device in self.devices:
            device.void(PeerGone(f"device {device.name!r} left the bus"))
        self._connections.clear()
        self._host.close_all()
        self._close_signals()
        self._host.unplug()
        while self.opener.lends:
            os.close(self.opener.lends.popitem()[1])

    def close(self) -> None:
        """Close everything."""
        if self._host.interfaces:
            self.unplug()
        if self._ram is not None:
            self._ram.close()
            self._ram = None

    async def open_device(self, dev_id: int, version: int) -> int:
        """Open."""
        handle = next(self._handles)
        self._connections[handle] = self._host.open(self._names[dev_id], version, self.opener)
        return handle

    async def call_device(self, handle: int, function: int, data: bytes, deadline_s: float | None) -> bytes:
        """Call; the answer is there at once, so no deadline passes."""
        del deadline_s
        return self._connection(handle).call(function, data)

    async def fast_slots(self, handle: int, count: int) -> FastSlots | None:
        """None: calls of native code go through the bench, as all do."""
        del handle, count
        return None

    def fastcall_device(self, handle: int, function: int, data: bytes, deadline_s: float | None) -> bytes:
        """Call the fast handler, or else the device; in this very thread, so no deadline passes."""
        del deadline_s
        connection = self._connection(handle)
        fast = connection.fast
        if fast is None:
            return connection.call(function, data)
        if not isinstance(answer := fast(function, data), tuple):
            return bytes(answer)
        status, content = answer
        if status:
            raise error_from_refusal(errno.errorcode.get(status, "EIO"), content.decode(errors="replace"))
        return content

    async def share(self, handle: int, region: RegionSpec) -> SharedSignal | None:
        """Show a region."""
        connection = self._connection(handle)
        ends, place = None, None
        if region.signal_offset >= 0:
            place = region.signal_offset
            ends = SignalEnds(*(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2)))
            self._signals.setdefault(handle, []).append(ends)
        connection.shm(
            SharedRegion(
                region.id, self.ram, region.offset, region.length, region.flags, region.priority, 0, place, ends
            )
        )
        if ends is None:
            return None
        number = next(self._signal_handles)
        self.opener.handles[number] = ends
        return SharedSignal(number, os.dup(ends.kick_fd), os.dup(ends.call_fd))

    async def close_device(self, handle: int) -> None:
        """Close."""
        self._host.close(self._connections.pop(handle))
        self._close_signals(handle)

    async def give_fd(self, ticket: int, fd: int) -> None:
        """Put a copy of ``fd`` where the device can take it."""
        self.opener.gifts[ticket] = os.dup(fd)

    def new_ticket(self) -> int:
        """A ticket under which nothing was given yet."""
        return next(self._signal_handles)

    async def take_fd(self, ticket: int, deadline_s: float | None) -> int:
        """Take what the device lent; it is there at once, so no deadline passes but that of a ticket never given."""
        try:
            return self.opener.lends.pop(ticket)
        except KeyError:
            raise DeadlineError(f"nothing was lent under ticket {ticket}", deadline_s=deadline_s) from None

    def _connection(self, handle: int) -> Connection:
        try:
            return self._connections[handle]
        except KeyError:
            raise NotFoundError(f"{handle} is not open", handle=handle) from None

    def _close_signals(self, handle: int | None = None) -> None:
        for key in list(self._signals) if handle is None else [handle]:
            for ends in self._signals.pop(key, []):
                self.opener.end_signal(ends)
                os.close(ends.kick_fd)
                os.close(ends.call_fd)

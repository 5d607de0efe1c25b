"""The host half of the interrupt controller: takes a guest's levels into use and does with signals what it asks.

What may be done with whose signals is the business of ``vbnet.hostnode.signals``: a guest names its own lines, and
others' only by a grant. Everything a connection made (controller, outbox, bindings, named signals) goes with it.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from vbnet.devices.intc import wire
from vbnet.errors import BusyError, ExistsError, NotPermittedError, UnsupportedError, UsageError, VbnetError
from vbnet.hostnode.device import (
    Attribute,
    AttributeTable,
    Connection,
    Device,
    DeviceClass,
    HostServices,
    Interface,
    Opener,
    SharedRegion,
)
from vbnet.hostnode.signals import Vector
from vbnet.hostnode.values import flag, flag_text, within

if TYPE_CHECKING:
    from vbnet._native import FastHandler

__all__ = ["IntcClass"]

_SIGNALS_MAX: Final = 1 << 17


class IntcClass(DeviceClass):
    """Interrupt controllers: one device serves every guest on the buses it is plugged into."""

    name = "intc"
    abi_types = (wire.ABI_TYPE,)

    def create(self, services: HostServices, name: str) -> Device:
        """Make one."""
        return IntcDevice(services, name)


class ApicClass(IntcClass):
    """The same interface with emulated controllers: every acknowledge and every end is a call to the host."""

    name = "intc-apic"

    def create(self, services: HostServices, name: str) -> Device:
        """Make one."""
        return IntcDevice(services, name, is_trapped=True)


class IntcDevice(Device):
    """One interrupt controller device, shared by the guests of its buses; each has levels of its own."""

    def __init__(self, services: HostServices, name: str, *, is_trapped: bool = False) -> None:
        self.services = services
        self.name = name
        self.is_trapped = is_trapped
        self.connections: list[IntcConnection] = []
        self.attributes = AttributeTable(
            (
                Attribute(
                    "enabled",
                    "1: signals go through controllers; 0: each by its own eventfd",
                    parse=flag,
                    default=True,
                    format=flag_text,
                ),
                Attribute(
                    "vcpus", "most vCPUs of one guest, 1 to 64", within(1, wire.VCPUS_MAX), 8, is_locked_while_open=True
                ),
                Attribute("signals", "most signals one guest may name", within(0, _SIGNALS_MAX), 65_536),
            ),
            self._changed,
        )

    def plug(self, bus: str) -> Sequence[Interface]:
        """Show ``intc0`` on any number of buses."""
        del bus
        return [IntcInterface(self)]

    def _changed(self, name: str, value: object) -> None:
        if name == "enabled":
            for connection in self.connections:
                connection.switch(is_on=bool(value))


class IntcInterface(Interface):
    """``intc0``: any number of guests, each with a controller of its own."""

    name = "intc0"
    abi_type = wire.ABI_TYPE
    versions = (wire.VERSION,)
    exclusive = False

    def __init__(self, device: IntcDevice) -> None:
        self._device = device

    def connect(self, opener: Opener, version: int) -> Connection:
        """Let a guest of this machine in; levels are shared memory."""
        del version
        if opener.is_remote:
            raise UnsupportedError("an interrupt controller is shared memory, which needs the same machine as the host")
        if any(connection.guest == opener.guest for connection in self._device.connections):
            raise BusyError(f"guest {opener.guest!r} has an interrupt controller already", guest=opener.guest)
        return IntcConnection(self._device, opener)


class IntcConnection(Connection):
    """One guest's controller."""

    def __init__(self, device: IntcDevice, opener: Opener) -> None:
        self.guest = opener.guest
        self._device = device
        self._opener = opener
        self._signals = device.services.signals
        self._regions: dict[int, SharedRegion] = {}
        self._traps: FastHandler | None = None
        self._bound: dict[int, tuple[int, int, Vector]] = {}
        """By signal handle: the line, the eventfd it leads to otherwise, and the vector."""
        self._created: set[int] = set()
        device.connections.append(self)
        if device.is_trapped:
            self.fast = self._trap
        self._functions: dict[wire.Function, tuple[struct.Struct, bool, Callable[..., bytes | None]]] = {
            wire.Function.START: (wire.VCPUS, False, self._start),
            wire.Function.BIND: (wire.BIND, False, self._bind),
            wire.Function.UNBIND: (wire.LINE, False, self._unbind),
            wire.Function.CREATE: (wire.CREATE, True, self._create),
            wire.Function.DESTROY: (wire.LINE, False, self._destroy),
            wire.Function.ROUTE: (wire.ROUTE, False, self._route),
            wire.Function.PRIORITY: (wire.LINE_VALUE, False, self._set_priority),
            wire.Function.MASK: (wire.LINE_VALUE, False, self._mask),
            wire.Function.EVENTS: (wire.EVENTS, False, self._events),
            wire.Function.RAISE: (wire.LINE, False, lambda line: self._signals.raise_soon(line, self.guest)),
            wire.Function.GRANT: (wire.GRANT, True, self._grant),
            wire.Function.CONNECT: (wire.CONNECT, True, self._connect),
            wire.Function.DISCONNECT: (wire.PLACE, False, lambda place: self._signals.disconnect(self.guest, place)),
            wire.Function.EXPORT: (wire.LINE, False, self._export),
            wire.Function.DRIVE: (wire.DRIVE, False, self._drive),
            wire.Function.UNDRIVE: (
                wire.DRIVE,
                False,
                lambda line, source: self._signals.undrive(line, source, self.guest),
            ),
        }

    def shm(self, region: SharedRegion) -> None:
        """Take a level or the outbox; each once, each with a signal in its place."""
        is_level = region.id < self._device.attributes["vcpus"] * wire.PRIORITIES
        if not is_level and region.id != wire.OUTBOX:
            raise UsageError(
                f"no region {region.id}; levels are 0..{self._device.attributes['vcpus'] * wire.PRIORITIES - 1}, "
                f"the outbox is {wire.OUTBOX}",
                region=region.id,
            )
        if region.id in self._regions:
            raise ExistsError(f"region {region.id} was shared before; close the device to share it anew")
        signal = region.signal_at(wire.LEVEL_SIGNAL_OFFSET)
        if region.length != wire.LEVEL_BYTES:
            raise UsageError(
                f"a level has {wire.LEVEL_BYTES} bytes; got {region.length}", got=region.length, limit=wire.LEVEL_BYTES
            )
        if is_level and region.priority != region.id % wire.PRIORITIES:
            raise UsageError(
                f"region {region.id} is priority {region.id % wire.PRIORITIES}; got {region.priority}",
                got=region.priority,
            )
        if region.id == wire.OUTBOX:
            with self._opener.blamed():
                place = (region.offset, region.length)
                self._signals.attach_outbox(self.guest, region.ram, place, signal.kick_fd)
        self._regions[region.id] = region

    def call(self, function: int, data: bytes) -> bytes:
        """Do one of ``wire.Function``."""
        try:
            wanted = wire.Function(function)
        except ValueError:
            return super().call(function, data)
        if wanted in {wire.Function.ACKNOWLEDGE, wire.Function.END}:
            return self._trap(function, data)
        layout, has_name, work = self._functions[wanted]
        if len(data) < layout.size or (len(data) > layout.size and not has_name):
            raise UsageError(
                f"{wanted.name} takes {layout.size} bytes{' and a name' if has_name else ''}; got {len(data)}",
                got=len(data),
                limit=layout.size,
            )
        arguments: list[Any] = list(layout.unpack_from(data))
        if has_name:
            arguments.append(_name(data[layout.size :]))
        return work(*arguments) or b""

    def close(self) -> None:
        """Take everything this guest had made back, in reverse."""
        self._device.connections.remove(self)
        self._traps = None
        with contextlib.suppress(VbnetError):  # what one of these cannot do, the end of the guest's lines does
            for handle in list(self._bound):
                self._unbind(handle)
        for line in self._created:
            with contextlib.suppress(VbnetError):
                self._signals.destroy(line)
        for detach in (self._signals.detach_controller, self._signals.detach_outbox):
            with contextlib.suppress(VbnetError):
                detach(self.guest)

    def switch(self, *, is_on: bool) -> None:
        """Deliver bound signals through the controller, or each by its own eventfd."""
        for line, call_fd, vector in self._bound.values():
            if is_on:
                self._signals.route_to_vector(line, vector)
            else:
                self._signals.route_to_fd(line, call_fd)
            self._catch_up(line)

    # ---- functions -------------------------------------------------------------------------------------------------

    def _start(self, vcpus: int) -> bytes:
        if not 1 <= vcpus <= self._device.attributes["vcpus"]:
            most = self._device.attributes["vcpus"]
            raise UsageError(f"a guest has 1..{most} vCPUs here; got {vcpus}", got=vcpus, limit=most)
        wanted = [[wire.level_region(vcpu, priority) for priority in range(wire.PRIORITIES)] for vcpu in range(vcpus)]
        missing = [region for vcpu in wanted for region in vcpu if region not in self._regions]
        if missing:
            raise UsageError(f"START needs every level; not shared yet: {missing}", missing=missing)
        if self._device.is_trapped:
            return self._start_trapped([self._regions[vcpu[0]] for vcpu in wanted])
        first = self._regions[0]
        with self._opener.blamed():
            places = [[self._place(region) for region in vcpu] for vcpu in wanted]
            self._signals.attach_controller(self.guest, first.ram, places)
        return wire.MODE.pack(wire.SHARED)

    def _start_trapped(self, lines: list[SharedRegion]) -> bytes:
        """Emulate a controller a vCPU, whose interrupt line is the call doorbell of its lowest level."""
        fds = [region.signal.call_fd for region in lines if region.signal is not None]
        self._traps = self._signals.attach_apics(self.guest, fds).handler()
        return wire.MODE.pack(wire.TRAPPED)

    def _trap(self, function: int, data: bytes) -> bytes:
        if self._traps is None:
            raise UsageError("this controller is in shared memory, or was not started", function=function)
        code, answer = self._traps(function, data)
        if code:
            raise UsageError(answer.decode(), function=function)
        return answer

    def _place(self, region: int) -> tuple[int, int, int]:
        shared = self._regions[region]
        if shared.signal is None:  # refused in shm() already
            raise UsageError("a level needs a signal")
        return shared.offset, shared.length, shared.signal.call_fd

    def _bind(self, handle: int, vcpu: int, vector: int) -> bytes:
        ends = self._opener.signal_of(handle)
        if any(region.signal is ends for region in self._regions.values()):
            raise NotPermittedError("a controller's own doorbells cannot be bound to it", handle=handle)
        to = Vector(self.guest, vcpu, vector)
        if not self._signals.has_controller(self.guest):
            raise UsageError("START comes before BIND")
        line = self._opener.line(ends)
        if self._device.attributes["enabled"]:
            self._signals.route_to_vector(line, to, self.guest)
            self._catch_up(line)
        self._bound[handle] = (line, ends.call_fd, to)
        return wire.LINE.pack(line)

    def _unbind(self, handle: int) -> None:
        bound = self._bound.pop(handle, None)
        if bound is None:
            raise UsageError(f"signal {handle} is not bound to this controller", handle=handle)
        line, call_fd, _vector = bound
        # Its device may be closed, and the descriptor's number another's by now.
        if self._signals.owner_of(line) == self.guest:
            self._signals.route_to_fd(line, call_fd)
            self._catch_up(line)

    def _catch_up(self, line: int) -> None:
        """Raise a line that was led elsewhere: its device may have called before, where nobody listens any more."""
        self._signals.raise_soon(line)

    def _create(self, priority: int, vcpu: int, vector: int, name: str) -> bytes:
        most = self._device.attributes["signals"]
        if len(self._created) >= most:
            raise BusyError(f"this guest named {most} signals, as many as it may; destroy some", limit=most)
        line = self._signals.create(self.guest, name, priority)
        try:
            self._signals.route_to_vector(line, Vector(self.guest, vcpu, vector), self.guest)
        except BaseException:
            self._signals.destroy(line)
            raise
        self._created.add(line)
        return wire.LINE.pack(line)

    def _events(self, vcpu: int, vector: int) -> bytes:
        """The bus's own events ride at the highest priority: what they say comes by message, that they came by this."""
        line = self._signals.create(self.guest, wire.EVENTS_NAME, wire.PRIORITIES - 1, device="bus")
        try:
            self._signals.route_to_vector(line, Vector(self.guest, vcpu, vector), self.guest)
        except BaseException:
            self._signals.destroy(line)
            raise
        self._created.add(line)
        self._signals.tell_events(self.guest, line)
        return wire.LINE.pack(line)

    def _destroy(self, line: int) -> None:
        if line not in self._created:
            raise UsageError(f"signal {line} was not created through this controller", signal=line)
        self._created.discard(line)
        self._signals.destroy(line, self.guest)

    def _route(self, line: int, vcpu: int, vector: int) -> None:
        to = Vector(self.guest, vcpu, vector)
        self._signals.route_to_vector(line, to, self.guest)
        for handle, (bound, call_fd, _vector) in self._bound.items():
            if bound == line:
                self._bound[handle] = (bound, call_fd, to)

    def _set_priority(self, line: int, priority: int) -> None:
        self._signals.set_priority(line, priority, self.guest)

    def _mask(self, line: int, is_masked: int) -> None:
        self._signals.set_masked(line, is_masked=_boolean(is_masked), by=self.guest)

    def _grant(self, line: int, is_granted: int, guest: str) -> None:
        if _boolean(is_granted):
            self._signals.grant(line, guest, self.guest)
        else:
            self._signals.revoke(line, guest, self.guest)

    def _connect(self, place: int, name: str) -> bytes:
        return wire.LINE.pack(self._signals.connect(self.guest, place, name))

    def _export(self, line: int) -> bytes:
        fd = self._signals.export(line, self.guest)
        try:
            return wire.LINE.pack(self._opener.lend_fd(fd))
        finally:
            os.close(fd)

    def _drive(self, line: int, ticket: int) -> bytes:
        fd = self._opener.take_fd(ticket)
        try:
            return wire.LINE.pack(self._signals.drive(line, fd, self.guest))
        finally:
            os.close(fd)


def _name(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError("a name is UTF-8") from None


def _boolean(value: int) -> bool:
    if value not in {0, 1}:
        raise UsageError(f"0 or 1 is wanted; got {value}", got=value)
    return bool(value)

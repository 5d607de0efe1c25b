"""The host half of echo."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from vbnet.devices.echo import metrics, wire
from vbnet.errors import BusyError, ExistsError, TooLargeError, UsageError
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
from vbnet.hostnode.rows import Row

__all__ = ["EchoClass", "EchoDevice", "LoudEchoClass"]


class EchoClass(DeviceClass):
    """Devices that give back what they are sent."""

    name = "echo"
    abi_types = (wire.ECHO_TYPE, wire.CELL_TYPE)

    def create(self, services: HostServices, name: str) -> EchoDevice:
        """Make one; it needs nothing from the host."""
        services.log.debug("echo_created", device=name)
        return EchoDevice(bytes, services.row(metrics.ECHO, device=name))


class LoudEchoClass(DeviceClass):
    """The same ABI, but ECHO shouts too."""

    name = "echo-loud"
    abi_types = (wire.ECHO_TYPE, wire.CELL_TYPE)

    def create(self, services: HostServices, name: str) -> EchoDevice:
        """Make one; it needs nothing from the host."""
        services.log.debug("echo_created", device=name)
        return EchoDevice(bytes.upper, services.row(metrics.ECHO, device=name))


class EchoDevice(Device):
    """One echo device.

    Args:
        voice: what ECHO makes of its data.
        row: counts; the device's own.
    """

    def __init__(self, voice: Callable[[bytes], bytes], row: Row) -> None:
        self.voice = voice
        self._row = row
        self.attributes = AttributeTable(
            (
                Attribute("prefix", "put before every answer of ECHO", parse=str, default=""),
                Attribute(
                    "limit",
                    "longest data of a call, bytes",
                    parse=_parse_limit,
                    default=4096,
                    is_locked_while_open=True,
                ),
                Attribute("calls", "calls answered so far", parse=int, default=0, is_read_only=True),
                Attribute("buses", "how many buses it may be on", parse=_parse_limit, default=1024),
            )
        )
        self._buses: set[str] = set()
        self._counting = threading.Lock()

    def plug(self, bus: str) -> Sequence[Interface]:
        """Show both interfaces, on as many buses as the attribute ``buses`` allows."""
        if len(self._buses) >= self.attributes["buses"]:
            raise BusyError(f"this device is on {len(self._buses)} buses, as many as it may be", limit=len(self._buses))
        self._buses.add(bus)
        return [EchoInterface(self), CellInterface(self)]

    def unplug(self, bus: str) -> None:
        """Take note."""
        self._buses.discard(bus)

    def release(self) -> None:
        """Give the counters back."""
        self._row.close()

    def count_call(self) -> None:
        """One more was answered; the event loop and the fastcall service both count."""
        with self._counting:
            self.attributes.publish("calls", self.attributes["calls"] + 1)
            self._row.add("calls")


class EchoInterface(Interface):
    """``echo0``: any number of openers."""

    name = "echo0"
    abi_type = wire.ECHO_TYPE
    versions = (wire.VERSION,)
    exclusive = False

    def __init__(self, device: EchoDevice) -> None:
        self._device = device

    def connect(self, opener: Opener, version: int) -> Connection:
        """Let anyone in, from anywhere; there is but one version."""
        del opener, version
        return EchoConnection(self._device)


class EchoConnection(Connection):
    """One opener of ``echo0``; COUNT is its own.

    Fastcalls are answered by the same function as ordinary calls, on another thread: what both change has a lock.
    """

    def __init__(self, device: EchoDevice) -> None:
        self._device = device
        self._calls = 0
        self._counting = threading.Lock()
        self.fast = self.call

    def call(self, function: int, data: bytes) -> bytes:
        """Answer ECHO, SHOUT, COUNT; refuse FAIL and what is too long."""
        attributes = self._device.attributes
        if len(data) > attributes["limit"]:
            raise TooLargeError(f"{len(data)} bytes, at most {attributes['limit']}", got=len(data))
        match function:
            case wire.EchoFunction.ECHO:
                answer = str(attributes["prefix"]).encode() + self._device.voice(data)
            case wire.EchoFunction.SHOUT:
                answer = data.upper()
            case wire.EchoFunction.COUNT:
                answer = wire.COUNT.pack(self._calls)
            case wire.EchoFunction.FAIL:
                raise BusyError("echo refuses, as FAIL asks")
            case _:
                raise UsageError(f"echo has no function {function}", function=function)
        with self._counting:
            self._calls += 1
        self._device.count_call()
        return answer

    def close(self) -> None:
        """Nothing is held."""


class CellInterface(Interface):
    """``cell0``: one opener at a time, with memory."""

    name = "cell0"
    abi_type = wire.CELL_TYPE
    versions = (wire.VERSION,)
    exclusive = True

    def __init__(self, device: EchoDevice) -> None:
        self._device = device

    def connect(self, opener: Opener, version: int) -> Connection:
        """Let one in; the link is up from the start."""
        del version
        opener.link_state(is_up=True)
        return CellConnection(self._device, opener)


class CellConnection(Connection):
    """The opener of ``cell0``. Its memory may change at any instant: it is copied once, then worked on."""

    def __init__(self, device: EchoDevice, opener: Opener) -> None:
        self._device = device
        self._opener = opener
        self._cell: SharedRegion | None = None

    def shm(self, region: SharedRegion) -> None:
        """Take the cell."""
        if region.id != wire.CELL_REGION:
            raise UsageError(f"echo-cell has only region {wire.CELL_REGION}", region=region.id)
        if self._cell is not None:
            raise ExistsError("the cell is shared already")
        if region.length > wire.CELL_BYTES:
            raise TooLargeError(f"a cell has at most {wire.CELL_BYTES} bytes", got=region.length)
        self._cell = region

    def call(self, function: int, data: bytes) -> bytes:
        """Do REVERSE or STORE on the cell."""
        if self._cell is None:
            raise UsageError(f"share region {wire.CELL_REGION} first")
        self._device.count_call()
        if function == wire.CellFunction.REVERSE:
            return self._reverse(self._cell)
        if function == wire.CellFunction.STORE:
            return self._store(self._cell, data)
        raise UsageError(f"echo-cell has no function {function}", function=function)

    def close(self) -> None:
        """Let go of the cell."""
        self._cell = None

    def _reverse(self, cell: SharedRegion) -> bytes:
        memory = memoryview(cell.ram.view(cell.offset, cell.length))
        content = bytes(memory)
        memory[:] = content[::-1]
        memory.release()
        if cell.signal is not None:
            self._opener.ring(cell.signal)
        return wire.LENGTH.pack(len(content))

    def _store(self, cell: SharedRegion, data: bytes) -> bytes:
        if len(data) > cell.length:
            raise TooLargeError(f"the cell has {cell.length} bytes", got=len(data), limit=cell.length)
        memory = memoryview(cell.ram.view(cell.offset, cell.length))
        memory[: len(data)] = data
        memory.release()
        return wire.LENGTH.pack(len(data))


def _parse_limit(text: str) -> int:
    value = int(text)
    if not 1 <= value <= wire.CELL_BYTES:
        raise ValueError(f"must be 1..{wire.CELL_BYTES}")
    return value

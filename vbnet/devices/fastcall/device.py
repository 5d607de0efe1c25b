"""The host half of fastcall: takes slots, and has the host's fastcall service answer them.

One device serves all guests of the buses it is plugged into; its attributes hold for all of their slots and can be
changed while they call. What is in a slot is the native service's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from vbnet.devices.fastcall import wire
from vbnet.errors import ResourceError, UsageError
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
from vbnet.hostnode.fastcalls import Fastcalls, SlotParams
from vbnet.hostnode.values import flag, flag_text, within

__all__ = ["FastcallClass", "FastcallDevice"]

_SLOTS_MAX: Final = 256
_SPIN_US_MAX: Final = 100_000
_TRAP_NS_MAX: Final = 1_000_000


class FastcallClass(DeviceClass):
    """Devices through which others are called."""

    name = "fastcall"
    abi_types = (wire.ABI_TYPE,)

    def create(self, services: HostServices, name: str) -> FastcallDevice:
        """Make one."""
        del name
        return FastcallDevice(services)


class FastcallDevice(Device):
    """One fastcall device.

    Args:
        services: of the host.
    """

    def __init__(self, services: HostServices) -> None:
        self.services = services
        self.attributes = AttributeTable(
            (
                Attribute(
                    "enabled",
                    "whether calls are answered, 0 or 1; 0: guests make ordinary calls",
                    flag,
                    default=True,
                    format=flag_text,
                ),
                Attribute("slots_max", "slots a guest may show, 1..256", within(1, _SLOTS_MAX), 16),
                Attribute(
                    "spin_us",
                    "µs a slot is polled after its last call, 0..100000",
                    within(0, _SPIN_US_MAX),
                    50,
                ),
                Attribute(
                    "trap_ns",
                    "modelled cost of a call in ns, spent by the caller, 0..1000000",
                    within(0, _TRAP_NS_MAX),
                    0,
                ),
                Attribute("slots", "slots that guests show now", int, 0, is_read_only=True),
            ),
            self._on_change,
        )
        self.connections: set[FastcallConnection] = set()

    @property
    def params(self) -> SlotParams:
        """How slots are served as of now."""
        return SlotParams(self.attributes["enabled"], self.attributes["spin_us"], self.attributes["trap_ns"])

    def plug(self, bus: str) -> Sequence[Interface]:
        """Show one interface, on any number of buses."""
        del bus
        return [FastcallInterface(self)]

    def count_slots(self) -> None:
        """Slots came or went."""
        self.attributes.publish("slots", sum(len(connection.slots) for connection in self.connections))

    def _on_change(self, name: str, value: Any) -> None:  # noqa: ANN401 - as the declaration says
        del name, value
        for connection in self.connections:
            connection.change(self.params)


class FastcallInterface(Interface):
    """``fastcall0``: any number of openers."""

    name = "fastcall0"
    abi_type = wire.ABI_TYPE
    versions = (wire.VERSION,)
    exclusive = False
    needs_memory = True

    def __init__(self, device: FastcallDevice) -> None:
        self._device = device

    def connect(self, opener: Opener, version: int) -> Connection:
        """Let a guest show slots."""
        del version
        fastcalls = self._device.services.fastcalls
        if fastcalls is None:
            raise UsageError("this host has no fastcall service")
        return FastcallConnection(self._device, opener, fastcalls)


class FastcallConnection(Connection):
    """One guest's slots.

    Attributes:
        slots: numbers that the service gave them, by region.
    """

    def __init__(self, device: FastcallDevice, opener: Opener, fastcalls: Fastcalls) -> None:
        self._device = device
        self._opener = opener
        self._fastcalls = fastcalls
        self.slots: dict[int, int] = {}
        device.connections.add(self)

    def call(self, function: int, data: bytes) -> bytes:
        """Answer INFO."""
        if function != wire.Function.INFO:
            return super().call(function, data)
        if data:
            raise UsageError(f"INFO takes no data; got {len(data)} bytes", got=len(data), limit=0)
        attributes = self._device.attributes
        return wire.INFO.pack(attributes["slots_max"], attributes["spin_us"])

    def shm(self, region: SharedRegion) -> None:
        """Take a slot."""
        limit = self._device.attributes["slots_max"]
        if len(self.slots) >= limit:
            raise ResourceError(f"a guest may show {limit} slots; raise slots_max for more", limit=limit)
        region.signal_at(wire.SIGNAL_OFFSET)
        opener = self._opener
        with opener.blamed():
            slot = self._fastcalls.attach(opener.guest, opener.bus, region, self._device.params, opener.fault)
        self.slots[region.id] = slot
        self._device.count_slots()

    def change(self, params: SlotParams) -> None:
        """Serve all slots differently from now on."""
        for slot in self.slots.values():
            self._fastcalls.set(slot, params)

    def close(self) -> None:
        """Let go of all slots; when this returns their memory is not used any more."""
        for slot in self.slots.values():
            self._fastcalls.detach(self._opener.guest, slot)
        self.slots.clear()
        self._device.connections.discard(self)
        self._device.count_slots()

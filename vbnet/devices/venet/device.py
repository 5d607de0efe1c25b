"""The host half of venet: checks what a driver asks for and makes its rings a port of the fabric.

The rings' contents are the fabric's business (native workers); here are the functions a driver calls, about once in a
device's life. One device has one bus and one opener, as a network card has.
"""

from __future__ import annotations

import contextlib
from typing import Any

from vbnet._native import NicGrant
from vbnet.bus.limits import MAX_PRIORITY
from vbnet.devices.venet import wire
from vbnet.errors import BusyError, ExistsError, UnsupportedError, UsageError, VbnetError
from vbnet.hostnode.device import (
    Attribute,
    AttributeTable,
    Connection,
    DeviceClass,
    HostServices,
    Interface,
    OneBusDevice,
    Opener,
    SharedRegion,
)
from vbnet.hostnode.nics import SWITCH, TURN_PARAMETERS, turn_attributes, wire_attributes
from vbnet.hostnode.values import flag, flag_text, within

__all__ = ["LoopbackClass", "VenetClass", "VenetDevice"]


class VenetClass(DeviceClass):
    """Network cards on a switch."""

    name = "venet"
    abi_types = (wire.ABI_TYPE,)

    def create(self, services: HostServices, name: str) -> VenetDevice:
        """Make one; it needs its ``switch`` before a driver can bring the link up."""
        return VenetDevice(services, name, is_loopback=False)


class LoopbackClass(DeviceClass):
    """Network cards that receive what they send."""

    name = "venet-loopback"
    abi_types = (wire.ABI_TYPE,)

    def create(self, services: HostServices, name: str) -> VenetDevice:
        """Make one."""
        return VenetDevice(services, name, is_loopback=True)


class VenetDevice(OneBusDevice):
    """One network card.

    Args:
        services: of the host.
        name: of the device, also of its port.
        is_loopback: whether frames go back instead of to a switch.
    """

    why_one_bus = "a network card has one bus"

    def __init__(self, services: HostServices, name: str, *, is_loopback: bool) -> None:
        self.services = services
        self.name = name
        self.is_loopback = is_loopback
        self.connection: VenetConnection | None = None
        self.attributes = AttributeTable(
            (
                *(() if is_loopback else (SWITCH,)),
                *wire_attributes(wire.MTU_MAX),
                Attribute(
                    "offloads",
                    "whether drivers are granted the capabilities they ask for, 0 or 1",
                    flag,
                    default=True,
                    format=flag_text,
                    is_locked_while_open=True,
                ),
                Attribute(
                    "txmitigation", "frames sent per completion signal, 0..32768; 0: one a batch", within(0, 32768), 10
                ),
                *turn_attributes(),
                Attribute(
                    "parking",
                    "whether the port sleeps while nothing comes, 0 or 1; 0: its worker looks at it without end",
                    flag,
                    default=True,
                    format=flag_text,
                ),
                Attribute(
                    "priority",
                    "of its rings and signals, 0..7, 7 the most urgent; `driver`: as the guest's driver showed them",
                    parse=_priority,
                    default=None,
                    format=lambda priority: _BY_DRIVER if priority is None else str(priority),
                ),
                Attribute("port", "number of the port while the link is up", int, 0, is_read_only=True),
            ),
            self._on_change,
        )

    def _on_change(self, name: str, value: Any) -> None:  # noqa: ANN401 - as the declaration says
        connection = self.connection
        if connection is None:
            return
        if name == "enabled":
            connection.carrier(is_up=value)
        elif name == "priority":
            connection.prioritise(value)
        elif name == "parking":
            connection.set_parameter("parks", int(value))
        elif name in _PORT_PARAMETERS:
            connection.set_parameter(_PORT_PARAMETERS[name], value)

    def interface(self) -> Interface:
        """Make what the guest opens."""
        return VenetInterface(self)


class VenetInterface(Interface):
    """What the guest opens."""

    abi_type = wire.ABI_TYPE
    versions = (wire.VERSION,)
    exclusive = True
    needs_memory = True

    def __init__(self, device: VenetDevice) -> None:
        self.name = device.name.rpartition(".")[2]
        self._device = device

    def connect(self, opener: Opener, version: int) -> Connection:  # noqa: ARG002 - there is one version
        """Let a driver use it."""
        return VenetConnection(self._device, opener)


class VenetConnection(Connection):
    """One driver's use: two rings, then a port."""

    def __init__(self, device: VenetDevice, opener: Opener) -> None:
        self._device = device
        self._opener = opener
        self._fabric = device.services.need_fabric()
        self._regions: dict[wire.Region, SharedRegion] = {}
        self._port: int | None = None
        self._lines: dict[wire.Region, int] = {}
        self._is_up = False
        self._granted: dict[int, int] = {}
        self._told = 0
        device.connection = self

    def call(self, function: int, data: bytes) -> bytes:
        """Run one of ``wire.Function``."""
        try:
            wanted = wire.Function(function)
        except ValueError:
            return super().call(function, data)
        if wanted is wire.Function.NEGCAP:
            return self._negotiate(data)
        if data:
            raise UsageError(f"{wanted.name} takes no data; got {len(data)} bytes", got=len(data), limit=0)
        match wanted:
            case wire.Function.LINKUP:
                self._link_up()
            case wire.Function.LINKDOWN:
                self._link_down()
            case wire.Function.FLUSHRX:
                self._fabric.port_flush_rx(self._need_port())
            case _:
                return self._query(wanted)
        return b""

    def _query(self, wanted: wire.Function) -> bytes:
        match wanted:
            case wire.Function.MACQUERY:
                return bytes(self._device.attributes["mac"])
            case wire.Function.MTUQUERY:
                return wire.MTU.pack(self._device.attributes["mtu"])
            case wire.Function.PMTDQUERY if self._has(wire.Capability.PMTD):
                return wire.REGION_ID.pack(wire.Region.POOL)
            case wire.Function.EVQQUERY if self._tells_link:
                return wire.REGION_ID.pack(wire.Region.EVENTS)
        raise UnsupportedError(
            f"{wanted.name} belongs to a capability that was not granted; negotiate first", function=wanted.name
        )

    def _negotiate(self, data: bytes) -> bytes:
        if self._port is not None:
            raise BusyError(
                "capabilities are locked since the link first came up; open the device again to change them"
            )
        if len(data) != wire.NEGCAP.size:
            raise UsageError(
                f"NEGCAP takes {wire.NEGCAP.size} bytes; got {len(data)}", got=len(data), limit=wire.NEGCAP.size
            )
        group, bits = wire.NEGCAP.unpack(data)
        answer = wire.granted(group, bits) if self._device.attributes["offloads"] else 0
        self._granted[group] = answer
        return wire.NEGCAP_ANSWER.pack(answer)

    def _has(self, capability: wire.Capability, group: wire.CapabilityGroup = wire.CapabilityGroup.SG) -> bool:
        return bool(self._granted.get(group, 0) & capability)

    @property
    def _tells_link(self) -> bool:
        return bool(self._granted.get(wire.CapabilityGroup.EVENTQ, 0) & wire.EventCapability.LINKSTATE)

    def _needed(self) -> list[wire.Region]:
        """What a driver has to share before the link can come up."""
        needed = list(wire.RINGS)
        if self._has(wire.Capability.PMTD):
            needed.append(wire.Region.POOL)
        if self._tells_link:
            needed.append(wire.Region.EVENTS)
        return needed

    def _grant(self) -> NicGrant:
        groups = wire.CapabilityGroup
        takes, gives = (
            [name for capability, name in wire.OFFLOADS.items() if self._has(capability, group)]
            for group in (groups.SG, groups.L4RO)
        )
        pool = self._regions.get(wire.Region.POOL)
        return NicGrant(
            takes,
            gives,
            is_scattered=self._has(wire.Capability.SG),
            is_merged=self._has(wire.Capability.SG, groups.L4RO),
            pool=None if pool is None else (pool.offset, pool.length),
        )

    def shm(self, region: SharedRegion) -> None:
        """Take one of ``wire.Region`` into use; each once, each ring with a signal."""
        try:
            which = wire.Region(region.id)
        except ValueError:
            return super().shm(region)
        if which in self._regions:
            raise ExistsError(f"region {which.name} was shared before; close the device to share it anew")
        if which not in wire.RINGS and which not in self._needed():
            raise UnsupportedError(f"region {which.name} belongs to a capability that was not granted; negotiate first")
        if which is not wire.Region.POOL:
            region.signal_at(wire.RING_SIGNAL_OFFSET)
        if which is wire.Region.EVENTS and (region.length != wire.EVENTS_BYTES or region.offset % wire.LINK.size):
            raise UsageError(
                f"region {which.name} has {wire.EVENTS_BYTES} bytes at a multiple of {wire.LINK.size}; "
                f"got {region.length} at {region.offset}",
                got=region.length,
                limit=wire.EVENTS_BYTES,
            )
        self._regions[which] = region
        return None

    def _link_up(self) -> None:
        if self._is_up:
            raise ExistsError("the link is up already")
        if self._port is None:
            self._port = self._join()
            self._device.attributes.publish("port", self._port)
        self._is_up = True
        self.carrier(is_up=self._device.attributes["enabled"])

    def _join(self) -> int:
        missing = [region.name for region in self._needed() if region not in self._regions]
        if missing:
            raise UsageError(f"LINKUP needs its regions; not shared yet: {', '.join(missing)}", missing=missing)
        attributes = self._device.attributes
        switch = "" if self._device.is_loopback else attributes["switch"]
        if not switch and not self._device.is_loopback:
            raise UsageError(f"device {self._device.name!r} is joined to no switch; set its attribute `switch`")
        tx, rx = self._regions[wire.Region.TX], self._regions[wire.Region.RX]
        tx_signal, rx_signal = (region.signal_at(wire.RING_SIGNAL_OFFSET) for region in (tx, rx))
        self._lines = {wire.Region.TX: self._opener.line(tx_signal), wire.Region.RX: self._opener.line(rx_signal)}
        if self._tells_link:
            events = self._regions[wire.Region.EVENTS].signal_at(wire.RING_SIGNAL_OFFSET)
            self._lines[wire.Region.EVENTS] = self._opener.line(events)
        with self._opener.blamed():
            port = self._fabric.port_add_venet(
                switch,
                self._device.name,
                tx.ram,
                (tx.offset, tx.length),
                (rx.offset, rx.length),
                (tx_signal.kick_fd, tx_signal.call_fd, rx_signal.kick_fd, rx_signal.call_fd),
                mac=str(attributes["mac"]),
                mtu=attributes["mtu"],
                tx_mitigation=attributes["txmitigation"],
                burst_threshold_us=attributes["burstthresh"],
                budget=attributes["budget"],
                signals=self._device.services.signals.native,
                lines=(self._lines[wire.Region.TX], self._lines[wire.Region.RX]),
                guest=self._opener.guest,
                grant=self._grant(),
            )
        self._port = port
        self.prioritise(attributes["priority"])
        self.set_parameter("hold_us", attributes["hold"])
        if not attributes["parking"]:
            self.set_parameter("parks", 0)
        return port

    def _link_down(self) -> None:
        if not self._is_up:
            raise UsageError("the link is not up")
        self._is_up = False
        self.carrier(is_up=False)

    def _need_port(self) -> int:
        if self._port is None:
            raise UsageError("the link was never up; say LINKUP first")
        return self._port

    def carrier(self, *, is_up: bool) -> None:
        """Let frames through, or not, and tell the guest."""
        if self._port is None:
            return
        is_up = is_up and self._is_up
        self._fabric.port_set(self._port, "link", str(int(is_up)))
        self._write_link(is_up=is_up)
        self._opener.link_state(is_up=is_up)

    def _write_link(self, *, is_up: bool) -> None:
        """Put the carrier where the guest may look any time, and ring: the latest is all that counts."""
        line = self._lines.get(wire.Region.EVENTS)
        if line is None:
            return
        self._told = (self._told + 1) & 0x7FFF_FFFF
        region = self._regions[wire.Region.EVENTS]
        word = wire.LINK.pack(self._told << 1 | is_up)
        memoryview(region.ram.view(region.offset, len(word)))[:] = word
        self._device.services.signals.raise_soon(line)

    def prioritise(self, priority: int | None) -> None:
        """Change how urgent rings and signals are, while they are in use; None: as the driver showed them."""
        if self._port is None:
            return
        shown = {region: self._regions[region].priority for region in self._lines}
        chosen = {region: shown[region] if priority is None else priority for region in self._lines}
        for region, line in self._lines.items():
            self._device.services.signals.set_priority(line, chosen[region])
        self._fabric.port_set(self._port, "priority", str(max(chosen[region] for region in wire.RINGS)))

    def set_parameter(self, key: str, value: int) -> None:
        """Change how the port is served, while it runs."""
        if self._port is not None:
            self._fabric.port_set(self._port, key, str(value))

    def close(self) -> None:
        """Take the port off; when this returns no worker touches the guest's memory."""
        port, self._port = self._port, None
        self._regions.clear()
        self._lines.clear()
        if self._device.connection is self:
            self._device.connection = None
            self._device.attributes.publish("port", 0)
        if port is not None:
            with contextlib.suppress(VbnetError):  # the fabric may be closed before its ports
                self._fabric.port_remove(port)


_BY_DRIVER = "driver"
_PORT_PARAMETERS = {"txmitigation": "tx_mitigation", **TURN_PARAMETERS}


def _priority(text: str) -> int | None:
    return None if text == _BY_DRIVER else within(0, MAX_PRIORITY)(text)

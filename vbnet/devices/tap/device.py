"""The host half of the tap device: makes a given TAP a port of a switch.

The descriptor is a stranger's until it was looked at: anything but a TAP without the packet-information header is
refused before the fabric sees it. The fabric duplicates the descriptor; ours is closed at once. Whether frames have
offload headers is for the guest to say, by how it opened the TAP.
"""

from __future__ import annotations

import fcntl
import os
import struct

from vbnet.devices.tap import wire
from vbnet.errors import BusyError, UsageError
from vbnet.hostnode.device import (
    Attribute,
    AttributeTable,
    Connection,
    DeviceClass,
    HostServices,
    Interface,
    OneBusDevice,
    Opener,
)

_TUNGETIFF = 0x800454D2
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000


class TapClass(DeviceClass):
    """Makes tap devices."""

    name = "tap"
    abi_types = (wire.ABI_TYPE,)

    def create(self, services: HostServices, name: str) -> TapDevice:
        """Make a tap device; it needs its ``switch`` before a guest can join."""
        return TapDevice(services, name)


class TapDevice(OneBusDevice):
    """A TAP-to-be: which switch it joins, and with which MTU. One bus, one guest at a time."""

    why_one_bus = "a TAP has one guest"

    def __init__(self, services: HostServices, name: str) -> None:
        self.services = services
        self.name = name
        self.attributes = AttributeTable(
            (
                Attribute("switch", "Switch that the TAP joins.", str, "", is_locked_while_open=True),
                Attribute("mtu", "Largest IP packet in bytes, 68..65535.", _mtu, 1500, is_locked_while_open=True),
                Attribute("mac", "Address of the guest's end, for lists.", str, "", is_locked_while_open=True),
            )
        )

    def interface(self) -> Interface:
        """Make what the guest opens."""
        return TapInterface(self)


class TapInterface(Interface):
    """What the guest opens."""

    abi_type = wire.ABI_TYPE
    versions = (wire.VERSION,)
    exclusive = True
    needs_memory = True

    def __init__(self, device: TapDevice) -> None:
        self.name = device.name.rpartition(".")[2]
        self._device = device

    def connect(self, opener: Opener, version: int) -> Connection:  # noqa: ARG002 -- there is one version
        """Let the guest join its TAP."""
        return TapConnection(self._device, opener)


class TapConnection(Connection):
    """One guest's use: at most one TAP, its port removed when the guest goes."""

    def __init__(self, device: TapDevice, opener: Opener) -> None:
        self._device = device
        self._opener = opener
        self._port: int | None = None

    def call(self, function: int, data: bytes) -> bytes:
        """Run ``JOIN`` or ``LEAVE``."""
        if function == wire.JOIN:
            return self._join(wire.decode_ticket(data))
        if function == wire.LEAVE:
            self.close()
            return b""
        return super().call(function, data)

    def close(self) -> None:
        """Take the port off its switch."""
        port, self._port = self._port, None
        if port is not None:
            self._device.services.need_fabric().port_remove(port)

    def _join(self, ticket: int) -> bytes:
        if self._port is not None:
            raise BusyError(f"device {self._device.name!r} has its TAP already; LEAVE first")
        switch, mtu = self._device.attributes["switch"], self._device.attributes["mtu"]
        if not switch:
            raise UsageError(f"device {self._device.name!r} has no switch; set its attribute `switch`")
        fd = self._opener.take_fd(ticket)
        try:
            _check_tap(fd)
            fabric, name = self._device.services.need_fabric(), self._device.name
            self._port = fabric.port_add_tap(switch, name, fd, mtu, guest=self._opener.guest)
        finally:
            os.close(fd)
        return wire.encode_mtu(mtu)


def _check_tap(fd: int) -> None:
    """Refuse a descriptor that is no TAP, or one whose frames have packet information in front."""
    try:
        answer = fcntl.ioctl(fd, _TUNGETIFF, bytes(40))
    except OSError as error:
        raise UsageError(f"the descriptor is no TAP ({error.strerror})") from error
    flags = struct.unpack_from("<H", answer, 16)[0]
    if not flags & _IFF_TAP or not flags & _IFF_NO_PI:
        raise UsageError(f"the TAP has flags {flags:#06x}; open it with IFF_TAP | IFF_NO_PI", got=flags)
    os.set_blocking(fd, False)


def _mtu(text: str) -> int:
    mtu = int(text)
    if not wire.MTU_MIN <= mtu <= wire.MTU_MAX:
        raise ValueError(f"an MTU is {wire.MTU_MIN}..{wire.MTU_MAX}")
    return mtu

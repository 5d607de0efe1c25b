"""The host half of virtio-net: a port of a switch, and the card whose queues it gets.

Registers, features and queues are as those of all virtio devices (``vbnet.devices.virtio.device``); frames are the
fabric's business (``rust/core/src/port/virtqueues.rs``), as those of virtual machines are. A card is open from ``open``
on, its port is there as long, and takes frames once the driver says DRIVER_OK.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from vbnet.bus.limits import MAX_PRIORITY
from vbnet.devices.virtio.device import Share, VirtioBase, VirtioClass, VirtioConnection
from vbnet.devices.virtio_net import wire
from vbnet.errors import UsageError, VbnetError
from vbnet.hostnode.device import Attribute, Connection, Opener
from vbnet.hostnode.nics import SWITCH, TURN_PARAMETERS, turn_attributes, wire_attributes
from vbnet.hostnode.values import flag, flag_text, within

if TYPE_CHECKING:
    from vbnet._native import NetPort, VirtioDevice
    from vbnet.sharedmem import Ram

__all__ = ["VirtioNetClass", "VirtioNetDevice"]

_MTU_MAX: Final = 65535
_PORT_PARAMETERS: Final = {"priority": "priority", **TURN_PARAMETERS}


class VirtioNetClass(VirtioClass):
    """Network cards of the virtio specification, on a switch."""

    name = "virtio-net"
    abi_type = wire.ABI_TYPE

    def make(self, share: Share, name: str) -> VirtioNetDevice:
        """Make one; it needs its ``switch`` before a driver can open it."""
        return VirtioNetDevice(share, name)


class VirtioNetDevice(VirtioBase):
    """One network card.

    Args:
        share: of the host.
        name: of the device, also of its port.
    """

    def __init__(self, share: Share, name: str) -> None:
        self.connection: VirtioNetConnection | None = None
        super().__init__(
            share,
            name,
            wire.ABI_TYPE,
            (
                SWITCH,
                *wire_attributes(_MTU_MAX),
                Attribute(
                    "pairs",
                    f"pairs of queues that a driver may use, 1..{wire.PAIRS_MAX}",
                    within(1, wire.PAIRS_MAX),
                    1,
                    is_locked_while_open=True,
                ),
                Attribute(
                    "offloads",
                    "whether drivers may leave checksums and segments to the host, and be left with them, 0 or 1",
                    flag,
                    default=True,
                    format=flag_text,
                    is_locked_while_open=True,
                ),
                *turn_attributes(),
                Attribute("priority", "of its port, 0..7, 7 the most urgent", within(0, MAX_PRIORITY), 0),
                Attribute("port", "number of the port while the card is open", int, 0, is_read_only=True),
            ),
            self._on_change,
        )

    def _on_change(self, name: str, value: Any) -> None:  # noqa: ANN401 - as the declaration says
        if self.connection is None:
            return
        if name == "enabled":
            self.connection.carrier(is_up=value)
        elif name in _PORT_PARAMETERS:
            self.connection.set_parameter(_PORT_PARAMETERS[name], value)

    def connect(self, opener: Opener) -> Connection:
        """Let a driver use it."""
        return VirtioNetConnection(self, opener)

    def open_native(self, ram: Ram, how: Mapping[str, Any]) -> VirtioDevice:
        """Open the card, whose port is there already."""
        assert self.connection is not None  # noqa: S101 - who opens it is its connection
        attributes = self.attributes
        return self.share.native.open_net(
            ram,
            self.connection.port,
            mac=str(attributes["mac"]),
            mtu=attributes["mtu"],
            pairs=attributes["pairs"],
            has_offloads=attributes["offloads"],
            **how,
        )


class VirtioNetConnection(VirtioConnection):
    """One driver's use: a port, then a card."""

    def __init__(self, device: VirtioNetDevice, opener: Opener) -> None:
        attributes = device.attributes
        if not attributes["switch"]:
            raise UsageError(f"device {device.name!r} is joined to no switch; set its attribute `switch`")
        self._card = device
        self._fabric = device.share.services.need_fabric()
        self.port: NetPort = self._fabric.port_add_virtio_net(
            attributes["switch"],
            device.name,
            mac=str(attributes["mac"]),
            mtu=attributes["mtu"],
            burst_threshold_us=attributes["burstthresh"],
            budget=attributes["budget"],
            priority=attributes["priority"],
            guest=opener.guest,
        )
        device.connection = self
        try:
            super().__init__(device, opener)
        except BaseException:
            self._remove_port()
            raise
        attributes.publish("port", self.port.id)
        self.set_parameter("hold_us", attributes["hold"])
        self.carrier(is_up=attributes["enabled"])

    def carrier(self, *, is_up: bool) -> None:
        """Let frames through, or not, and tell the guest."""
        self._fabric.port_set(self.port.id, "link", str(int(is_up)))
        self._native.set_link(is_up)
        self._opener.link_state(is_up=is_up)

    def set_parameter(self, key: str, value: int) -> None:
        """Change how the port is served, while it runs."""
        self._fabric.port_set(self.port.id, key, str(value))

    def close(self) -> None:
        """Take the queues back and the port off; when this returns no worker touches the guest's memory."""
        try:
            super().close()
        finally:
            self._remove_port()

    def _remove_port(self) -> None:
        if self._card.connection is self:
            self._card.connection = None
            self._card.attributes.publish("port", 0)
        with contextlib.suppress(VbnetError):  # the fabric may be closed before its ports
            self._fabric.port_remove(self.port.id)

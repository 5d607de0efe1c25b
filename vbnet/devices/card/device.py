"""The host half of emulated cards: makes one for each driver, and hangs it on the switch.

What registers do is native code's business (``rust/core/src/nic``): traps are answered on the host's fastcall thread,
frames are moved by a worker. Here is what an operator sees and sets, and the few calls before the first trap. A device
has one bus and one opener, as a network card has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from vbnet.devices.card import KIND, wire
from vbnet.errors import ExistsError, UnsupportedError, UsageError, VbnetError
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
from vbnet.hostnode.fastcalls import SlotParams
from vbnet.hostnode.nics import SWITCH, TURN_PARAMETERS, turn_attributes, wire_attributes
from vbnet.hostnode.values import within

if TYPE_CHECKING:
    from vbnet._native import EmulatedCard

__all__ = ["CardDevice", "E1000Class", "Rtl8139Class"]

_INTERRUPTS_MAX: Final = 1_000_000
_SPIN_US_MAX: Final = 100_000
_TRAP_NS_MAX: Final = 1_000_000


class E1000Class(DeviceClass):
    """Cards of Intel's 82540EM."""

    name = "e1000"
    abi_types = (wire.E1000_TYPE,)

    def create(self, services: HostServices, name: str) -> CardDevice:
        """Make one; it needs its ``switch`` before a driver can start it."""
        throttle = Attribute(
            "interrupts_per_second",
            f"what its driver tells the card's throttle, 0..{_INTERRUPTS_MAX}; 0: as they come",
            within(0, _INTERRUPTS_MAX),
            20_000,
            is_locked_while_open=True,
        )
        return CardDevice(services, name, wire.E1000_TYPE, KIND.nics[self.name].mtu_max, (throttle,))


class Rtl8139Class(DeviceClass):
    """Cards of Realtek's RTL8139C."""

    name = "rtl8139"
    abi_types = (wire.RTL8139_TYPE,)

    def create(self, services: HostServices, name: str) -> CardDevice:
        """Make one; it needs its ``switch`` before a driver can start it."""
        return CardDevice(services, name, wire.RTL8139_TYPE, KIND.nics[self.name].mtu_max)


class CardDevice(OneBusDevice):
    """One network card.

    Args:
        services: of the host.
        name: of the device, also of its port.
        model: what card it is; also its ABI type.
        mtu_max: largest packet it can carry, bytes.
        attributes: its own, beside those of every card.
    """

    why_one_bus = "a network card has one bus"

    def __init__(
        self,
        services: HostServices,
        name: str,
        model: str,
        mtu_max: int,
        attributes: Sequence[Attribute[Any]] = (),
    ) -> None:
        self.services = services
        self.name = name
        self.model = model
        self.connection: CardConnection | None = None
        self.attributes = AttributeTable(
            (
                SWITCH,
                *wire_attributes(mtu_max),
                *turn_attributes(),
                Attribute(
                    "trap_cost_ns",
                    f"modelled cost of an access to a register in ns, spent by the guest, 0..{_TRAP_NS_MAX}",
                    within(0, _TRAP_NS_MAX),
                    0,
                ),
                Attribute(
                    "spin_us",
                    f"µs that host and guest stay awake for the next access, 0..{_SPIN_US_MAX}",
                    within(0, _SPIN_US_MAX),
                    50,
                ),
                *attributes,
                Attribute("port", "number of the port while a driver runs it", int, 0, is_read_only=True),
            ),
            self._on_change,
        )

    @property
    def slot_params(self) -> SlotParams:
        """How traps are served as of now."""
        return SlotParams(spin_us=self.attributes["spin_us"], trap_ns=self.attributes["trap_cost_ns"])

    def _on_change(self, name: str, value: Any) -> None:  # noqa: ANN401 - as the declaration says
        connection = self.connection
        if connection is None:
            return
        if name == "enabled":
            connection.carrier(is_up=value)
        elif name in TURN_PARAMETERS:
            connection.set_parameter(TURN_PARAMETERS[name], value)
        elif name in {"trap_cost_ns", "spin_us"}:
            connection.serve_slots(self.slot_params)

    def interface(self) -> Interface:
        """Make what the guest opens."""
        return CardInterface(self)


class CardInterface(Interface):
    """What the guest opens."""

    versions = (wire.VERSION,)
    exclusive = True
    needs_memory = True

    def __init__(self, device: CardDevice) -> None:
        self.name = device.name.rpartition(".")[2]
        self.abi_type = device.model
        self._device = device

    def connect(self, opener: Opener, version: int) -> Connection:  # noqa: ARG002 - there is one version
        """Let a driver use it."""
        return CardConnection(self._device, opener)


class CardConnection(Connection):
    """One driver's card: registers from the start, frames when its line was shown."""

    def __init__(self, device: CardDevice, opener: Opener) -> None:
        from vbnet._native import CounterFile, EmulatedCard  # noqa: PLC0415 - hosts without cards do without

        if opener.ram is None:
            raise UnsupportedError("a card works in the guest's memory, and this guest shares none")
        services = device.services
        self._device = device
        self._opener = opener
        self._fabric = services.need_fabric()
        self._regions: set[wire.Region] = set()
        self._slots: list[int] = []
        self._port: int | None = None
        self._card: EmulatedCard = EmulatedCard(
            device.model,
            str(device.attributes["mac"]),
            opener.ram,
            CounterFile.create() if services.counters is None else services.counters,
            guest=opener.guest,
            device=device.name,
        )
        self.fast = self._card.fast()
        device.connection = self

    def call(self, function: int, data: bytes) -> bytes:
        """Answer INFO, or access a register."""
        if function != wire.Function.INFO:
            return self._card.call(function, data)
        if data:
            raise UsageError(f"INFO takes no data; got {len(data)} bytes", got=len(data), limit=0)
        attributes = self._device.attributes
        interrupts = attributes["interrupts_per_second"] if self._device.model == wire.E1000_TYPE else 0
        return wire.INFO.pack(attributes["mtu"], interrupts, attributes["spin_us"])

    def shm(self, region: SharedRegion) -> None:
        """Take one of ``wire.Region`` into use; each once, each with a signal."""
        try:
            which = wire.Region(region.id)
        except ValueError:
            return super().shm(region)
        if which in self._regions:
            raise ExistsError(f"region {which.name} was shared before; close the device to share it anew")
        if which is wire.Region.LINE:
            self._join(region)
        else:
            self._show(region, which)
        self._regions.add(which)
        return None

    def _show(self, region: SharedRegion, which: wire.Region) -> None:
        region.signal_at(wire.SLOT_SIGNAL_OFFSET)
        fastcalls = self._device.services.fastcalls
        if fastcalls is None:
            raise UnsupportedError("this host has no fastcall service, which a card's registers need")
        opener = self._opener
        with opener.blamed():
            label = f"{self._device.name}.{which.name.lower()}"
            slot = fastcalls.attach(
                opener.guest, opener.bus, region, self._device.slot_params, opener.fault, label=label
            )
        self._slots.append(slot)

    def _join(self, region: SharedRegion) -> None:
        """Lead the card's line to a controller that rings the guest, and the card to its switch."""
        signal = region.signal_at(wire.LINE_SIGNAL_OFFSET)
        device, attributes = self._device, self._device.attributes
        if not attributes["switch"]:
            raise UsageError(f"device {device.name!r} is joined to no switch; set its attribute `switch`")
        signals = device.services.signals.native
        line = self._opener.line(signal)
        signals.route_to_apic(line, self._card.connect(signal.call_fd), 0, 0)
        self._port = self._fabric.port_add_nic(
            attributes["switch"],
            device.name,
            self._card,
            signals,
            line,
            mac=str(attributes["mac"]),
            mtu=attributes["mtu"],
            burst_threshold_us=attributes["burstthresh"],
            budget=attributes["budget"],
            guest=self._opener.guest,
        )
        attributes.publish("port", self._port)
        self.set_parameter("hold_us", attributes["hold"])
        self.carrier(is_up=attributes["enabled"])

    def carrier(self, *, is_up: bool) -> None:
        """Let frames through, or not, and tell the guest; the card tells it as well."""
        if self._port is not None:
            self._fabric.port_set(self._port, "link", str(int(is_up)))
            self._opener.link_state(is_up=is_up)

    def set_parameter(self, key: str, value: int) -> None:
        """Change how the port is served, while it runs."""
        if self._port is not None:
            self._fabric.port_set(self._port, key, str(value))

    def serve_slots(self, params: SlotParams) -> None:
        """Answer traps differently from now on."""
        fastcalls = self._device.services.fastcalls
        if fastcalls is not None:
            for slot in self._slots:
                fastcalls.set(slot, params)

    def close(self) -> None:
        """Take card and slots off; when this returns nobody touches the guest's memory."""
        port, self._port = self._port, None
        device = self._device
        if device.connection is self:
            device.connection = None
            device.attributes.publish("port", 0)
        if port is not None:
            with contextlib.suppress(VbnetError):  # the fabric may be closed before its ports
                self._fabric.port_remove(port)
        fastcalls = device.services.fastcalls
        if fastcalls is not None:
            for slot in self._slots:
                fastcalls.detach(self._opener.guest, slot)
        self._slots.clear()

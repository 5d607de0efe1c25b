"""The object model of the bus: buses, devices, plugs, dev-ids and who hears of them. No I/O, no clock, no callbacks.

A *device* exists by itself, gets its type once, and is *plugged* into any number of buses; each plug shows one or more
*interfaces*, and each of those gets a *dev-id* on that bus, which is never given again. *Members* of a bus hear nothing
before they are ready; then they get everything present exactly once, and every later change.

Every method either does the whole change and returns who must be told what, or raises and has changed nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vbnet.errors import BusyError, ExistsError, NotFoundError, ResourceError, UsageError, did_you_mean

__all__ = ["BusModel", "DeviceRecord", "Slot"]

InterfaceT = TypeVar("InterfaceT")
MemberT = TypeVar("MemberT", bound=Hashable)

MAX_DEV_ID = 0x7FFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True, eq=False)
class Slot(Generic[InterfaceT]):
    """One interface of one device on one bus: what a guest can see and open."""

    bus: str
    dev_id: int
    device: str
    interface: InterfaceT


@dataclass(slots=True)
class DeviceRecord:
    """A device as the model knows it; ``type`` is None until it is set."""

    name: str
    type: str | None = None
    buses: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Bus(Generic[InterfaceT, MemberT]):
    name: str
    is_private: bool
    next_id: int = 1
    slots: dict[int, Slot[InterfaceT]] = field(default_factory=dict)
    members: dict[MemberT, bool] = field(default_factory=dict)

    def ready_members(self) -> list[MemberT]:
        return [member for member, is_ready in self.members.items() if is_ready]


class BusModel(Generic[InterfaceT, MemberT]):
    """All buses and devices of one host.

    Args:
        max_dev_id: largest dev-id a bus may give out.
    """

    def __init__(self, max_dev_id: int = MAX_DEV_ID) -> None:
        self._max_dev_id = max_dev_id
        self._buses: dict[str, _Bus[InterfaceT, MemberT]] = {}
        self._devices: dict[str, DeviceRecord] = {}

    # ---- buses -----------------------------------------------------------------------------------------------------

    def create_bus(self, name: str, *, is_private: bool = False) -> None:
        """Make an empty bus.

        Raises:
            ExistsError: the name is taken.
        """
        if name in self._buses:
            raise ExistsError(f"bus {name!r} exists already", bus=name)
        self._buses[name] = _Bus(name, is_private)

    def delete_bus(self, name: str) -> None:
        """Remove a bus that has neither devices nor members.

        Raises:
            NotFoundError: there is no such bus.
            BusyError: devices are plugged or guests are on it.
        """
        bus = self._bus(name)
        if bus.slots or bus.members:
            raise BusyError(
                f"bus {name!r} has {len(bus.slots)} devices and {len(bus.members)} guests; remove these first",
                bus=name,
                devices=len(bus.slots),
                guests=len(bus.members),
            )
        del self._buses[name]

    def buses(self) -> list[str]:
        """Names of all buses, oldest first."""
        return list(self._buses)

    def is_private(self, name: str) -> bool:
        """Whether the bus was made for one guest and ends with it."""
        return self._bus(name).is_private

    def slots(self, bus: str) -> list[Slot[InterfaceT]]:
        """What is on a bus, by rising dev-id."""
        return list(self._bus(bus).slots.values())

    def find_slot(self, bus: str, dev_id: int) -> Slot[InterfaceT]:
        """The interface with this dev-id on this bus.

        Raises:
            NotFoundError: never given, dropped since, or of another bus.
        """
        slot = self._bus(bus).slots.get(dev_id)
        if slot is None:
            raise NotFoundError(f"there is no device {dev_id} on bus {bus!r}", bus=bus, dev_id=dev_id)
        return slot

    # ---- members ---------------------------------------------------------------------------------------------------

    def join(self, bus: str, member: MemberT) -> None:
        """Put a member on a bus, deaf until ``ready``.

        Raises:
            NotFoundError: there is no such bus.
            ExistsError: it is on it already.
        """
        members = self._bus(bus).members
        if member in members:
            raise ExistsError(f"{member!r} is on bus {bus!r} already", bus=bus)
        members[member] = False

    def ready(self, bus: str, member: MemberT) -> list[Slot[InterfaceT]]:
        """From now on the member hears of changes; returns what it must be told of first.

        Raises:
            NotFoundError: no such bus, or it is not a member.
            ExistsError: it is ready already.
        """
        found = self._bus(bus)
        if member not in found.members:
            raise NotFoundError(f"{member!r} is not on bus {bus!r}", bus=bus)
        if found.members[member]:
            raise ExistsError("the session is ready already; negotiate to start again", bus=bus)
        found.members[member] = True
        return list(found.slots.values())

    def deafen(self, bus: str, member: MemberT) -> None:
        """Undo ``ready``: the member hears nothing until it is ready again."""
        found = self._bus(bus)
        if member in found.members:
            found.members[member] = False

    def leave(self, bus: str, member: MemberT) -> None:
        """Take a member off; harmless when it is not on it."""
        self._bus(bus).members.pop(member, None)

    def members(self, bus: str) -> list[MemberT]:
        """Everyone on the bus, ready or not, oldest first."""
        return list(self._bus(bus).members)

    def listeners(self, bus: str) -> list[MemberT]:
        """Those who must be told of changes on this bus."""
        return self._bus(bus).ready_members()

    # ---- devices ---------------------------------------------------------------------------------------------------

    def create_device(self, name: str) -> None:
        """Make a device without a type.

        Raises:
            ExistsError: the name is taken.
        """
        if name in self._devices:
            raise ExistsError(f"device {name!r} exists already", device=name)
        self._devices[name] = DeviceRecord(name)

    def set_type(self, name: str, type_name: str) -> None:
        """Give a device its type, once.

        Raises:
            NotFoundError: there is no such device.
            UsageError: it has a type.
        """
        record = self.device(name)
        if record.type is not None:
            raise UsageError(
                f"device {name!r} is of type {record.type!r} for good; create another", device=name, type=record.type
            )
        record.type = type_name

    def device(self, name: str) -> DeviceRecord:
        """The record of a device.

        Raises:
            NotFoundError: there is no such device.
        """
        try:
            return self._devices[name]
        except KeyError:
            fix = did_you_mean(name, self._devices, otherwise="`vbnet device list` shows all")
            raise NotFoundError(f"there is no device {name!r}; {fix}", device=name) from None

    def devices(self) -> list[DeviceRecord]:
        """All devices, oldest first."""
        return list(self._devices.values())

    def delete_device(self, name: str) -> None:
        """Remove a device that is plugged nowhere.

        Raises:
            NotFoundError: there is no such device.
            BusyError: it is plugged.
        """
        record = self.device(name)
        if record.buses:
            raise BusyError(
                f"device {name!r} is plugged into {', '.join(record.buses)}; unplug it first",
                device=name,
                buses=list(record.buses),
            )
        del self._devices[name]

    # ---- plugs -----------------------------------------------------------------------------------------------------

    def check_plug(self, name: str, bus: str) -> None:
        """Raise what ``plug`` would raise whatever the interfaces are."""
        record = self.device(name)
        self._bus(bus)
        if record.type is None:
            raise UsageError(f"device {name!r} has no type yet; set its type, then plug it", device=name)
        if bus in record.buses:
            raise ExistsError(f"device {name!r} is plugged into {bus!r} already", device=name, bus=bus)

    def plug(self, name: str, bus: str, interfaces: Sequence[InterfaceT]) -> list[Slot[InterfaceT]]:
        """Put a device's interfaces on a bus and give each its dev-id, in order.

        Raises:
            NotFoundError: no such device or bus.
            UsageError: the device has no type.
            ExistsError: it is on this bus already.
            ResourceError: the bus has given out its last dev-id.
        """
        self.check_plug(name, bus)
        found = self._bus(bus)
        if found.next_id + len(interfaces) - 1 > self._max_dev_id:
            raise ResourceError(f"bus {bus!r} has no dev-id left", bus=bus, limit=self._max_dev_id)
        slots = [Slot(bus, dev_id, name, interface) for dev_id, interface in enumerate(interfaces, start=found.next_id)]
        found.next_id += len(slots)
        found.slots.update((slot.dev_id, slot) for slot in slots)
        self.device(name).buses.append(bus)
        return slots

    def unplug(self, name: str, bus: str) -> list[Slot[InterfaceT]]:
        """Take a device off a bus; returns what left.

        Raises:
            NotFoundError: no such device or bus, or it is not plugged there.
        """
        record = self.device(name)
        found = self._bus(bus)
        if bus not in record.buses:
            raise NotFoundError(f"device {name!r} is not plugged into {bus!r}", device=name, bus=bus)
        record.buses.remove(bus)
        gone = [slot for slot in found.slots.values() if slot.device == name]
        for slot in gone:
            del found.slots[slot.dev_id]
        return gone

    def slots_of(self, name: str) -> Iterable[Slot[InterfaceT]]:
        """Every slot of a device, on every bus."""
        for bus in self.device(name).buses:
            yield from (slot for slot in self._buses[bus].slots.values() if slot.device == name)

    def _bus(self, name: str) -> _Bus[InterfaceT, MemberT]:
        try:
            return self._buses[name]
        except KeyError:
            fix = did_you_mean(name, self._buses, otherwise="`vbnet bus list` shows all")
            raise NotFoundError(f"there is no bus {name!r}; {fix}", bus=name) from None

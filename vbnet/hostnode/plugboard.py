"""Devices and where they are plugged: the object model joined with the live devices of their authors.

Every change is made in the model and in the device together or not at all, and is told to the guests on that bus before
the call returns. On unplug a guest hears DevDrop first, then ShmClose for each region it had shared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vbnet.bus import messages
from vbnet.bus.model import BusModel, DeviceRecord, Slot
from vbnet.errors import BusyError, InternalError, UsageError, VbnetError
from vbnet.hostnode import metrics
from vbnet.hostnode.device import Device, HostServices, Interface
from vbnet.hostnode.metrics import Tally
from vbnet.hostnode.registry import ClassRegistry
from vbnet.hostnode.rows import Row, open_row

if TYPE_CHECKING:
    from vbnet.hostnode.sessions import Session

__all__ = ["TYPE_ATTRIBUTE", "Plugboard", "contained"]

TYPE_ATTRIBUTE = "type"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,95}\Z")
_ABI_TYPE = re.compile(r"[a-z][a-z0-9_:.-]{0,63}\Z")


@contextmanager
def contained(services: HostServices, tally: Tally, device: str, what: str, *, swallow: bool = False) -> Iterator[None]:
    """Keep a device author's bug from hurting anyone but its caller.

    Args:
        services: for the log.
        tally: for the count.
        device: whose code runs inside.
        what: the method, for the log.
        swallow: nothing leaves, not even a refusal (for methods that must not raise).

    Raises:
        InternalError: in place of anything that is not of ``vbnet.errors``.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, VbnetError) and not isinstance(error, InternalError) and not swallow:
            raise
        tally.add(metrics.DEVICE_FAILURES)
        services.log.exception("device_failed", device=device, method=what)
        services.publish("device.failed", device=device, method=what, error=type(error).__name__)
        if not swallow:
            raise InternalError(
                f"device {device!r} failed in {what}: {type(error).__name__}; see the host's log", device=device
            ) from error


class Plugboard:
    """All buses and devices of this host.

    Args:
        registry: device classes.
        services: lent to devices.
        tally: counts.
    """

    def __init__(self, registry: ClassRegistry, services: HostServices, tally: Tally) -> None:
        self.registry = registry
        self.model: BusModel[Interface, Session] = BusModel()
        self._services = services
        self._tally = tally
        self._live: dict[str, Device] = {}
        self._bus_rows: dict[str, Row] = {}
        self._device_rows: dict[str, Row] = {}
        self._openers: dict[Slot[Interface], set[tuple[Session, int]]] = {}

    # ---- buses -----------------------------------------------------------------------------------------------------

    def create_bus(self, name: str, *, is_private: bool = False) -> None:
        """Make a bus; raises ExistsError."""
        self.model.create_bus(name, is_private=is_private)
        self._tally.shift(metrics.BUSES, 1)
        if not is_private:
            self._bus_rows[name] = open_row(metrics.BUS, {"bus": name}, self._services.counters)
        self._services.publish("bus.created", bus=name, is_private=is_private)

    def delete_bus(self, name: str) -> None:
        """Remove an empty bus; raises NotFoundError or BusyError."""
        self.model.delete_bus(name)
        self._tally.shift(metrics.BUSES, -1)
        if name in self._bus_rows:
            self._bus_rows.pop(name).close()
        self._services.publish("bus.deleted", bus=name)

    def joined(self, bus: str, change: int) -> None:
        """Note guests that joined a bus (1) or left it (-1)."""
        if bus in self._bus_rows:
            self._bus_rows[bus].shift("guests", change)

    def clear_bus(self, name: str) -> None:
        """Unplug everything from a bus without guests, and remove it."""
        for device in dict.fromkeys(slot.device for slot in self.model.slots(name)):
            self.unplug(device, name)
        self.delete_bus(name)

    # ---- devices ---------------------------------------------------------------------------------------------------

    def create_device(self, name: str) -> None:
        """Make a device without a type; raises ExistsError."""
        self.model.create_device(name)
        self._tally.shift(metrics.DEVICES, 1)
        self._services.publish("device.created", device=name)

    def set_attribute(self, name: str, attribute: str, text: str) -> None:
        """Set an attribute; the first must be ``type``, which is written once.

        Raises:
            NotFoundError: no such device, attribute or class.
            UsageError: the type is set, or is not set yet, or the text is no value.
            BusyError: locked while open.
        """
        record = self.model.device(name)
        if attribute == TYPE_ATTRIBUTE:
            self._set_type(record, text)
            return
        device = self._device(record)
        with contained(self._services, self._tally, name, f"set {attribute}"):
            device.attributes.set_text(attribute, text, is_open=self.is_open(name))
        self._services.publish("device.set", device=name, attribute=attribute, value=text)

    def insert(self, name: str, fd: int, file: str, *, is_read_only: bool) -> None:
        """Put an open file into a device; the descriptor stays the caller's.

        Raises:
            NotFoundError: no such device. UsageError: it has no type yet, or no use for such a file.
            BusyError: a guest has it open. UnsupportedError: it takes no file.
        """
        device = self._device(self.model.device(name))
        if self.is_open(name):
            raise BusyError(
                f"device {name!r} is open in a guest; it takes another file when nobody has it", device=name
            )
        with contained(self._services, self._tally, name, "insert"):
            device.insert(fd, file, is_read_only=is_read_only)
        self._services.publish("device.set", device=name, attribute="image", value=file)

    def attributes(self, name: str) -> dict[str, str]:
        """Every attribute of a device, ``type`` first if it is set; raises NotFoundError."""
        record = self.model.device(name)
        if record.type is None:
            return {}
        with contained(self._services, self._tally, name, "attributes"):
            return {TYPE_ATTRIBUTE: record.type, **self._live[name].attributes.texts()}

    def delete_device(self, name: str) -> None:
        """Remove a device that is plugged nowhere; raises NotFoundError or BusyError."""
        self.model.delete_device(name)
        self._tally.shift(metrics.DEVICES, -1)
        if name in self._device_rows:
            self._device_rows.pop(name).close()
        device = self._live.pop(name, None)
        if device is not None:
            with contained(self._services, self._tally, name, "release", swallow=True):
                device.release()
        self._services.publish("device.deleted", device=name)

    def plug(self, name: str, bus: str) -> list[Slot[Interface]]:
        """Put a device on a bus and tell everyone there.

        Raises:
            NotFoundError: no such device or bus. UsageError: no type yet. ExistsError: plugged there already.
            BusyError: the device refuses.
        """
        self.model.check_plug(name, bus)
        device = self._live[name]
        with contained(self._services, self._tally, name, "plug"):
            interfaces = list(device.plug(bus))
            try:
                _check_interfaces(interfaces)
                slots = self.model.plug(name, bus, interfaces)
                self._shown(bus, len(slots))
            except BaseException:
                device.unplug(bus)
                raise
        for slot in slots:
            event = messages.DevAdd(slot.dev_id, slot.interface.abi_type, slot.interface.name)
            for session in self.model.listeners(bus):
                session.post(event)
        self._services.publish("device.plugged", device=name, bus=bus, dev_ids=[slot.dev_id for slot in slots])
        return slots

    def unplug(self, name: str, bus: str) -> None:
        """Take a device off a bus, closing what guests have open there; raises NotFoundError."""
        slots = self.model.unplug(name, bus)
        self._shown(bus, -len(slots))
        for slot in slots:
            for session in self.model.listeners(bus):
                session.post(messages.DevDrop(slot.dev_id))
        for slot in slots:
            for session, handle in self._openers.pop(slot, set()):
                session.close(handle)
        with contained(self._services, self._tally, name, "unplug", swallow=True):
            self._live[name].unplug(bus)
        self._services.publish("device.unplugged", device=name, bus=bus, dev_ids=[slot.dev_id for slot in slots])

    def release_all(self) -> None:
        """Unplug and delete everything; the host is leaving."""
        for record in self.model.devices():
            for bus in list(record.buses):
                self.unplug(record.name, bus)
            self.delete_device(record.name)

    # ---- who has what open -----------------------------------------------------------------------------------------

    def check_open(self, slot: Slot[Interface]) -> None:
        """Raise BusyError if another open would be one too many."""
        if slot.interface.exclusive and self._openers.get(slot):
            holder = next(iter(self._openers[slot]))[0]
            raise BusyError(
                f"device {slot.dev_id} ({slot.device}) is open in guest {holder.name!r}, and lets in one at a time",
                dev_id=slot.dev_id,
                holder=holder.name,
            )

    def opened(self, slot: Slot[Interface], session: Session, handle: int) -> None:
        """Note an open."""
        row = self._device_rows[slot.device]
        row.add("opens")
        row.shift("openers", 1)
        self._openers.setdefault(slot, set()).add((session, handle))

    def closed(self, slot: Slot[Interface], session: Session, handle: int) -> None:
        """Note a close."""
        self._device_rows[slot.device].shift("openers", -1)
        openers = self._openers.get(slot)
        if openers is not None:
            openers.discard((session, handle))
            if not openers:
                del self._openers[slot]

    def called(self, slot: Slot[Interface]) -> None:
        """Note a call."""
        self._device_rows[slot.device].add("calls")

    def is_open(self, name: str) -> bool:
        """Whether any guest has any interface of this device open."""
        return any(self._openers.get(slot) for slot in self.model.slots_of(name))

    def openers(self, name: str) -> list[Session]:
        """Who has an interface of this device open; nobody of a device that there is not."""
        return [session for slot, openers in self._openers.items() if slot.device == name for session, _ in openers]

    def open_count(self, slot: Slot[Interface]) -> int:
        """How many have this interface open."""
        return len(self._openers.get(slot, ()))

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _shown(self, bus: str, change: int) -> None:
        if bus in self._bus_rows:
            self._bus_rows[bus].shift("interfaces", change)

    def _set_type(self, record: DeviceRecord, type_name: str) -> None:
        if record.type is None:
            device_class = self.registry.find(type_name)
            with contained(self._services, self._tally, record.name, "create"):
                self._live[record.name] = device_class.create(self._services, record.name)
            labels = {"device": record.name, "type": type_name}
            self._device_rows[record.name] = open_row(metrics.DEVICE, labels, self._services.counters)
        self.model.set_type(record.name, type_name)
        self._services.publish("device.set", device=record.name, attribute=TYPE_ATTRIBUTE, value=type_name)

    def _device(self, record: DeviceRecord) -> Device:
        if record.type is None:
            raise UsageError(f"device {record.name!r} has no type yet; set its type first", device=record.name)
        return self._live[record.name]


def _check_interfaces(interfaces: list[Interface]) -> None:
    if not interfaces:
        raise ValueError("a plug must show at least one interface")
    for interface in interfaces:
        if not _NAME.match(interface.name) or not _ABI_TYPE.match(interface.abi_type):
            raise ValueError(f"malformed interface {interface.name!r} of type {interface.abi_type!r}")

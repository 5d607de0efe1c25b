"""The object model against an obvious one: plain lists, no cleverness, everything recomputed."""

# ruff: noqa: D102 - each rule is the operation it is named after

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vbnet.bus.model import BusModel
from vbnet.errors import VbnetError

BUSES = st.sampled_from(["lan", "wan", "dmz"])
DEVICES = st.sampled_from(["a", "b", "c"])
MEMBERS = st.sampled_from(["m1", "m2", "m3"])


@dataclass
class ObviousBus:
    """A bus as a list of what is on it and a diary of what each member heard."""

    given: int = 0
    plugs: list[tuple[int, str, str]] = field(default_factory=list)
    heard: dict[str, list[tuple[str, int]] | None] = field(default_factory=dict)


class ModelMachine(RuleBasedStateMachine):
    """Drives both with the same operations; refusals must agree, and so must everything members hear."""

    def __init__(self) -> None:
        super().__init__()
        self.model: BusModel[str, str] = BusModel(max_dev_id=12)
        self.buses: dict[str, ObviousBus] = {}
        self.devices: dict[str, str | None] = {}
        self.heard: dict[tuple[str, str], list[tuple[str, int]]] = {}

    def agree(self, is_allowed: bool, action: object) -> object:
        """Do it in the model; it must be refused exactly when the obvious rules refuse it."""
        try:
            result = action()  # type: ignore[operator]
        except VbnetError:
            assert not is_allowed
            return None
        assert is_allowed
        return result

    def tell(self, bus: str, what: str, dev_id: int) -> None:
        """Deliver an event as the host does: to whom the model names."""
        for member in self.model.listeners(bus):
            self.heard[bus, member].append((what, dev_id))
        for diary in self.buses[bus].heard.values():
            if diary is not None:
                diary.append((what, dev_id))

    @rule(bus=BUSES)
    def create_bus(self, bus: str) -> None:
        self.agree(bus not in self.buses, lambda: self.model.create_bus(bus))
        self.buses.setdefault(bus, ObviousBus())

    @rule(bus=BUSES)
    def delete_bus(self, bus: str) -> None:
        found = self.buses.get(bus)
        is_allowed = found is not None and not found.plugs and not found.heard
        self.agree(is_allowed, lambda: self.model.delete_bus(bus))
        if is_allowed:
            del self.buses[bus]

    @rule(device=DEVICES)
    def create_device(self, device: str) -> None:
        self.agree(device not in self.devices, lambda: self.model.create_device(device))
        self.devices.setdefault(device, None)

    @rule(device=DEVICES, type_name=st.sampled_from(["echo", "venet"]))
    def set_type(self, device: str, type_name: str) -> None:
        is_allowed = device in self.devices and self.devices[device] is None
        self.agree(is_allowed, lambda: self.model.set_type(device, type_name))
        if is_allowed:
            self.devices[device] = type_name

    @rule(device=DEVICES)
    def delete_device(self, device: str) -> None:
        is_plugged = any(name == device for bus in self.buses.values() for _, name, _ in bus.plugs)
        is_allowed = device in self.devices and not is_plugged
        self.agree(is_allowed, lambda: self.model.delete_device(device))
        if is_allowed:
            del self.devices[device]

    @rule(device=DEVICES, bus=BUSES, count=st.integers(1, 3))
    def plug(self, device: str, bus: str, count: int) -> None:
        found = self.buses.get(bus)
        is_allowed = (
            found is not None
            and self.devices.get(device) is not None
            and all(name != device for _, name, _ in found.plugs)
            and found.given + count <= 12
        )
        interfaces = [f"if{index}" for index in range(count)]
        slots = self.agree(is_allowed, lambda: self.model.plug(device, bus, interfaces))
        if found is None or not is_allowed:
            return
        expected = [(found.given + 1 + index, device, name) for index, name in enumerate(interfaces)]
        assert expected == [(slot.dev_id, slot.device, slot.interface) for slot in slots]  # type: ignore[attr-defined]
        found.given += count
        found.plugs += expected
        for dev_id, _, _ in expected:
            self.tell(bus, "add", dev_id)

    @rule(device=DEVICES, bus=BUSES)
    def unplug(self, device: str, bus: str) -> None:
        found = self.buses.get(bus)
        gone = [] if found is None else [plug for plug in found.plugs if plug[1] == device]
        slots = self.agree(bool(gone), lambda: self.model.unplug(device, bus))
        if found is None or not gone:
            return
        assert [dev_id for dev_id, _, _ in gone] == [slot.dev_id for slot in slots]  # type: ignore[attr-defined]
        found.plugs = [plug for plug in found.plugs if plug[1] != device]
        for dev_id, _, _ in gone:
            self.tell(bus, "drop", dev_id)

    @rule(bus=BUSES, member=MEMBERS)
    def join(self, bus: str, member: str) -> None:
        found = self.buses.get(bus)
        is_allowed = found is not None and member not in found.heard
        self.agree(is_allowed, lambda: self.model.join(bus, member))
        if found is not None and is_allowed:
            found.heard[member] = None
            self.heard[bus, member] = []

    @rule(bus=BUSES, member=MEMBERS)
    def ready(self, bus: str, member: str) -> None:
        found = self.buses.get(bus)
        is_allowed = found is not None and member in found.heard and found.heard[member] is None
        slots = self.agree(is_allowed, lambda: self.model.ready(bus, member))
        if found is not None and is_allowed:
            self.heard[bus, member] = [("add", slot.dev_id) for slot in slots]  # type: ignore[attr-defined]
            found.heard[member] = [("add", dev_id) for dev_id, _, _ in found.plugs]

    @rule(bus=BUSES, member=MEMBERS)
    def leave(self, bus: str, member: str) -> None:
        found = self.buses.get(bus)
        self.agree(found is not None, lambda: self.model.leave(bus, member))
        if found is not None:
            found.heard.pop(member, None)
            self.heard.pop((bus, member), None)

    @rule(bus=BUSES, member=MEMBERS)
    def deafen(self, bus: str, member: str) -> None:
        found = self.buses.get(bus)
        self.agree(found is not None, lambda: self.model.deafen(bus, member))
        if found is not None and member in found.heard:
            found.heard[member] = None
            self.heard[bus, member] = []

    @invariant()
    def every_member_heard_exactly_what_happened(self) -> None:
        for name, bus in self.buses.items():
            for member, diary in bus.heard.items():
                assert (diary or []) == self.heard[name, member]

    @invariant()
    def both_show_the_same_buses(self) -> None:
        shown = {
            name: [(slot.dev_id, slot.device, slot.interface) for slot in self.model.slots(name)]
            for name in self.model.buses()
        }
        assert {name: bus.plugs for name, bus in self.buses.items()} == shown

    @invariant()
    def both_show_the_same_devices(self) -> None:
        assert self.devices == {record.name: record.type for record in self.model.devices()}


TestBusModel = ModelMachine.TestCase
TestBusModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

"""How devices of any class are made, typed, plugged, seen and taken away."""

import pytest

from tests.conformance.places import CATALOGUE, Facts, Place, Seat
from vbnet.bus.kinds import load
from vbnet.bus.messages import DevAdd, DevDrop
from vbnet.errors import ExistsError, NotFoundError, UsageError


def test_device_has_nothing_before_it_has_a_type(place: Place, bus: str, class_name: str) -> None:
    """Made first, typed second: until then there are no attributes, and it cannot be plugged."""
    with place.device(None) as name:
        assert ({}, None) == (place.operator.device_get(name).attributes, place.operator.device_get(name).type)
        with pytest.raises(UsageError):
            place.operator.device_plug(name, bus)
        with pytest.raises(UsageError):
            place.operator.device_set(name, "switch", "x")

        place.operator.device_set(name, "type", class_name)

        assert class_name == place.operator.device_get(name).type


def test_type_is_written_once(place: Place, device: str, class_name: str) -> None:
    """Neither another type nor the same one again is taken; the device stays what it is."""
    for other in (*CATALOGUE.classes, "no-such-class"):
        with pytest.raises(UsageError):
            place.operator.device_set(device, "type", other)

    assert class_name == place.operator.device_get(device).type


def test_type_that_is_not_there_is_not_taken(place: Place, class_name: str) -> None:
    """After a type nobody offers the device still has none, and can be given a real one."""
    with place.device(None) as name:
        with pytest.raises(NotFoundError):
            place.operator.device_set(name, "type", f"{class_name}-of-old")

        place.operator.device_set(name, "type", class_name)


def test_attributes_are_those_the_class_declares(place: Place, device: str, facts: Facts) -> None:
    """The operator sees every attribute of the class, in its order."""
    assert [*facts.attributes] == list(place.operator.device_get(device).attributes)


def test_class_is_listed_with_what_it_shows(place: Place, class_name: str, facts: Facts) -> None:
    """The list of classes names the ABI types; what a plug shows is among them."""
    [listed] = [row for row in place.operator.class_list() if row.name == class_name]

    assert class_name == facts.device_class.name
    assert {shown.abi_type for shown in facts.interfaces.values()} <= set(listed.abi_types)


def test_every_abi_type_has_a_driver_that_says_so(facts: Facts) -> None:
    """A guest can drive what a host can show: a driver is found by the ABI type and names the same one."""
    for shown in facts.interfaces.values():
        driver = load(CATALOGUE.drivers[shown.abi_type])

        assert isinstance(driver, type)
        assert shown.abi_type == driver().abi_type


def test_plug_and_unplug_are_seen_live(place: Place, bus: str, device: str, seat: Seat, facts: Facts) -> None:
    """A guest that is there hears DEVADD of each interface, then DEVDROP of each, once and in order."""
    dev_ids = place.operator.device_plug(device, bus)
    added = [seat.next_event() for _ in dev_ids]
    place.operator.device_unplug(device, bus)
    dropped = [seat.next_event() for _ in dev_ids]

    shown = [(each.abi_type, each.name) for each in facts.interfaces.values()]
    assert [DevAdd(dev_id, *what) for dev_id, what in zip(dev_ids, shown, strict=True)] == added
    assert [DevDrop(dev_id) for dev_id in dev_ids] == dropped
    assert [] == seat.devices()


def test_guest_that_comes_later_sees_what_is_there_once(place: Place, bus: str, device: str, facts: Facts) -> None:
    """Devices present are replayed when a guest becomes ready, each exactly once."""
    dev_ids = place.operator.device_plug(device, bus)

    with place.seat(bus) as late:
        seen = [(found.dev_id, found.abi_type, found.name) for found in late.devices()]

    shown = [(each.abi_type, each.name) for each in facts.interfaces.values()]
    assert [(dev_id, *what) for dev_id, what in zip(dev_ids, shown, strict=True)] == seen


def test_numbers_are_never_given_twice(place: Place, bus: str, device: str) -> None:
    """Each plug has new ids, greater than all before on this bus."""
    given: list[int] = []
    for _ in range(4):
        given += place.operator.device_plug(device, bus)
        place.operator.device_unplug(device, bus)

    assert given == sorted(set(given))


def test_device_is_on_a_bus_once(place: Place, bus: str, device: str) -> None:
    """A second plug into the same bus is refused, and the first one stays."""
    dev_ids = place.operator.device_plug(device, bus)

    with pytest.raises(ExistsError):
        place.operator.device_plug(device, bus)

    plugs = place.operator.device_get(device).plugs
    assert [(bus, dev_id) for dev_id in dev_ids] == [(plug.bus, plug.dev_id) for plug in plugs]


def test_device_that_is_plugged_is_not_deleted(place: Place, bus: str, device: str) -> None:
    """Deleting needs the device off every bus; by force it is taken off first."""
    place.operator.device_plug(device, bus)
    with pytest.raises(Exception, match=device):
        place.operator.device_delete(device)

    place.operator.device_delete(device, force=True)

    with pytest.raises(NotFoundError):
        place.operator.device_get(device)


def test_unplugged_device_can_move_to_another_bus(place: Place, bus: str, device: str) -> None:
    """Taken off one bus, any device goes onto another."""
    place.operator.device_plug(device, bus)
    place.operator.device_unplug(device, bus)

    with place.bus() as other:
        assert place.operator.device_plug(device, other)
        place.operator.device_unplug(device, other)


def test_unplugging_what_is_not_there_is_refused(place: Place, bus: str, device: str) -> None:
    """A device that is not on this bus, or a bus that is not there, is named."""
    with pytest.raises(NotFoundError):
        place.operator.device_unplug(device, bus)
    with pytest.raises(NotFoundError):
        place.operator.device_plug(device, "no-such-bus")

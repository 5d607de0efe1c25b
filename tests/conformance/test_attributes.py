"""Attributes of devices of any class: what they say can be set, and what is locked or read-only stays."""

import pytest

from tests.conformance.places import Facts, Place, Seat
from vbnet.errors import BusyError, NotFoundError, UsageError

JUNK = ["", " ", "-1", "99999999999999999999", "1e9", "ü", "true", "0x10", "\0", "x" * 4000, "; rm -rf", "nan"]


def texts(place: Place, device: str) -> dict[str, str]:
    """Return the attributes of a device, as the operator reads them."""
    return place.operator.device_get(device).attributes


def test_what_is_shown_can_be_set(place: Place, device: str, facts: Facts) -> None:
    """Writing back what was read changes nothing, unless it is read-only."""
    before = texts(place, device)

    for name, text in before.items():
        if not facts.attributes[name].is_read_only:
            place.operator.device_set(device, name, text)

    assert before == texts(place, device)


def test_what_is_read_only_is_not_written(place: Place, device: str, facts: Facts) -> None:
    """The operator cannot write what only the device knows."""
    for name, text in texts(place, device).items():
        if facts.attributes[name].is_read_only:
            with pytest.raises(UsageError):
                place.operator.device_set(device, name, text)


def test_junk_is_refused_or_taken_but_never_half(place: Place, device: str, facts: Facts) -> None:
    """Any text either becomes the value, readable again as itself, or is refused and the old value stays."""
    for name, attribute in facts.attributes.items():
        if attribute.is_read_only:
            continue
        for junk in JUNK:
            before = texts(place, device)
            try:
                place.operator.device_set(device, name, junk)
            except UsageError:
                assert before == texts(place, device), (name, junk)
            else:
                after = texts(place, device)
                assert attribute.format(attribute.parse(junk)) == after[name]
                place.operator.device_set(device, name, after[name])
                assert after == texts(place, device)


def test_attribute_nobody_declared_is_refused_with_those_there_are(place: Place, device: str, facts: Facts) -> None:
    """The message lists what could have been meant."""
    with pytest.raises(NotFoundError) as refusal:
        place.operator.device_set(device, "no-such-attribute", "1")

    assert all(name in str(refusal.value) for name in facts.attributes)


def test_attributes_are_documented(facts: Facts) -> None:
    """Every attribute has its sentence, and the default it was declared with can be written and read."""
    for attribute in facts.attributes.values():
        assert len(attribute.help) > 5
        assert attribute.default == attribute.parse(attribute.format(attribute.default))


def test_what_is_locked_changes_only_while_nobody_has_it_open(
    place: Place, bus: str, device: str, seat: Seat, facts: Facts
) -> None:
    """Open, a locked attribute is busy and any other can be set; closed, it can be set again."""
    place.operator.device_plug(device, bus)
    before = texts(place, device)
    for found in seat.devices():
        handle = seat.open(found, facts.interfaces[found.name].versions[0])
        for name, attribute in facts.attributes.items():
            if attribute.is_read_only:
                continue
            if attribute.is_locked_while_open:
                with pytest.raises(BusyError):
                    place.operator.device_set(device, name, before[name])
            else:
                place.operator.device_set(device, name, before[name])
        seat.close_handle(handle)

    for name, attribute in facts.attributes.items():
        if attribute.is_locked_while_open and not attribute.is_read_only:
            place.operator.device_set(device, name, before[name])

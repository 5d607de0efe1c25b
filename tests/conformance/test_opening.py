"""Opening devices of any class: versions, handles, calls, memory, closing, and openers that vanish."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.conformance.places import Facts, Place, Seat
from tests.support.processes import Child, ProcessState
from tests.support.programs import open_all_program
from tests.support.waiting import eventually
from vbnet.bus.messages import DevAdd, DevDrop, ShmClose
from vbnet.errors import (
    BusyError,
    InternalError,
    NotFoundError,
    PeerFault,
    PeerGone,
    TooLargeError,
    UsageError,
    VbnetError,
)
from vbnet.guestnode.proxy import ProxyDevice, RegionSpec, SharedSignal

FUNCTIONS = [*range(24), 255, 0xFFFF, 0xFFFF_FFFF]
LENGTHS = [0, 1, 3, 4, 7, 8, 9, 64, 4096, 60_000]
PAGE = 4096


@pytest.fixture
def plugged(place: Place, bus: str, device: str, seat: Seat) -> list[ProxyDevice]:
    """A device on the bus: its interfaces, as a guest there sees them."""
    dev_ids = place.operator.device_plug(device, bus)
    for _ in dev_ids:
        assert isinstance(seat.next_event(), DevAdd)
    return seat.devices()


@pytest.fixture
def unchanged(place: Place, seat: Seat) -> Iterator[None]:
    """Show that the host holds as many descriptors and mappings after a test as before it."""
    del seat  # its own are there before
    before = ProcessState.of(place.host_pid).fds
    yield
    eventually(lambda: ProcessState.of(place.host_pid).fds <= before, "the host holds what it held before")


def version(facts: Facts, device: ProxyDevice) -> int:
    """Return a version that the interface speaks."""
    return facts.interfaces[device.name].versions[0]


def share(seat: Seat, handle: int, region: RegionSpec) -> SharedSignal | None:
    """Share a region; close the guest's ends of its signal, as only the refusal or success matters."""
    signal = seat.run(seat.session.share(handle, region))
    if signal is not None:
        signal.close()
    return signal


def share_anything(seat: Seat, handle: int) -> list[int]:
    """Share every region the ABI takes, at a place of its own; give their numbers."""
    taken = []
    for number in range(4):
        for length, signal_at in ((PAGE, PAGE - 640), (PAGE, 0x180), (PAGE // 2, 0x180), (64, -1)):
            try:
                share(seat, handle, RegionSpec(number, PAGE * (2 + number), length, 0, number % 8, signal_at))
            except UsageError:
                continue
            taken.append(number)
            break
    return taken


# --- versions and handles -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchanged")
def test_only_versions_that_are_spoken_can_be_opened(seat: Seat, plugged: list[ProxyDevice], facts: Facts) -> None:
    """Any other version is refused with those there are, and opens nothing."""
    for device in plugged:
        spoken = facts.interfaces[device.name].versions
        for wrong in {0, max(spoken) + 1, 0xFFFF_FFFF} - set(spoken):
            with pytest.raises(UsageError):
                seat.open(device, wrong)
        for right in spoken:
            seat.close_handle(seat.open(device, right))


def test_exclusive_interface_lets_in_one_at_a_time(
    place: Place, bus: str, seat: Seat, plugged: list[ProxyDevice], facts: Facts
) -> None:
    """Held by one, an exclusive interface is busy for everybody, until it is closed."""
    with place.seat(bus) as rival:
        for device in (device for device in plugged if facts.interfaces[device.name].exclusive):
            speaks = version(facts, device)
            held = seat.open(device, speaks)
            for guest in (seat, rival):
                with pytest.raises(BusyError):
                    guest.open(device, speaks)
            seat.close_handle(held)
            rival.close_handle(rival.open(device, speaks))


def test_interface_that_is_not_exclusive_lets_in_every_guest(
    place: Place, bus: str, seat: Seat, plugged: list[ProxyDevice], facts: Facts
) -> None:
    """All guests of a bus have it open at once; what one of them shares or closes is nothing to the others."""
    with ExitStack() as stack:
        guests = [seat, *(stack.enter_context(place.seat(bus)) for _ in range(3))]
        for device in (device for device in plugged if not facts.interfaces[device.name].exclusive):
            handles = [guest.open(device, version(facts, device)) for guest in guests]
            shared = [share_anything(guest, handle) for guest, handle in zip(guests, handles, strict=True)]
            guests[0].close_handle(handles[0])
            refuse_all(guests[0], handles[0])
            for guest, handle in zip(guests[1:], handles[1:], strict=True):
                answered_or_refused(guest, handle, 0, b"")
                guest.close_handle(handle)

            assert [shared[0]] * len(guests) == shared


def test_forged_handle_opens_nothing(
    place: Place, bus: str, seat: Seat, plugged: list[ProxyDevice], facts: Facts
) -> None:
    """A number not given to this very guest is no handle: guessed, closed, another guest's, or out of range."""
    with place.seat(bus) as thief:
        for device in plugged:
            handle = seat.open(device, version(facts, device))
            for forged in {0, handle + 1, handle - 1, handle ^ (1 << 40), (1 << 63) - 1} - {handle, -1}:
                refuse_all(seat, forged)
            refuse_all(thief, handle)
            seat.close_handle(handle)
            refuse_all(seat, handle)


def refuse_all(seat: Seat, handle: int) -> None:
    """Show that a number is refused as a handle by every verb."""
    with pytest.raises(NotFoundError):
        seat.call(handle, 0)
    with pytest.raises(NotFoundError):
        share(seat, handle, RegionSpec(0, PAGE, 64, 0, 0, -1))
    with pytest.raises(NotFoundError):
        seat.close_handle(handle)


def test_device_of_another_bus_cannot_be_named(place: Place, seat: Seat, plugged: list[ProxyDevice]) -> None:
    """A number is looked up on the guest's own bus only."""
    with place.bus() as elsewhere, place.seat(elsewhere) as stranger:
        for device in plugged:
            with pytest.raises(NotFoundError):
                stranger.open(device, 1)
    assert len(plugged) == len(seat.devices())


# --- calls --------------------------------------------------------------------------------------------------------


def test_call_of_any_function_with_any_data_is_answered_or_refused(
    seat: Seat, plugged: list[ProxyDevice], facts: Facts
) -> None:
    """Known or unknown, too short or too long: never a bug of the device, and the device is as usable as before."""
    for device in plugged:
        handle = seat.open(device, version(facts, device))
        for function in FUNCTIONS:
            for length in LENGTHS:
                answered_or_refused(seat, handle, function, bytes(length))
                answered_or_refused(seat, handle, function, b"\xff" * length)
        seat.close_handle(handle)
        seat.close_handle(seat.open(device, version(facts, device)))


def answered_or_refused(seat: Seat, handle: int, function: int, data: bytes) -> None:
    """Call; what is refused must not be refused for a bug, which is an InternalError and no other."""
    with suppress(UsageError, BusyError, PeerFault):
        seat.call(handle, function, data)


def test_unknown_function_is_refused(seat: Seat, plugged: list[ProxyDevice], facts: Facts) -> None:
    """A number far beyond any function's is the caller's mistake."""
    for device in plugged:
        handle = seat.open(device, version(facts, device))
        with pytest.raises(UsageError):
            seat.call(handle, 0xFFFF_FFFF)
        seat.close_handle(handle)


def test_data_longer_than_a_call_takes_is_refused_whole(seat: Seat, plugged: list[ProxyDevice], facts: Facts) -> None:
    """Beyond the host's limits no function is reached, and the guest is told the limit."""
    for device in plugged:
        handle = seat.open(device, version(facts, device))
        for length in (61_441, 65_000, 65_536, 900_000):
            with pytest.raises(TooLargeError):
                seat.call(handle, 0, bytes(length))
        seat.close_handle(handle)


# --- memory -------------------------------------------------------------------------------------------------------

MISPLACED = {
    "in the header": RegionSpec(0, 0, PAGE, 0, 0, -1),
    "out of the header": RegionSpec(0, PAGE - 64, PAGE, 0, 0, -1),
    "behind the end": RegionSpec(0, Seat.RAM_BYTES, 64, 0, 0, -1),
    "over the end": RegionSpec(0, Seat.RAM_BYTES - 64, 128, 0, 0, -1),
    "far out": RegionSpec(0, (1 << 63) - 1, 64, 0, 0, -1),
    "as long as can be said": RegionSpec(0, PAGE, (1 << 63) - 1, 0, 0, -1),
    "around the end of the numbers": RegionSpec(0, (1 << 63) - PAGE, (1 << 63) - PAGE, 0, 0, -1),
    "signal over its end": RegionSpec(0, PAGE, 64, 0, 0, 52),
    "signal far out": RegionSpec(0, PAGE, 64, 0, 0, (1 << 63) - 4),
    "signal misaligned": RegionSpec(0, PAGE, PAGE, 0, 0, 0x181),
}
UNLAWFUL = {
    "empty": RegionSpec(0, PAGE, 0, 0, 0, -1),
    "of negative length": RegionSpec(0, PAGE, -64, 0, 0, -1),
    "at a negative offset": RegionSpec(0, -PAGE, 64, 0, 0, -1),
    "of too high a priority": RegionSpec(0, PAGE, 64, 0, 8, -1),
    "of a number too large": RegionSpec(1 << 32, PAGE, 64, 0, 0, -1),
}


@pytest.mark.usefixtures("unchanged")
def test_memory_that_is_not_the_guests_to_share_is_refused(
    seat: Seat, plugged: list[ProxyDevice], facts: Facts
) -> None:
    """Every region is checked before the device hears of it: header, bounds, overflow, signal; nothing is kept."""
    for device in plugged:
        handle = seat.open(device, version(facts, device))
        for where, region in (MISPLACED | UNLAWFUL).items():
            for number in (region.id, 1, 0xFFFF_FFFF):
                spec = RegionSpec(
                    max(number, region.id),
                    region.offset,
                    region.length,
                    region.flags,
                    region.priority,
                    region.signal_offset,
                )
                with pytest.raises(VbnetError) as refusal:
                    share(seat, handle, spec)
                assert not isinstance(refusal.value, InternalError), where
        seat.close_handle(handle)


@pytest.mark.usefixtures("unchanged")
def test_region_the_device_does_not_know_is_refused(seat: Seat, plugged: list[ProxyDevice], facts: Facts) -> None:
    """Lawful memory under a number the ABI has no use for is refused, with a signal as without."""
    for device in plugged:
        handle = seat.open(device, version(facts, device))
        for signal_at in (-1, 0x180):
            with pytest.raises(UsageError):
                share(seat, handle, RegionSpec(0xFFFF_FFFF, PAGE, PAGE, 0, 0, signal_at))
        seat.close_handle(handle)


def test_region_is_shared_once(seat: Seat, plugged: list[ProxyDevice], facts: Facts) -> None:
    """What was taken cannot be shared again under the same number while the device is open."""
    for device in plugged:
        handle = seat.open(device, version(facts, device))
        for number in share_anything(seat, handle):
            for signal_at in (-1, 0x180):
                with pytest.raises(UsageError):
                    share(seat, handle, RegionSpec(number, PAGE * 8, PAGE, 0, 0, signal_at))
        seat.close_handle(handle)


# --- closing ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchanged")
def test_close_frees_everything_and_the_device_opens_again(
    seat: Seat, plugged: list[ProxyDevice], facts: Facts
) -> None:
    """Regions and signals go with the handle, each with its SHMCLOSE; opened anew, the same regions can be shared."""
    for device in plugged:
        shared: list[list[int]] = []
        for _ in range(3):
            handle = seat.open(device, version(facts, device))
            shared.append(share_anything(seat, handle))
            for function in range(16):
                answered_or_refused(seat, handle, function, b"")
            seat.close_handle(handle)
        assert shared[0] == shared[1] == shared[2]
        closed = 0
        while closed < sum(map(len, shared)):
            closed += isinstance(seat.next_event(), ShmClose)


@pytest.mark.usefixtures("unchanged")
def test_unplug_while_open_ends_the_connection_and_frees_it(  # noqa: PLR0917 - fixtures
    place: Place, bus: str, device: str, seat: Seat, plugged: list[ProxyDevice], facts: Facts
) -> None:
    """The guest hears DEVDROP and SHMCLOSE, its handles are worth nothing; plugged anew the device works."""
    handles = [seat.open(each, version(facts, each)) for each in plugged]
    shared = sum(len(share_anything(seat, handle)) for handle in handles)

    place.operator.device_unplug(device, bus)

    events = [seat.next_event() for _ in range(len(plugged) + shared)]
    events = [event for event in events if isinstance(event, DevDrop | ShmClose)]
    assert [DevDrop(each.dev_id) for each in plugged] == [event for event in events if isinstance(event, DevDrop)]
    for handle in handles:
        refuse_all(seat, handle)
    for each in plugged:
        with pytest.raises(PeerGone):
            seat.run(each.open(version(facts, each)))
    place.operator.device_plug(device, bus)
    for _ in plugged:
        seat.next_event()
    for each in seat.devices():
        seat.close_handle(seat.open(each, version(facts, each)))


@pytest.mark.usefixtures("unchanged")
def test_reset_closes_everything_and_shows_the_devices_anew(
    seat: Seat, plugged: list[ProxyDevice], facts: Facts
) -> None:
    """After re-negotiation no old handle is worth anything, and the same devices can be opened."""
    handles = [seat.open(each, version(facts, each)) for each in plugged]
    for handle in handles:
        share_anything(seat, handle)

    seat.run(seat.session.reset())

    for handle in handles:
        refuse_all(seat, handle)
    assert [each.dev_id for each in plugged] == [each.dev_id for each in seat.devices()]
    for each in seat.devices():
        seat.close_handle(seat.open(each, version(facts, each)))


@pytest.mark.usefixtures("unchanged")
def test_opener_killed_with_everything_open_leaves_nothing(
    place: Place, bus: str, seat: Seat, plugged: list[ProxyDevice], facts: Facts
) -> None:
    """``kill -9``: what the process had open can be opened by another guest, and is not counted as open any more."""
    name = place.name("victim")
    with Child(open_all_program, place.run_dir.path, name, bus) as victim:
        assert len(plugged) == victim.hear()
        victim.kill()
        eventually(lambda: name not in {guest.name for guest in place.operator.guest_list()}, "the guest is gone")

    for each in plugged:
        seat.close_handle(seat.open(each, version(facts, each)))

"""Drivers of any kind at work: they start again after a reset, and leave nothing when their process is killed."""

from contextlib import suppress

import pytest

from tests.conformance.places import Place, Seat
from tests.support.processes import Child, ProcessState
from tests.support.programs import drive_all_program
from tests.support.waiting import PATIENCE, eventually
from vbnet.errors import UsageError


@pytest.fixture
def dev_ids(place: Place, bus: str, device: str) -> list[int]:
    """Put the device on the bus, before any guest comes."""
    return place.operator.device_plug(device, bus)


@pytest.mark.usefixtures("dev_ids")
def test_drivers_start_again_after_a_reset(seat: Seat) -> None:
    """Re-negotiation ends each driver at work, whatever it shared and however often; each device is driven anew."""
    seen: list[object] = []
    for _ in range(3):
        for found in seat.devices():
            with suppress(UsageError):  # a TAP, say, is driven in a namespace only
                seen.append(seat.run(seat.session.bind(found.name, PATIENCE)))
        seat.run(seat.session.reset())

    assert len(seen) == len({id(driver) for driver in seen})
    assert 0 == len(seen) % 3


@pytest.mark.usefixtures("dev_ids")
def test_process_killed_with_drivers_at_work_leaves_nothing(place: Place, bus: str) -> None:
    """``kill -9``, again and again: the host holds what it held, and the next guest can drive every device."""
    held = []
    for _ in range(3):
        with Child(drive_all_program, place.run_dir.path, place.name("victim"), bus) as victim:
            assert "driving" == victim.hear()
            victim.kill()
        eventually(lambda: bus not in {guest.bus for guest in place.operator.guest_list()}, "the guest is gone")
        held.append(ProcessState.of(place.host_pid).fds)

    eventually(lambda: ProcessState.of(place.host_pid).fds <= held[0], "the host holds what it held")

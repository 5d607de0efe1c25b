"""Guests that are killed leave nothing in the host, however many: descriptors, mappings, memory, ports, sessions."""

import pytest

from tests.support.lab import Lab, Net
from tests.support.processes import Child, ProcessState
from tests.support.programs import driving_program, nic_program, serving_program
from tests.support.waiting import eventually

WARM_UP = 10
"""Cycles after which the host's own pools have their size."""
RSS_KIB_A_CYCLE = 4
"""What resident memory may grow by, as allocators keep pages; one guest's RAM alone is 2048 KiB."""
ANONYMOUS = 8
"""By how many anonymous mappings allocators may differ from themselves; one that each guest left would be more."""
RSS_KIB = 512
"""What it may grow by once, however few cycles there are."""


def cycle(lab: Lab, names: list[str], count: int) -> ProcessState:
    """Have guests connect, bring their NIC up and be killed, one after another; give what the host then has."""
    for number in range(count):
        name = names[number % len(names)]
        with Child(nic_program, lab.run_dir.path, f"{name}-{next(lab.numbers)}", name) as guest:
            assert guest.hear() == "up"
            assert f"{name}.eth0" in lab.ports()
            guest.kill()
        eventually(lambda: not lab.operator.guest_list(), "the guest is gone")
        assert lab.ports() == {}
    return ProcessState.of(lab.host.pid)


def check_cycles(lab: Lab, net: Net, count: int) -> None:
    """Show that the host holds the same after ``count`` killed guests as before."""
    names = [net.plug_nic(), net.plug_nic("venet-loopback")]
    before = cycle(lab, names, WARM_UP)

    after = cycle(lab, names, count)

    assert (before.fds, before.shared) == (after.fds, after.shared)
    assert after.anonymous - before.anonymous < ANONYMOUS
    assert after.rss_kib - before.rss_kib < RSS_KIB_A_CYCLE * count


def test_a_hundred_killed_guests_leave_nothing_in_the_host(lab: Lab, net: Net) -> None:
    """Connect, open, ``kill -9``, a hundred times: no descriptor, mapping or memory is left."""
    check_cycles(lab, net, 100)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_killed_guests_leave_nothing_in_the_host(lab: Lab, net: Net) -> None:
    """The same a thousand times, so that a leak of a few KiB each shows."""
    check_cycles(lab, net, 1000)


def check_serving(lab: Lab, count: int) -> None:
    """Show that the host holds the same after ``count`` guests that were killed while they served a signal."""
    bus, device = f"signals-{next(lab.numbers)}", f"irq-{next(lab.numbers)}"
    lab.operator.bus_create(bus)
    lab.operator.device_create(device, "intc")
    lab.operator.device_plug(device, bus)
    states = []
    for cycles in (WARM_UP, count):
        for _ in range(cycles):
            with Child(serving_program, lab.run_dir.path, f"guest-{next(lab.numbers)}", bus) as guest:
                assert guest.hear() == "serving"
                guest.kill()
            eventually(lambda: not lab.operator.guest_list(), "the guest is gone")
            assert [] == lab.operator.signal_list()
        states.append(ProcessState.of(lab.host.pid))

    before, after = states
    assert (before.fds, before.shared) == (after.fds, after.shared)
    assert after.anonymous - before.anonymous < ANONYMOUS
    assert after.rss_kib - before.rss_kib < RSS_KIB_A_CYCLE * count + RSS_KIB


def test_guests_killed_while_they_serve_a_signal_leave_nothing_in_the_host(lab: Lab) -> None:
    """Levels, outbox, named signal and doorbell, its handler running: ``kill -9``, twenty times."""
    check_serving(lab, 20)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_guests_killed_while_they_serve_leave_nothing_in_the_host(lab: Lab) -> None:
    """The same two hundred times, so that a leak of a few KiB each shows."""
    check_serving(lab, 200)


def test_operators_killed_while_they_drive_a_signal_leave_nothing_in_the_host(lab: Lab) -> None:
    """One signal driven, another exported: ``kill -9``, twenty times; the last export's eventfd is the signal's."""
    lab.operator.signal_create("alarm")
    lab.operator.signal_create("bell")
    states = []
    for cycles in (WARM_UP, 20):
        for _ in range(cycles):
            with Child(driving_program, lab.run_dir.path) as operator:
                assert operator.hear() == "driving"
                assert 1 == lab.operator.node_info().counters["vbnet_attach_drives"]
                operator.kill()
            eventually(lambda: not lab.operator.node_info().counters["vbnet_attach_drives"], "nothing is driven")
        states.append(ProcessState.of(lab.host.pid))

    before, after = states
    assert (before.fds, before.shared) == (after.fds, after.shared)
    assert after.anonymous - before.anonymous < ANONYMOUS
    for signal in ("alarm", "bell"):
        lab.operator.signal_destroy(signal)

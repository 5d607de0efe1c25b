"""A guest that makes a doorbell block is not rung any more; the host's event loop never waits for it, others hardly.

The test's own process is the guests. Nobody reads a kick doorbell of an echo device, so each guest can see by its own
copy whether the host rang it.
"""

import os
import select
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.doorbells import blocking
from tests.support.lab import Net, on_loop
from tests.support.waiting import PATIENCE
from vbnet.devices.echo.driver import Cell, CellDriver

FAULTS = "vbnet_guest_faults_total"
REFUSED = 'vbnet_bus_refused_total{code="EPROTO"}'


class CellGuest:
    """A guest with cells of echo devices of its own.

    Args:
        cells: how many; each has a device and a signal.

    Attributes:
        guest: of this process. device: that of the first cell.
        kick_fds, call_fds: its copies of the signals' doorbells.
    """

    def __init__(self, net: Net, cells: int = 1) -> None:
        self._net, self._bus = net, net.bus(net.name())
        for number in range(cells):
            net.operator.device_plug(net.device(f"{self._bus}.echo{number}", "echo"), self._bus)
        self.join()

    def join(self) -> None:
        """Join, open the devices and share their cells with a signal each."""
        self.guest = self._net.guest(self._bus)
        proxies = [device for device in self.guest.session.devices if device.name == "cell0"]
        self.device = f"{self._bus}/{proxies[0].dev_id}"
        self._cells: list[Cell] = [on_loop(self.guest, CellDriver().probe(proxy)) for proxy in proxies]
        self._signals = [cell.signal for cell in self._cells if cell.signal is not None]
        self.kick_fds = [signal.kick_fd for signal in self._signals]
        self.call_fds = [signal.call_fd for signal in self._signals]

    def kick(self) -> None:
        """Have the host ring the kick doorbells; it has taken the messages when this returns."""
        for signal in self._signals:
            self._run(self.guest.session.kick(signal))
        self._run(self.guest.session.list_devices())

    def reverse(self) -> None:
        """Have the devices ring the call doorbells."""
        for cell in self._cells:
            self._run(cell.reverse())

    def _run(self, work: Coroutine[Any, Any, object]) -> None:
        on_loop(self.guest, work)


def rings(fd: int) -> int:
    """Wait until a doorbell was rung; how often it was."""
    select.select([fd], [], [], PATIENCE)
    return os.eventfd_read(fd)


Bell = tuple[Callable[[CellGuest], None], Callable[[CellGuest], int]]
BELLS: dict[str, Bell] = {
    "kick": (CellGuest.kick, lambda guest: guest.kick_fds[0]),
    "call": (CellGuest.reverse, lambda guest: guest.call_fds[0]),
}


@pytest.mark.parametrize("bell", BELLS)
def test_doorbell_that_its_guest_blocked_does_not_stop_the_event_loop(net: Net, bell: str) -> None:
    """The host answers, tells and counts the fault once, and rings the other guest."""
    ask, doorbell = BELLS[bell]
    hostile, honest = CellGuest(net), CellGuest(net)
    events = net.events("guest.fault")
    before = net.operator.node_info().counters[FAULTS]

    with blocking(doorbell(hostile)):
        for _ in range(3):
            ask(hostile)
        ask(honest)
        answered = net.operator.node_info().name
        event = events.next("guest.fault", guest=hostile.guest.name)
        rung = rings(doorbell(honest))
        ask(hostile)

    assert ("test", 1) == (answered, rung)
    assert ("doorbell_blocked", hostile.device) == (event["rule"], event["device"])
    assert 1 == net.operator.node_info().counters[FAULTS] - before


@pytest.mark.parametrize("bell", BELLS)
def test_guest_that_makes_many_doorbells_block_does_so_once(net: Net, bell: str) -> None:
    """What else it had rung leaves the queue with the first that blocked, so others wait for one and not for each."""
    ask, doorbell = BELLS[bell]
    hostile, honest = CellGuest(net, cells=8), CellGuest(net)
    events = net.events("guest.fault")
    before = net.operator.node_info().counters.get(FAULTS, 0)

    with ExitStack() as stack:
        for fd in (*hostile.kick_fds, *hostile.call_fds):
            stack.enter_context(blocking(fd))
        ask(hostile)
        ask(honest)
        rung = rings(doorbell(honest))
        events.next("guest.fault", guest=hostile.guest.name)
        faults = net.operator.node_info().counters[FAULTS] - before

    assert (1, 1) == (rung, faults)


def test_guest_whose_doorbell_blocked_is_refused_until_it_joins_anew(net: Net) -> None:
    """Kicks by message of any of its signals earn a refusal each, even when nothing would block any more."""
    hostile = CellGuest(net, cells=2)
    events = net.events("guest.fault")
    with blocking(hostile.kick_fds[0]):
        hostile.kick()
        events.next("guest.fault", guest=hostile.guest.name)
    before = net.operator.node_info().counters.get(REFUSED, 0)

    hostile.kick()
    refused = net.operator.node_info().counters[REFUSED] - before
    hostile.guest.close()
    hostile.join()
    hostile.kick()

    assert (2, 1, 1) == (refused, *map(rings, hostile.kick_fds))

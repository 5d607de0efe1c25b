"""A guest that makes its doorbell block loses that signal; the host's event loop never waits for it.

The test's own process is the guests. Nobody reads a kick doorbell of an echo device, so each guest can see by its own
copy whether the host rang it.
"""

import os
import select
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.support.doorbells import blocking
from tests.support.lab import Net, on_loop
from tests.support.waiting import PATIENCE
from vbnet.devices.echo.driver import Cell, CellDriver

FAULTS = "vbnet_guest_faults_total"
REFUSED = 'vbnet_bus_refused_total{code="EPROTO"}'


class CellGuest:
    """A guest with a cell of an echo device of its own.

    Attributes:
        guest: of this process. cell: its cell. kick_fd, call_fd: its copies of the signal's doorbells.
    """

    def __init__(self, net: Net) -> None:
        name = net.bus(net.name())
        net.operator.device_plug(net.device(f"{name}.echo", "echo"), name)
        self.guest = net.guest(name)
        device = next(device for device in self.guest.session.devices if device.name == "cell0")
        self.device = f"{name}/{device.dev_id}"
        self._proxy = device
        self.share()

    def share(self) -> None:
        """Open the device and share a cell with a signal."""
        self.cell: Cell = on_loop(self.guest, CellDriver().probe(self._proxy))
        assert self.cell.signal is not None
        self._signal = self.cell.signal
        self.kick_fd, self.call_fd = self._signal.kick_fd, self._signal.call_fd

    def kick(self) -> None:
        """Have the host ring the kick doorbell; it has taken the message when this returns."""
        self._run(self.guest.session.kick(self._signal))
        self._run(self.guest.session.list_devices())

    def reverse(self) -> None:
        """Have the device ring the call doorbell."""
        self._run(self.cell.reverse())

    def _run(self, work: Coroutine[Any, Any, object]) -> None:
        on_loop(self.guest, work)


def rings(fd: int) -> int:
    """Wait until a doorbell was rung; how often it was."""
    select.select([fd], [], [], PATIENCE)
    return os.eventfd_read(fd)


Bell = tuple[Callable[[CellGuest], None], Callable[[CellGuest], int]]
BELLS: dict[str, Bell] = {
    "kick": (CellGuest.kick, lambda guest: guest.kick_fd),
    "call": (CellGuest.reverse, lambda guest: guest.call_fd),
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


def test_signal_whose_doorbell_blocked_is_refused_until_it_is_shared_anew(net: Net) -> None:
    """Kicks by message earn a refusal each, even when the doorbell would not block any more; a new signal is rung."""
    hostile = CellGuest(net)
    events = net.events("guest.fault")
    with blocking(hostile.kick_fd):
        hostile.kick()
        events.next("guest.fault", guest=hostile.guest.name)
    os.eventfd_read(hostile.kick_fd)
    before = net.operator.node_info().counters.get(REFUSED, 0)

    hostile.kick()
    refused = net.operator.node_info().counters[REFUSED] - before
    on_loop(hostile.guest, hostile.cell.remove())
    hostile.share()
    hostile.kick()

    assert (1, 1) == (refused, rings(hostile.kick_fd))

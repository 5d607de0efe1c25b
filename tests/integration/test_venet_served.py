"""A network interface whose frames are served by an interrupt controller instead of a thread that waits for them."""

import threading

import pytest

from tests.support.lab import Net, Station, numbered
from tests.support.waiting import PATIENCE
from vbnet.errors import UsageError


class Frames:
    """What a handler was given, in order, and on which threads."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.threads: set[str] = set()
        self._changed = threading.Condition()

    def __call__(self, frames: list[bytes]) -> None:
        """Be the handler."""
        with self._changed:
            self.numbers += [numbered(frame) for frame in frames]
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()

    def reach(self, count: int) -> list[int]:
        """Wait until so many came, and give their numbers."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.numbers) >= count, PATIENCE), f"{len(self.numbers)} came"
            return list(self.numbers)


def served_station(net: Net, kind: str) -> tuple[Station, Frames, str]:
    """Give a station whose frames are handed to a handler by its controller, what it is given, and the controller."""
    station = net.station()
    device = net.device(net.name("irq"), kind)
    net.operator.device_plug(device, station.guest.bus)
    intc, frames = station.guest.bind("intc0"), Frames()
    station.run(intc.bind(station.nic.receive_signal, station.nic.serve(frames)))
    return station, frames, device


@pytest.mark.parametrize("kind", ["intc", "intc-apic"])
def test_every_frame_is_served_in_order_however_they_come(net: Net, kind: str) -> None:
    """Bursts and single frames: none lost, none twice, all on a thread of the controller."""
    sender = net.station()
    receiver, frames, _ = served_station(net, kind)

    sent = 0
    for burst in (1, 64, 1, 1, 200, 3):
        sender.nic.send([sender.to(receiver, number=sent + index) for index in range(burst)])
        sent += burst
        frames.reach(sent)

    assert list(range(sent)) == frames.numbers
    assert all(name.startswith("vbnet-irq-") for name in frames.threads)


def test_switching_the_controller_off_and_on_loses_no_frame(net: Net) -> None:
    """Off, the signal is an eventfd that nobody waits on; on again, what waited is served at once."""
    sender = net.station()
    receiver, frames, device = served_station(net, "intc")
    sender.nic.send([sender.to(receiver, number=0)])
    frames.reach(1)

    net.operator.device_set(device, "enabled", "0")
    sender.nic.send([sender.to(receiver, number=1)])
    receiver.wait_given(2)
    net.operator.device_set(device, "enabled", "1")
    frames.reach(2)
    sender.nic.send([sender.to(receiver, number=2)])

    assert [0, 1, 2] == frames.reach(3)


def test_priority_is_as_the_driver_showed_it_until_an_operator_says_otherwise(net: Net) -> None:
    """Rings and signals follow the attribute while they are in use, and go back to what the driver chose."""
    station = net.station()

    def shown() -> tuple[set[int], int]:
        rows = [row for row in net.operator.signal_list() if row["guest"] == station.guest.name]
        return {row["priority"] for row in rows}, net.lab.ports()[station.port]["priority"]

    before = shown()
    station.set("priority", 6)
    changed = shown()
    station.set("priority", "driver")

    assert [({0}, 0), ({6}, 6), ({0}, 0)] == [before, changed, shown()]
    with pytest.raises(UsageError):
        station.set("priority", 8)

"""Coming and going: NICs plugged and unplugged under load, guests and hosts killed with -9, and what neighbours see."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from tests.support.lab import BROADCAST, Lab, Net, Station, numbered
from tests.support.processes import GuestProcess
from tests.support.waiting import PATIENCE, eventually
from vbnet.devices.venet.driver import VenetNic
from vbnet.errors import PeerGone, VbnetError

WINDOW = 32
STOP = (1 << 64) - 1


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that wait."""
    with ThreadPoolExecutor(6) as pool:
        yield pool


class Stream:
    """Numbered frames from a station to a mirror process, each window answered before the next is sent."""

    def __init__(self, station: Station, mirror: GuestProcess) -> None:
        self.station, self.mirror = station, mirror
        self.sent = 0
        self._is_over = threading.Event()

    def run(self) -> int:
        """Send until ``stop``; give the number of frames sent."""
        while not self._is_over.is_set():
            frames = [self.station.to(self.mirror, 64, self.sent + index) for index in range(WINDOW)]
            assert WINDOW == self.station.nic.send(frames, PATIENCE)
            self.sent += WINDOW
            assert self.sent - 1 == self.answer()
        return self.sent

    def answer(self) -> int | None:
        """The number that answers one window; frames from others are passed over."""
        while batch := self.station.nic.recv(1, PATIENCE):
            if batch[0][6:12] == self.mirror.mac:
                return numbered(batch[0])
        return None

    def stop(self) -> None:
        """Send no more."""
        self._is_over.set()

    def wait_progress(self) -> None:
        """Wait until a few windows more were sent and answered."""
        goal = self.sent + 3 * WINDOW
        eventually(lambda: self.sent >= goal, "the stream goes on")


@contextmanager
def streaming(net: Net, pool: ThreadPoolExecutor) -> Iterator[Stream]:
    """Have two neighbours stream; at the end show that not one frame was lost, and that the host counted the same."""
    stream = Stream(net.station(), net.process())
    stream.mirror.begin("do_mirror", WINDOW)
    running = pool.submit(stream.run)
    try:
        stream.wait_progress()
        yield stream
        stream.wait_progress()
    finally:
        stream.stop()
    sent = running.result(PATIENCE)
    stream.station.nic.send_frame(stream.station.to(stream.mirror, 64, STOP), PATIENCE)
    assert list(range(sent)) == stream.mirror.end()
    assert sent + 1 == stream.station.counters["transmit_frames"]


def test_neighbours_lose_nothing_while_cards_come_and_go(net: Net, pool: ThreadPoolExecutor) -> None:
    """Plugged, opened, used, unplugged, again and again: the stream next to it loses not a single frame."""
    name = net.plug_nic()
    guest = net.guest(name)
    ids: list[int] = []
    with streaming(net, pool) as stream:
        for _ in range(8):
            nic = guest.nic("eth0", PATIENCE)
            nic.send([stream.station.mac + bytes(nic.mac) + b"\x88\xb5" + bytes(46)])
            ids += [device.dev_id for device in guest.devices]
            net.operator.device_unplug(f"{name}.eth0", name)
            with pytest.raises(PeerGone):
                drain(nic)
            net.operator.device_plug(f"{name}.eth0", name)

    assert ids == sorted(set(ids))


def drain(nic: VenetNic) -> None:
    """Receive until there is no NIC any more."""
    while True:
        nic.recv(1, PATIENCE)


def test_card_unplugged_in_the_middle_of_its_own_flood_hurts_nobody(net: Net, pool: ThreadPoolExecutor) -> None:
    """A guest that sends as fast as it can loses its card meanwhile: it gets PeerGone, the stream goes on."""
    sink = net.station()
    with streaming(net, pool) as stream:
        for _ in range(3):
            flooder = net.station()
            flooding = pool.submit(flood, flooder, sink.mac)
            flooder.wait_taken(1000)
            net.operator.device_unplug(flooder.port, flooder.guest.name)
            with pytest.raises(PeerGone):
                flooding.result(PATIENCE)
            stream.wait_progress()


def flood(station: Station, to: bytes) -> None:
    """Send to one address for ever, never receiving."""
    frame = station.to(to)
    while True:
        station.nic.send([frame] * 64, PATIENCE)


def test_guest_killed_while_it_is_sent_to_leaves_no_port_and_no_gap(net: Net, pool: ThreadPoolExecutor) -> None:
    """A killed guest's port goes, its address is forgotten, its bus is free; the stream next to it loses nothing."""
    with streaming(net, pool) as stream:
        victim = net.process()
        [port] = [name for name in net.lab.ports() if net.lab.ports()[name]["mac"] == victim.mac.hex(":")]
        events = net.events("guest.")
        victim.kill()
        events.next("guest.gone", guest=port.removesuffix(".eth0"))
        stream.wait_progress()

        assert port not in net.lab.ports()
        assert victim.mac.hex(":") not in {row["mac"] for row in net.operator.switch_macs(net.switch)}
        successor = net.guest(port.removesuffix(".eth0"))
        assert victim.mac == bytes(successor.nic("eth0", PATIENCE).mac)


def wait_busy(net: Net, port: str) -> None:
    """Wait until a port has sent a lot."""
    eventually(lambda: net.lab.port_counters(port)["transmit_frames"] > 1000, "it is busy")


def wait_no_port(net: Net, port: str) -> None:
    """Wait until a port is gone."""
    eventually(lambda: port not in net.lab.ports(), "its port is gone")


def test_guest_killed_in_the_middle_of_sending_leaves_no_port_and_no_gap(net: Net, pool: ThreadPoolExecutor) -> None:
    """Killed at any instruction of a busy send loop: the host takes the port off, the stream loses nothing."""
    sink = net.station()
    with streaming(net, pool) as stream:
        for _ in range(3):
            victim = net.process()
            before = set(net.lab.ports())
            frame = sink.mac + victim.mac + bytes(50)
            victim.begin("send", [frame] * 1_000_000)
            [port] = [name for name in before if net.lab.ports()[name]["mac"] == victim.mac.hex(":")]
            wait_busy(net, port)
            victim.kill()
            wait_no_port(net, port)
            stream.wait_progress()


# --- the host is killed -------------------------------------------------------------------------------------------


def wait_for_frames(station: Station) -> object:
    """Wait for frames in a thread."""
    return station.nic.recv()


def wait_for_a_frame(station: Station) -> object:
    """Wait for one frame in a thread."""
    return station.nic.recv_frame()


def wait_for_views(station: Station) -> object:
    """Wait for frames without copying them."""
    return station.nic.recv_views()


def wait_in_asyncio(station: Station) -> object:
    """Wait for frames on a loop."""
    return asyncio.run(station.nic.recv_async())


def send_for_ever(station: Station) -> object:
    """Send until something happens."""
    while True:
        station.nic.send([station.to(station)] * 64)


WAITS: list[Callable[[Station], object]] = [
    wait_for_frames,
    wait_for_a_frame,
    wait_for_views,
    wait_in_asyncio,
    send_for_ever,
]


def test_host_killed_is_told_to_every_guest_that_waits_for_it(own_lab: Lab, pool: ThreadPoolExecutor) -> None:
    """``kill -9`` of the host: whoever waits or sends, in whatever way, in whatever process, gets PeerGone."""
    net = Net(own_lab)
    processes = [net.process() for _ in range(2)]
    for process in processes:
        process.begin("recv")
    stations = [net.station() for _ in WAITS]
    waiting: list[Future[object]] = [pool.submit(wait, station) for wait, station in zip(WAITS, stations, strict=True)]
    stations[-1].wait_taken(1000)

    own_lab.host.kill()

    for future in waiting:
        with pytest.raises(PeerGone):
            future.result(PATIENCE)
    for process in processes:
        with pytest.raises(PeerGone):
            process.end()
    for station in stations:
        assert_gone(station)
    with suppress(VbnetError):
        net.close()


def assert_gone(station: Station) -> None:
    """Every later call says that the host ended, on the NIC and on the bus."""
    for call in (station.nic.recv, station.nic.arm_receive, lambda: station.nic.send([station.to(BROADCAST)])):
        with pytest.raises(PeerGone):
            call()
    with pytest.raises(PeerGone):
        station.guest.list_devices()


def test_successor_of_a_killed_host_serves_the_same_place(own_lab: Lab) -> None:
    """What a killed host left in its run directory does not keep the next one from starting there."""
    own_lab.host.kill()

    with Lab(own_lab.run_dir.path.parent) as successor, successor.net() as net:
        station = net.station("venet-loopback")
        station.nic.send([station.to(station)])
        assert 1 == len(station.gather(1))

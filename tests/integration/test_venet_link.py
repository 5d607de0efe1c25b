"""What a venet driver asks of its device: link, capabilities, queries, rings, flushing, and attributes at run time."""

import itertools
import os
import select
import struct
from collections.abc import Iterator

import pytest

from tests.support.lab import BROADCAST, Net, Station, numbered
from tests.support.waiting import PATIENCE, eventually
from vbnet.bus.messages import LinkState
from vbnet.devices.venet.driver import VenetDriver
from vbnet.devices.venet.wire import Capability, Function, Region
from vbnet.errors import BusyError, ExistsError, NotFoundError, UnsupportedError, UsageError
from vbnet.guestnode.node import EventStream
from vbnet.guestnode.sync import SyncOpenDevice

RX, TX = 0, 1
SIGNAL_AT = 0x180
KNOWN_GROUPS = (0, 1, 2)


@pytest.fixture
def opened(net: Net) -> Iterator[SyncOpenDevice]:
    """A NIC that is open and nothing else, in a guest with 1 MiB of memory."""
    guest = net.guest(net.plug_nic(), 1 << 20)
    with guest.open("eth0", timeout=PATIENCE) as opened:
        yield opened


def ask(opened: SyncOpenDevice, group: int, bits: int) -> int:
    """Ask for capability bits; give those granted."""
    return int.from_bytes(opened.call(3, struct.pack("<II", group, bits)), "little")


# --- before the link is up ----------------------------------------------------------------------------------------


def test_queries_tell_address_and_mtu(net: Net) -> None:
    """MACQUERY answers six bytes, MTUQUERY four, as the operator set them."""
    guest = net.guest(net.plug_nic(mac="02:00:00:00:ab:cd", mtu=9000))
    with guest.open("eth0", timeout=PATIENCE) as opened:
        answers = [opened.call(function) for function in (2, 8)]

    assert [bytes.fromhex("02000000abcd"), (9000).to_bytes(4, "little")] == answers


@pytest.mark.parametrize(("group", "bits"), [(0, 0b1110_1111), (1, 1), (2, 0b1100_1111), (3, 0), (0xFFFF_FFFF, 0)])
def test_host_grants_what_it_supports_and_an_unknown_group_is_no_mistake(
    opened: SyncOpenDevice, group: int, bits: int
) -> None:
    """NEGCAP answers the bits it supports of those wanted: never UFO or TXC, nothing in a group that is not there."""
    assert bits == ask(opened, group, 0xFFFF_FFFF)


@pytest.mark.parametrize(
    ("group", "wanted", "bits"),
    [
        (0, Capability.TSO4 | Capability.USO, 0),
        (0, Capability.CSUM | Capability.ECN, Capability.CSUM),
        (2, Capability.CSUM | Capability.TSO6 | Capability.ECN, Capability.CSUM | Capability.TSO6 | Capability.ECN),
        (0, Capability.PMTD, 0),
        (2, Capability.SG | Capability.PMTD, Capability.SG),
    ],
)
def test_capability_is_not_granted_without_the_one_it_needs(
    opened: SyncOpenDevice, group: int, wanted: Capability, bits: Capability
) -> None:
    """Segments need checksums, ECN segments of TCP, a pool pieces; a pool is of frames from the guest."""
    assert bits == ask(opened, group, wanted)


def test_card_without_offloads_grants_nothing(net: Net) -> None:
    """The operator may keep a guest to plain frames."""
    guest = net.guest(net.plug_nic(offloads=0))
    with guest.open("eth0", timeout=PATIENCE) as opened:
        assert [0, 0, 0] == [ask(opened, group, 0xFFFF_FFFF) for group in KNOWN_GROUPS]


def test_pool_is_asked_for_shared_and_needed_once_it_was_granted(opened: SyncOpenDevice) -> None:
    """PMTDQUERY says which region; without it the link stays down, and without the grant it is refused."""
    with pytest.raises(UnsupportedError):
        opened.shm(Region.POOL, 8192, 4096)
    ask(opened, 0, Capability.SG | Capability.PMTD)

    assert Region.POOL == int.from_bytes(opened.call(Function.PMTDQUERY), "little")
    opened.shm(RX, 4096, 0x408, signal_offset=SIGNAL_AT)
    opened.shm(TX, 8192, 0x408, signal_offset=SIGNAL_AT)
    with pytest.raises(UsageError, match="POOL"):
        opened.call(Function.LINKUP)


@pytest.mark.parametrize("data", [b"", bytes(7), bytes(9)])
def test_negcap_of_another_length_is_refused(opened: SyncOpenDevice, data: bytes) -> None:
    """Group and bits are eight bytes."""
    with pytest.raises(UsageError):
        opened.call(3, data)


@pytest.mark.parametrize("function", [0, 1, 2, 4, 5, 6, 7, 8])
def test_function_without_argument_refuses_one(opened: SyncOpenDevice, function: int) -> None:
    """Whoever gives data to a function that takes none is mistaken about it."""
    with pytest.raises(UsageError):
        opened.call(function, b"\0")


def test_functions_of_capabilities_not_granted_are_refused(opened: SyncOpenDevice) -> None:
    """PMTDQUERY and EVQQUERY belong to capabilities that nobody asked for, L4ROQUERY to a queue that there is not."""
    for function in (5, 6, 7):
        with pytest.raises(UnsupportedError):
            opened.call(function)


def test_link_cannot_come_up_without_both_rings(opened: SyncOpenDevice) -> None:
    """LINKUP names what is missing; LINKDOWN and FLUSHRX need a link that was up."""
    for function in (Function.LINKUP, Function.LINKDOWN, Function.FLUSHRX):
        with pytest.raises(UsageError):
            opened.call(function)
    opened.shm(TX, 4096, 0x400 + 8, signal_offset=SIGNAL_AT)

    with pytest.raises(UsageError, match="RX"):
        opened.call(Function.LINKUP)


def test_ring_is_shared_once_and_with_its_signal(opened: SyncOpenDevice) -> None:
    """A ring without a signal, or with one elsewhere, or shared twice, or of no known number, is refused."""
    for region, signal_at, error in (
        (TX, -1, UsageError),
        (TX, 0x184, UsageError),
        (2, SIGNAL_AT, UsageError),
    ):
        with pytest.raises(error):
            opened.shm(region, 4096, 0x408, signal_offset=signal_at)
    opened.shm(TX, 4096, 0x408, signal_offset=SIGNAL_AT)

    with pytest.raises(ExistsError):
        opened.shm(TX, 8192, 0x408, signal_offset=SIGNAL_AT)


def test_card_joined_to_no_switch_stays_down(net: Net) -> None:
    """The guest hears that the operator has not set the switch, and nothing is left half done."""
    name = net.plug_nic(switch="")
    guest = net.guest(name)

    with pytest.raises(UsageError, match="switch"):
        guest.nic("eth0", PATIENCE)

    assert f"{name}.eth0" not in net.lab.ports()


def test_card_on_a_switch_that_is_not_there_stays_down(net: Net) -> None:
    """A switch that was never made, or is deleted by now, is told by name."""
    guest = net.guest(net.plug_nic(switch="nowhere"))

    with pytest.raises(NotFoundError, match="nowhere"):
        guest.nic("eth0", PATIENCE)


def test_address_that_a_neighbour_has_is_refused(net: Net) -> None:
    """Two cards with one address on one switch would take each other's frames; the second one stays down."""
    station = net.station(mac="02:00:00:00:00:01")
    guest = net.guest(net.plug_nic(mac="02:00:00:00:00:01"))

    with pytest.raises(BusyError):
        guest.nic("eth0", PATIENCE)

    assert station.nic.is_link_up


# --- while it is up -----------------------------------------------------------------------------------------------


def test_link_that_is_up_cannot_come_up_again(net: Net) -> None:
    """The second LINKUP is told that the link is up; traffic is not disturbed."""
    station = net.station("venet-loopback")

    with pytest.raises(ExistsError):
        station.run(station.nic.link_up())

    station.nic.send([station.to(station)])
    assert [station.to(station)] == station.gather(1)


def test_capabilities_are_locked_once_the_link_came_up(net: Net) -> None:
    """NEGCAP is refused from LINKUP until the device is opened anew, also while the link is down."""
    station = net.station("venet-loopback")
    asked = station.nic._opened.call(Function.NEGCAP, struct.pack("<II", 0, 1))

    with pytest.raises(BusyError):
        station.run(asked)
    station.run(station.nic.link_down())
    with pytest.raises(BusyError):
        station.run(station.nic._opened.call(Function.NEGCAP, struct.pack("<II", 0, 1)))


def test_link_that_is_down_lets_nothing_through_either_way(net: Net) -> None:
    """After LINKDOWN frames from and to the guest are dropped, and counted; LINKUP lets them through again."""
    station, other = net.station(), net.station()
    station.run(station.nic.link_down())
    with pytest.raises(UsageError):
        station.run(station.nic.link_down())

    station.nic.send([station.to(other)])
    other.nic.send([other.to(station)])
    eventually(lambda: station.counters["transmit_drop_link_down"] == 1, "what comes from it is dropped")
    eventually(lambda: station.counters["receive_drop_link_down"] == 1, "what goes to it is dropped")
    station.run(station.nic.link_up())
    station.nic.send([station.to(other, 64, 1)])
    other.nic.send([other.to(station, 64, 2)])

    assert [1] == [numbered(frame) for frame in other.gather(1)]
    assert [2] == [numbered(frame) for frame in station.gather(1)]


def next_link_state(station: Station, stream: EventStream) -> bool:
    """Wait for the next word about the carrier."""

    async def wait() -> bool:
        async for event in stream:
            if isinstance(event, LinkState):
                return event.is_up
        raise AssertionError("the guest ended")

    return station.run(wait())


def listen(station: Station) -> EventStream:
    """Listen to the guest's events."""

    async def open_stream() -> EventStream:
        return station.guest.session.events()

    return station.run(open_stream())


def test_carrier_is_in_memory_for_a_driver_that_asked_for_it(net: Net) -> None:
    """Each change is stored, counted and rung for, whoever takes the carrier away."""
    guest = net.guest(net.plug_nic())
    guest.register(VenetDriver(link_in_memory=True))
    nic = guest.nic("eth0", PATIENCE)
    signal = nic.link_signal
    assert signal is not None
    assert (True, 1) == (nic.is_link_up, nic.link_changes)
    assert select.select([signal.call_fd], [], [], PATIENCE)[0]
    os.eventfd_read(signal.call_fd)

    for value, number in (("0", 2), ("1", 3)):
        net.operator.device_set(f"{guest.name}.eth0", "enabled", value)
        assert select.select([signal.call_fd], [], [], PATIENCE)[0]
        os.eventfd_read(signal.call_fd)
        assert (value == "1", number) == (nic.is_link_up, nic.link_changes)


def test_carrier_in_memory_needs_its_region_and_the_grant(opened: SyncOpenDevice) -> None:
    """EVQQUERY says which region; it has one length and a signal, and without it the link stays down."""
    with pytest.raises(UnsupportedError):
        opened.shm(Region.EVENTS, 4096, 0x400, signal_offset=SIGNAL_AT)
    ask(opened, 1, 1)
    assert Region.EVENTS == int.from_bytes(opened.call(Function.EVQQUERY), "little")
    for offset, length, signal_at in ((4096, 0x404, SIGNAL_AT), (4097, 0x400, SIGNAL_AT), (4096, 0x400, -1)):
        with pytest.raises(UsageError):
            opened.shm(Region.EVENTS, offset, length, signal_offset=signal_at)
    with pytest.raises(UsageError, match="EVENTS"):
        opened.call(Function.LINKUP)


def test_carrier_follows_the_attribute_enabled_and_the_guest_hears_of_it(net: Net) -> None:
    """The operator takes the carrier away and gives it back: LINKSTATE each time, and no frame in between."""
    station, other = net.station(), net.station()
    stream = listen(station)

    station.set("enabled", 0)
    assert not next_link_state(station, stream)
    assert not station.nic.is_link_up
    assert not net.lab.ports()[station.port]["is_up"]
    other.nic.send([other.to(BROADCAST, 64, 1)])
    eventually(lambda: station.counters["receive_drop_link_down"] == 1, "the frame is dropped")
    station.set("enabled", 1)
    assert next_link_state(station, stream)
    other.nic.send([other.to(BROADCAST, 64, 2)])

    assert [2] == [numbered(frame) for frame in station.gather(1)]


def test_card_that_is_disabled_comes_up_without_carrier(net: Net) -> None:
    """LINKUP succeeds while the operator withholds the carrier; it comes when it is given."""
    station = net.station(enabled=0)
    assert not station.nic.is_link_up
    stream = listen(station)

    station.set("enabled", 1)

    assert next_link_state(station, stream)


def wait_received(station: Station, frames: int) -> None:
    """Wait until the host has given a station so many frames in all."""
    eventually(lambda: station.counters["receive_frames"] == frames, "it came back")


def test_flush_gives_buffers_back_and_traffic_goes_on(net: Net) -> None:
    """FLUSHRX returns every posted buffer empty; they are no frames, and are posted again as the guest receives."""
    station = net.station("venet-loopback", slots=16)
    for turn in range(3):
        station.nic.send([station.to(station, 64, turn)])
        wait_received(station, turn + 1)
        station.run(station.nic.flush_receive())

        assert [turn] == [numbered(frame) for frame in station.nic.recv(32, 0)]
        assert [] == station.nic.recv(32, 0)

    count = station.nic.layout.rx_slots
    station.nic.send([station.to(station, 64, number) for number in range(count)], PATIENCE)
    assert list(range(count)) == [numbered(frame) for frame in station.gather(count)]


def test_receiver_that_waits_sleeps_through_a_flush(net: Net) -> None:
    """A flush carries no signal and no frame: whoever receives next finds the frame that came after it."""
    station = net.station("venet-loopback", slots=16)
    station.run(station.nic.flush_receive())

    assert [] == station.nic.recv(32, 0.01)
    station.nic.send([station.to(station, 64, 1)])

    assert [1] == [numbered(frame) for frame in station.gather(1)]


def test_port_is_shown_while_the_link_has_one(net: Net) -> None:
    """The attribute ``port`` is the number of the port in lists, and 0 when the driver closed the device."""
    station = net.station()
    shown = net.operator.device_get(station.port).attributes["port"]
    assert str(net.lab.ports()[station.port]["id"]) == shown

    station.guest.close()

    eventually(lambda: net.operator.device_get(station.port).attributes["port"] == "0", "the port is gone")
    assert station.port not in net.lab.ports()


# --- attributes at run time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "key"),
    [
        ("txmitigation", "tx_mitigation"),
        ("burstthresh", "burst_threshold_us"),
        ("budget", "budget"),
        ("hold", "hold_us"),
    ],
)
def test_how_a_port_is_served_can_change_while_it_runs(net: Net, attribute: str, key: str) -> None:
    """The attribute reaches the running port, traffic goes on, and the next open starts with it."""
    station = net.station("venet-loopback")

    for value in (7, 3):
        station.set(attribute, value)
        assert value == net.lab.ports()[station.port][key]
        station.nic.send([station.to(station)])
        assert 1 == len(station.gather(1))

    with pytest.raises(UsageError):
        station.set(attribute, 1 << 30)
    assert 3 == net.lab.ports()[station.port][key]


@pytest.mark.parametrize("attribute", ["mac", "mtu", "switch"])
def test_what_a_driver_was_told_stays_while_it_is_open(net: Net, attribute: str) -> None:
    """Address, MTU and switch cannot change under a driver; the next one gets the new values."""
    station = net.station()
    value = {"mac": "02:00:00:00:00:77", "mtu": "1400", "switch": net.switch}[attribute]

    with pytest.raises(BusyError):
        station.set(attribute, value)
    station.guest.close()
    eventually(lambda: station.port not in net.lab.ports(), "the guest is gone")
    station.set(attribute, value)

    assert value == net.operator.device_get(station.port).attributes[attribute]


def backlog(station: Station, frames: int) -> dict[str, int]:
    """Have frames waiting when the host looks, as after a long absence; give what was counted when all are taken."""
    before = station.counters
    net = station.net
    station.nic.arm_send()  # takes back what was returned before
    net.lab.host.pause()
    try:
        assert frames == station.nic.send([station.to(BROADCAST)] * frames, 0)
        assert station.nic.arm_send()
    finally:
        net.lab.host.resume()
    station.wait_taken(before["transmit_frames"] + frames)
    poll = select.poll()
    poll.register(station.nic.send_fileno(), select.POLLIN)
    assert poll.poll(PATIENCE * 1000)
    after = station.counters
    return {name: after[name] - before[name] for name in after}


def test_budget_is_what_a_turn_may_take(net: Net) -> None:
    """With a budget of 1 every frame ends a turn early, with a large one none does."""
    station = net.station(budget=1)

    assert 64 == backlog(station, 64)["budget_exhausted"]
    station.set("budget", 4096)
    assert 0 == backlog(station, 64)["budget_exhausted"]


def test_flooded_frame_costs_what_it_makes_work(net: Net) -> None:
    """A frame to three others spends three of the budget, so that a flood does not starve the neighbours."""
    station = net.station(budget=6)
    for _ in range(3):
        net.station()

    assert 10 == backlog(station, 20)["budget_exhausted"]


def test_sleeping_sender_is_told_once_when_mitigation_is_high(net: Net) -> None:
    """With txmitigation above the backlog, the signal comes when everything is taken, and only then."""
    station = net.station(txmitigation=32768, budget=8)
    slots = station.nic.layout.tx_slots

    counted = backlog(station, slots)

    assert 1 == counted["calls_rung"]
    assert slots == station.nic.send([station.to(BROADCAST)] * slots, 0)


@pytest.mark.parametrize("mitigation", [0, 1, 10])
def test_sleeping_sender_is_told_before_the_end_when_mitigation_is_low(net: Net, mitigation: int) -> None:
    """With txmitigation below the backlog the signal comes, and there is room."""
    station = net.station(txmitigation=32768, budget=8)
    station.set("txmitigation", mitigation)

    assert 1 <= backlog(station, 64)["calls_rung"]
    assert station.nic.send_frame(station.to(BROADCAST), 0)


def test_card_that_does_not_park_is_looked_at_without_a_kick(net: Net) -> None:
    """With parking off the port never sleeps, so nobody has to wake it; switched on again, it sleeps."""
    station = net.station("venet-loopback", burstthresh=0)
    station.set("parking", "0")

    before = station.counters["kicks"]
    for _ in range(50):
        station.nic.send([station.to(station)])
        assert 1 == len(station.gather(1))

    assert before == station.counters["kicks"]
    station.set("parking", "1")
    parks = station.counters["parks"]
    station.nic.send([station.to(station)])
    eventually(lambda: station.counters["parks"] > parks, "it sleeps")


def test_patience_with_a_burst_spares_kicks(net: Net) -> None:
    """With burstthresh 0 the port sleeps after each frame and is kicked for the next; with a long one it is awake."""
    station = net.station("venet-loopback", burstthresh=0)
    turns = 200

    def bounce() -> int:
        before = station.counters["kicks"]
        for _ in itertools.repeat(None, turns):
            station.nic.send([station.to(station)])
            assert 1 == len(station.gather(1))
        return station.counters["kicks"] - before

    isolated = bounce()
    station.set("burstthresh", 100_000)
    bounce()
    patient = bounce()

    assert patient * 4 < isolated <= turns

"""A guest that writes garbage into its rings hurts itself only: counted by reason, told, and everyone else goes on.

The test's own process is the hostile guest: it owns its RAM and may write any word of it at any time. Beside it a pair
of honest guests exchanges frames during every attack, and afterwards the host is alive and holds what it held before.
"""

import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.support.doorbells import blocking
from tests.support.lab import BROADCAST, EventTap, Lab, Net, Station, numbered
from tests.support.processes import ProcessState
from tests.support.waiting import PATIENCE, eventually
from vbnet import Guest
from vbnet._native import FAULT_REASONS, VenetLayout
from vbnet.errors import PeerFault, VbnetError

TAIL, HEAD, SIGNAL, SLOTS = 0x80, 0x100, 0x180, 0x400
CALL_ENABLED = SIGNAL + 0x180
TX, RX = 0, 1
RAM_BYTES = 8 << 20
FREE = 1 << 20
"""Memory that no part of the device lies in."""


def descriptor(offset: int, length: int, flags: int = 0) -> bytes:
    """A slot's eight bytes, as docs/wire/ring.md has them."""
    return struct.pack("<Q", offset | length << 32 | flags << 56)


class Hostile:
    """A guest that can write anywhere into its memory, and ring.

    Attributes:
        station: the guest. tx: first byte of its TX ring. rx: of its RX ring. slots: of each.
    """

    def __init__(self, station: Station) -> None:
        self.station = station
        self._ram = station.guest.session.ram
        layout = station.nic.layout
        self.tx, self.rx, self.slots = layout.tx_offset, layout.rx_offset, layout.tx_slots
        self.end = layout.end
        self._signals = station.nic._opened._signals

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes into the guest's memory."""
        with memoryview(self._ram.view(offset, len(data))) as memory:
            memory[:] = data

    def read(self, offset: int) -> int:
        """A 32-bit word of the guest's memory."""
        with memoryview(self._ram.view(offset, 4)) as memory:
            return int.from_bytes(memory, "little")

    def word(self, offset: int, value: int) -> None:
        """Write a 32-bit word."""
        self.write(offset, struct.pack("<I", value & 0xFFFF_FFFF))

    def kick(self) -> None:
        """Ring the host."""
        os.eventfd_write(self._signals[TX].kick_fd, 1)

    def call_fd(self, ring: int) -> int:
        """The doorbell by which the host wakes this guest for a ring; signals were made in the order TX, RX."""
        return self._signals[ring].call_fd

    def publish(self, *slots: bytes) -> None:
        """Put descriptors into the next slots of the TX ring and show them to the host."""
        tail = self.read(self.tx + TAIL)
        for ahead, slot in enumerate(slots):
            self.write(self.tx + SLOTS + 8 * ((tail + ahead) % self.slots), slot)
        self.word(self.tx + TAIL, tail + len(slots))
        self.kick()

    def attack_rx(self, slot: bytes) -> None:
        """Put a descriptor into every slot of the RX ring, and have a frame come that needs one."""
        for index in range(self.slots):
            self.write(self.rx + SLOTS + 8 * index, slot)


@dataclass
class Neighbours:
    """Two honest guests."""

    lab: Lab
    first: Station
    second: Station
    turns: int = 0

    def talk(self) -> None:
        """Exchange frames, each way, in order, none lost."""
        for sender, receiver in ((self.first, self.second), (self.second, self.first)):
            numbers = list(range(self.turns, self.turns + 16))
            self.turns += 16
            assert 16 == sender.nic.send([sender.to(receiver, 64, number) for number in numbers], PATIENCE)
            assert numbers == [numbered(frame) for frame in self.addressed(receiver, 16)]

    def addressed(self, receiver: Station, count: int) -> list[bytes]:
        """Frames for one of them; what others broadcast is passed over."""
        frames: list[bytes] = []
        while len(frames) < count and (batch := receiver.nic.recv(32, PATIENCE)):
            frames += [frame for frame in batch if frame[:6] == receiver.mac and frame[12:14] == b"\x88\xb5"]
        return frames


@pytest.fixture
def neighbours(net: Net) -> Iterator[Neighbours]:
    """A pair that talked before the test's attack, and talks after it on a host that is alive."""
    pair = Neighbours(net.lab, net.station(), net.station())
    pair.talk()
    yield pair
    pair.talk()
    assert net.lab.host.is_alive
    assert net.lab.operator.node_info().name == "test"


@pytest.fixture
def hostile(net: Net) -> Hostile:
    """A guest with rings of 16 slots, whose TX ring has been around a bit."""
    station = net.station(slots=16)
    station.nic.send([station.to(station)] * 5)
    station.wait_taken(5)
    return Hostile(station)


@pytest.fixture
def faults(net: Net) -> EventTap:
    """The host's words about ports that broke."""
    return net.events("port.fault")


def assert_quarantined(hostile: Hostile, faults: EventTap, part: str, reason: str) -> None:
    """The part of the port is marked, counted once under its reason, and told of once."""
    station = hostile.station
    event = faults.next("port.fault", name=station.port)
    port = station.net.lab.ports()[station.port]
    counted = {name: count for name, count in station.counters.items() if name.startswith("fault_") and count}

    assert (part, reason) == (event["part"], event["rule"])
    assert event["text"]
    assert reason == port[f"{part}_fault"]
    assert {f"fault_{reason}": 1} == counted


# --- the TX ring --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [17, 1000, 1 << 31, -1, -5])
def test_tail_that_cannot_be_ends_the_queue(
    hostile: Hostile, neighbours: Neighbours, faults: EventTap, ahead: int
) -> None:
    """More slots published than the ring has, or fewer than before: nothing is taken from it any more."""
    hostile.word(hostile.tx + TAIL, hostile.read(hostile.tx + TAIL) + ahead)
    hostile.kick()

    assert_quarantined(hostile, faults, "transmit", "tail_out_of_range")
    neighbours.talk()


Make = Callable[[Hostile], tuple[int, ...]]
"""Gives offset, length and, if there are any, flags."""
BAD_DESCRIPTORS: dict[str, tuple[Make | tuple[int, ...], str]] = {
    "behind the memory": ((RAM_BYTES, 64), "outside_region"),
    "out of the memory": ((RAM_BYTES - 63, 64), "outside_region"),
    "at the end of the numbers": ((0xFFFF_FFFF, 64), "outside_region"),
    "around the end of the numbers": ((0xFFFF_FFC0, 64), "outside_region"),
    "in the header of the memory": ((0, 64), "overlaps_control"),
    "out of the header": ((4095, 64), "overlaps_control"),
    "in its own ring": (lambda guest: (guest.tx + SLOTS, 64), "overlaps_control"),
    "into its own ring": (lambda guest: (guest.tx - 32, 64), "overlaps_control"),
    "in the other ring": (lambda guest: (guest.rx + TAIL, 64), "overlaps_control"),
    "over both rings": (lambda guest: (guest.tx, 16000), "overlaps_control"),
    "empty": ((FREE, 0), "zero_length"),
    "empty and nowhere": ((0xFFFF_FFFF, 0), "zero_length"),
    "one byte": ((FREE, 1), "too_short"),
    "less than a header": ((FREE, 13), "too_short"),
    "longer than any frame": ((FREE, 65554), "too_long"),
    "as long as can be said": ((FREE, (1 << 24) - 1), "too_long"),
    "with a flag": ((FREE, 64, 1), "unknown_flags"),
    "with every flag": ((FREE, 64, 0xFF), "unknown_flags"),
    "all ones": ((0xFFFF_FFFF, 0xFF_FFFF, 0xFF), "unknown_flags"),
    "all zeroes": ((0, 0, 0), "zero_length"),
}
"""Descriptors that break a rule, by a word for each, with the reason each is counted under."""


def bad_descriptor(guest: Hostile, case: str) -> tuple[bytes, str]:
    """Return the slot of a case, and the reason."""
    made, reason = BAD_DESCRIPTORS[case]
    return descriptor(*(made(guest) if callable(made) else made)), reason


@pytest.mark.parametrize("case", BAD_DESCRIPTORS)
def test_descriptor_that_breaks_a_rule_ends_the_queue(
    hostile: Hostile, neighbours: Neighbours, faults: EventTap, case: str
) -> None:
    """Frames before it are delivered, it and those behind it are not: first, in the middle or last of a batch."""
    bad, reason = bad_descriptor(hostile, case)
    receiver = neighbours.first
    good = FREE
    position = len(case) % 3
    slots = []
    for number in range(3):
        frame = hostile.station.to(receiver, 64, number)
        hostile.write(good + 128 * number, frame)
        slots.append(bad if number == position else descriptor(good + 128 * number, 64))

    hostile.publish(*slots)

    assert_quarantined(hostile, faults, "transmit", reason)
    assert list(range(position)) == [numbered(frame) for frame in receiver.gather(position)]


def test_frame_longer_than_the_mtu_is_no_fault(hostile: Hostile, neighbours: Neighbours) -> None:
    """A frame that Ethernet could carry but this port does not is dropped and counted; the queue goes on."""
    hostile.write(FREE, hostile.station.to(neighbours.first, 64, 7))

    hostile.publish(descriptor(2 << 20, 1519), descriptor(2 << 20, 65553), descriptor(FREE, 64))

    assert [7] == [numbered(frame) for frame in neighbours.first.gather(1)]
    assert 2 == hostile.station.counters["transmit_drop_oversize"]
    assert hostile.station.net.lab.ports()[hostile.station.port]["transmit_fault"] is None


def test_frame_that_changes_while_it_is_sent_is_delivered_in_one_piece(
    hostile: Hostile, neighbours: Neighbours
) -> None:
    """Two frames in the same bytes, and one overlapping another, arrive as the bytes that were there."""
    frame = hostile.station.to(neighbours.first, 64, 7)
    hostile.write(FREE, frame + bytes(64))

    hostile.publish(descriptor(FREE, 64), descriptor(FREE, 64), descriptor(FREE, 100))

    assert [frame, frame, frame + bytes(36)] == neighbours.first.gather(3)


def test_quarantined_guest_is_not_listened_to_and_can_come_back(
    hostile: Hostile, neighbours: Neighbours, faults: EventTap, net: Net
) -> None:
    """Kicks and mended words change nothing; opened anew, the device works again."""
    station = hostile.station
    tail = hostile.read(hostile.tx + TAIL)
    hostile.word(hostile.tx + TAIL, tail + 1000)
    hostile.kick()
    assert_quarantined(hostile, faults, "transmit", "tail_out_of_range")
    taken = station.counters["transmit_frames"]

    hostile.word(hostile.tx + TAIL, tail)
    hostile.write(FREE, station.to(neighbours.first))
    hostile.publish(descriptor(FREE, 64))
    for _ in range(100):
        hostile.kick()
    neighbours.talk()
    assert taken == station.counters["transmit_frames"]
    station.guest.close()
    eventually(lambda: station.port not in net.lab.ports(), "the port is gone")

    again = Station(net, net.guest(station.guest.name))
    again.nic.send([again.to(neighbours.second, 64, 99)])
    assert [99] == [numbered(frame) for frame in neighbours.second.gather(1)]


# --- the RX ring --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(set(BAD_DESCRIPTORS) - {"longer than any frame"}))
def test_buffer_that_breaks_a_rule_ends_the_queue(
    hostile: Hostile, neighbours: Neighbours, faults: EventTap, case: str
) -> None:
    """A posted buffer the host may not write to is not written to; what comes for the guest is dropped, counted."""
    bad, reason = bad_descriptor(hostile, case)
    hostile.attack_rx(bad)
    frames = [neighbours.first.to(hostile.station)] * 2

    neighbours.first.nic.send(frames)

    # A buffer may be longer than any frame, but not than the memory.
    assert_quarantined(hostile, faults, "receive", "outside_region" if reason == "too_long" else reason)
    eventually(lambda: hostile.station.counters["receive_drop_quarantined"] == 2, "both frames are dropped and counted")


def test_buffer_too_small_for_a_frame_keeps_that_frame_only(hostile: Hostile, neighbours: Neighbours) -> None:
    """A buffer of 64 bytes takes short frames; a longer one is dropped and counted, the buffer stays posted."""
    hostile.attack_rx(descriptor(FREE, 64))
    sender = neighbours.first

    sender.nic.send([sender.to(hostile.station, 65, 1), sender.to(hostile.station, 64, 2)])

    eventually(lambda: hostile.station.counters["receive_frames"] == 1, "the short one arrives")
    assert 1 == hostile.station.counters["receive_drop_buffer_too_small"]
    with memoryview(hostile.station.guest.session.ram.view(FREE, 64)) as memory:
        assert sender.to(hostile.station, 64, 2) == bytes(memory)


@pytest.mark.parametrize("ahead", [17, 1 << 31, -1])
def test_rx_tail_that_cannot_be_ends_the_queue(
    hostile: Hostile, neighbours: Neighbours, faults: EventTap, ahead: int
) -> None:
    """Buffers that were never posted, or taken back, are not believed."""
    station = hostile.station
    for _ in range(3):
        neighbours.first.nic.send([neighbours.first.to(station)])
        assert 1 == len(station.gather(1))
    tail = hostile.read(hostile.rx + TAIL)
    head = hostile.read(hostile.rx + HEAD)

    hostile.word(hostile.rx + TAIL, head - 1 if ahead < 0 else tail + ahead)
    # The host looks at the tail when it has used up what it knew of.
    neighbours.first.nic.send([neighbours.first.to(station)] * (hostile.slots + 1))

    assert_quarantined(hostile, faults, "receive", "tail_out_of_range")


def test_flush_of_a_ring_that_broke_does_nothing(hostile: Hostile, neighbours: Neighbours, faults: EventTap) -> None:
    """FLUSHRX over garbage is answered, ends the queue, and touches nothing."""
    hostile.word(hostile.rx + TAIL, hostile.read(hostile.rx + TAIL) + 1000)

    hostile.station.run(hostile.station.nic.flush_receive())

    assert_quarantined(hostile, faults, "receive", "tail_out_of_range")
    hostile.station.run(hostile.station.nic.flush_receive())
    neighbours.talk()


# --- words that are not the guest's, signals, and everything at once -------------------------------------------------


def test_head_written_by_the_guest_is_not_read(hostile: Hostile, neighbours: Neighbours) -> None:
    """The host knows its own indices; a guest that writes them confuses itself."""
    station = hostile.station
    for value in (0, 0xFFFF_FFFF, 12345):
        hostile.word(hostile.tx + HEAD, value)
        hostile.word(hostile.rx + HEAD, value)
        hostile.write(FREE, station.to(neighbours.first, 64, value))
        hostile.publish(descriptor(FREE, 64))
        assert [value] == [numbered(frame) for frame in neighbours.first.gather(1)]

    port = station.net.lab.ports()[station.port]
    assert (None, None) == (port["transmit_fault"], port["receive_fault"])


@pytest.mark.parametrize("value", [0, 1, 0xFFFF_FFFF])
def test_garbage_in_the_signals_costs_the_guest_its_own_wakeups_at_most(
    hostile: Hostile, neighbours: Neighbours, value: int
) -> None:
    """Every word of both signals set to anything, again and again: no fault, and no frame of others is lost."""
    hostile.write(FREE, hostile.station.to(BROADCAST))
    for turn in range(20):
        for ring in (hostile.tx, hostile.rx):
            hostile.write(ring + SIGNAL, struct.pack("<I", value) * (0x280 // 4))
        hostile.publish(descriptor(FREE, 64))
        neighbours.first.nic.send([neighbours.first.to(hostile.station)])
        hostile.station.wait_taken(6 + turn)
    neighbours.talk()

    port = hostile.station.net.lab.ports()[hostile.station.port]
    assert (None, None) == (port["transmit_fault"], port["receive_fault"])


@pytest.mark.parametrize("seed", range(12))
def test_random_rings_never_hurt_anyone_else(hostile: Hostile, neighbours: Neighbours, seed: int) -> None:
    """The whole of both rings filled with random bytes, in parts and as a whole, while the neighbours talk."""
    source = random.Random(seed)  # noqa: S311 - repeatable, not secret
    length = SLOTS + 8 * hostile.slots
    for turn in range(30):
        ring = source.choice((hostile.tx, hostile.rx))
        start = source.randrange(length)
        count = source.choice((1, 4, 8, 64, length))
        hostile.write(ring + start, source.randbytes(min(count, length - start)))
        if source.random() < 0.5:
            hostile.word(hostile.tx + TAIL, hostile.read(hostile.tx + HEAD) + source.randrange(hostile.slots + 1))
        hostile.kick()
        neighbours.first.nic.send([neighbours.first.to(hostile.station, 64, 1 << 32)])
        if turn % 10 == 0:
            neighbours.talk()

    counted = [name for name, count in hostile.station.counters.items() if name.startswith("fault_") and count]
    assert {name.removeprefix("fault_") for name in counted} <= set(FAULT_REASONS)
    assert len(counted) <= 2


@pytest.mark.parametrize("ring", [TX, RX])
def test_doorbell_that_its_guest_blocked_does_not_stop_the_host(
    hostile: Hostile, neighbours: Neighbours, faults: EventTap, ring: int
) -> None:
    """A guest fills the counter of its doorbell and makes it blocking: the host gives that queue up, not itself."""
    station = hostile.station
    fd = hostile.call_fd(0 if ring == TX else 1)
    offset = hostile.tx if ring == TX else hostile.rx
    with blocking(fd):
        hostile.word(offset + CALL_ENABLED, 0x7FFF_FFFF)  # an arming the host has not rung for
        if ring == TX:
            hostile.write(FREE, station.to(BROADCAST))
            hostile.publish(descriptor(FREE, 64))
        else:
            neighbours.first.nic.send([neighbours.first.to(station)])

        assert_quarantined(hostile, faults, "transmit" if ring == TX else "receive", "doorbell_blocked")
        neighbours.talk()


# --- rings that are not what they say ---------------------------------------------------------------------------------


def forgeries() -> dict[str, tuple[dict[int, int], int]]:
    """Words of a ring's header to overwrite, by offset, and how many bytes to add to its length."""
    return {
        "magic": ({0x0: 0x47FA2FE4}, 0),
        "no magic": ({0x0: 0}, 0),
        "version": ({0x4: 1}, 0),
        "no slots": ({0x8: 0}, 0),
        "slots that are no power of two": ({0x8: 15}, 0),
        "one slot more": ({0x8: 17}, 0),
        "twice the slots": ({0x8: 32}, 0),
        "half the slots": ({0x8: 8}, 0),
        "all the slots there can be": ({0x8: 0xFFFF_FFFF}, 0),
        "slots whose bytes overflow": ({0x8: 1 << 29}, 0),
        "signal magic": ({0x180: 0}, 0),
        "signal version": ({0x184: 9}, 0),
        "a length of eight less": ({}, -8),
        "a length of eight more": ({}, 8),
        "a length of a header": ({}, -128),
        "a length of less": ({}, -0x200),
    }


@pytest.mark.parametrize("case", [*forgeries(), "misaligned", "overlapping"])
@pytest.mark.parametrize("ring", [TX, RX])
@pytest.mark.usefixtures("neighbours")
def test_ring_that_is_not_what_it_says_is_refused_at_linkup(net: Net, case: str, ring: int) -> None:
    """Magic, version, slots, length and place are checked before a word is believed; nothing stays behind."""
    words, longer = forgeries().get(case, ({}, 0))
    layout = VenetLayout(1500, 16, 16)
    guest = net.guest(net.plug_nic())
    before = refusals(net)
    with guest.open("eth0", timeout=PATIENCE) as opened:
        rings = [[layout.rx_offset, layout.rx_length], [layout.tx_offset, layout.tx_length]]
        which = 1 if ring == TX else 0
        format_rings(guest, [offset for offset, _ in rings])
        for offset, value in words.items():
            poke(guest, rings[which][0] + offset, struct.pack("<I", value))
        rings[which][1] += longer
        if case == "misaligned":
            rings[which][0] += 8
        if case == "overlapping":
            rings[which] = rings[1 - which]
        for region, (offset, length) in enumerate(rings):
            try:
                opened.shm(region, offset, length, signal_offset=SIGNAL)
            except VbnetError:
                return  # refused even earlier: the length has no room for its signal

        with pytest.raises(PeerFault):
            opened.call(0)

        assert f"{guest.name}.eth0" not in net.lab.ports()
    assert refusals(net) > before


def format_rings(guest: Guest, offsets: list[int]) -> None:
    """Lay out empty rings of 16 slots, by hand."""
    for offset in offsets:
        poke(guest, offset, struct.pack("<4sII", b"vRNG", 2, 16))
        poke(guest, offset + SIGNAL, struct.pack("<4sI", b"vSIG", 2))


def poke(guest: Guest, offset: int, data: bytes) -> None:
    """Write into a guest's memory."""
    with memoryview(guest.session.ram.view(offset, len(data))) as memory:
        memory[:] = data


def refusals(net: Net) -> int:
    """How many requests the host refused because a peer broke a rule."""
    return sum(count for name, count in net.operator.node_info().counters.items() if "EPROTO" in name)


# --- the host afterwards -------------------------------------------------------------------------------------------


def test_host_holds_after_many_attacks_what_it_held_before(net: Net) -> None:
    """Guests that join, break a rule and leave take everything with them: descriptors, mappings, ports."""

    def attack(number: int) -> None:
        with net.lab.net() as own:
            guest = Hostile(own.station(slots=16))
            guest.word(guest.tx + TAIL, 1000 + number)
            guest.kick()
            eventually(lambda: own.lab.ports()[guest.station.port]["transmit_fault"], "it is quarantined")

    for number in range(5):
        attack(number)
    before = ProcessState.of(net.lab.host.pid)
    for number in range(30):
        attack(number)
    after = ProcessState.of(net.lab.host.pid)

    assert (before.fds, before.shared) == (after.fds, after.shared)

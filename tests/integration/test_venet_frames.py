"""Frames through the switch, between guests that are processes: which arrive, where, in which order, how long."""

import pytest

from tests.support.lab import BROADCAST, Net, Station, ethernet, numbered
from tests.support.processes import GuestProcess
from tests.support.waiting import eventually
from vbnet.errors import UsageError

HEADER = 14
TAG = 4


def lengths(limit: int) -> list[int]:
    """Return every length of a frame, or, where these are many, those around every power of two and at both ends."""
    if limit < 2000:
        return list(range(HEADER, limit + 1))
    near = {power + step for power in (2**exponent for exponent in range(4, 17)) for step in (-1, 0, 1)}
    return sorted({length for length in near if HEADER <= length <= limit} | {HEADER, limit - 1, limit})


@pytest.mark.parametrize("mtu", [68, 1500, 9000, 65535])
def test_frames_of_every_length_arrive_unchanged_and_in_order(net: Net, mtu: int) -> None:
    """From the bare header to the MTU plus header and tag, another process receives what was sent, byte for byte."""
    sender, receiver = net.station(mtu=mtu), net.process(mtu=mtu)
    frames = [
        ethernet(receiver.mac, sender.mac, length, number) for number, length in enumerate(lengths(mtu + HEADER + TAG))
    ]
    received: list[bytes] = []

    window = min(64, sender.nic.layout.rx_slots)
    for start in range(0, len(frames), window):
        batch = frames[start : start + window]
        assert len(batch) == sender.nic.send(batch, 10)
        received += receiver.do("do_gather", len(batch), 10)

    assert frames == received


@pytest.mark.parametrize("mtu", [68, 1500, 65535])
def test_frame_that_no_ethernet_carries_is_refused_before_anything_is_sent(net: Net, mtu: int) -> None:
    """One byte too long or too short is the caller's mistake; frames before it in the same call are sent."""
    station = net.station("venet-loopback", mtu=mtu)
    limit = mtu + HEADER + TAG
    good = [station.to(station, HEADER), station.to(station, limit)]

    for wrong in (bytes(limit + 1), bytes(HEADER - 1), b""):
        with pytest.raises(UsageError):
            station.nic.send([*good, wrong, *good])
        with pytest.raises(UsageError):
            station.nic.send_frame(wrong)
        with pytest.raises(UsageError):
            station.nic.claim(len(wrong))
        assert good == station.gather(2)

    assert [] == station.nic.recv(1, 0)


@pytest.mark.parametrize("to", [BROADCAST, bytes.fromhex("3333 0000 0001"), bytes.fromhex("0200 0000 00ee")])
def test_frame_for_a_group_or_for_nobody_known_reaches_everyone_but_its_sender(net: Net, to: bytes) -> None:
    """Broadcast, multicast and unknown unicast are flooded: one copy for each other port, none back."""
    sender, *others = (net.station() for _ in range(4))
    frame = sender.to(to, 100, 7)

    sender.nic.send([frame, frame])

    assert [[frame, frame]] * 3 == [other.gather(2) for other in others]
    assert [] == sender.nic.recv(1, 0)
    assert 2 == net.lab.switch_counters(net.switch)["flooded_frames"]


def test_address_that_was_heard_is_flooded_no_more(net: Net) -> None:
    """The switch learns the source of a frame: what is sent there afterwards reaches that port alone."""
    asker, owner, other = net.station(), net.station(), net.station()
    address = bytes.fromhex("0200 0000 00ee")
    asker.nic.send([asker.to(address, 60, 1)])
    assert [[1], [1]] == [[numbered(frame) for frame in station.gather(1)] for station in (owner, other)]

    owner.nic.send([ethernet(asker.mac, address, 60, 2)])
    assert [2] == [numbered(frame) for frame in asker.gather(1)]
    asker.nic.send([asker.to(address, 60, 3), asker.to(BROADCAST, 60, 4)])

    assert [3, 4] == [numbered(frame) for frame in owner.gather(2)]
    assert [4] == [numbered(frame) for frame in other.gather(1)]


def test_address_moves_with_the_port_it_is_heard_on(net: Net) -> None:
    """A station that speaks from another port is there from then on."""
    asker, before, after = net.station(), net.station(), net.station()
    address = bytes.fromhex("0200 0000 00ee")
    for owner in (before, after):
        owner.nic.send([ethernet(asker.mac, address, 60, 1)])
        assert 1 == len(asker.gather(1))

    asker.nic.send([asker.to(address, 60, 2), asker.to(BROADCAST, 60, 3)])

    assert [2, 3] == [numbered(frame) for frame in after.gather(2)]
    assert [3] == [numbered(frame) for frame in before.gather(1)]


def test_frame_under_another_ports_own_address_is_dropped_and_counted(net: Net) -> None:
    """A guest cannot take a neighbour's address away: the frame goes nowhere, its own later ones do."""
    forger, victim, other = net.station(), net.station(), net.station()

    forger.nic.send([ethernet(other.mac, victim.mac, 60, 1), forger.to(other, 60, 2)])

    assert [2] == [numbered(frame) for frame in other.gather(1)]
    assert 1 == forger.counters["transmit_drop_forged_source"]


def test_frame_too_long_for_its_receiver_is_dropped_and_counted(net: Net) -> None:
    """Between a port of MTU 9000 and one of 1500, what fits arrives and what does not is counted there."""
    large, small = net.station(mtu=9000), net.station(mtu=1500)

    large.nic.send([large.to(small, 1519, 1), large.to(small, 1518, 2)])

    assert [2] == [numbered(frame) for frame in small.gather(1)]
    assert 1 == small.counters["receive_drop_oversize"]


def test_loopback_card_receives_what_it_sends_and_nobody_else_does(net: Net) -> None:
    """Class venet-loopback gives a guest its own frames back, in order, whatever address they carry."""
    first, second = net.station("venet-loopback"), net.station("venet-loopback")
    frames = [first.to(to, 60 + number, number) for number, to in enumerate([BROADCAST, second.mac, first.mac])]

    first.nic.send(frames)

    assert frames == first.gather(3)
    assert [] == second.nic.recv(1, 0)


def test_frames_that_nobody_makes_room_for_are_counted_one_by_one(net: Net) -> None:
    """What a sender gets rid of is what its receiver gets plus what is counted as dropped there, and order is kept."""
    sender, receiver = net.station(), net.station()
    count = 3000

    assert count == sender.nic.send([sender.to(receiver, 60, number) for number in range(count)], 10)
    room = receiver.nic.layout.rx_slots
    eventually(lambda: receiver.counters["receive_drop_no_room"] == count - room, "what did not fit is counted")

    numbers = [numbered(frame) for frame in receiver.gather(room)]
    assert numbers == sorted(set(numbers))
    assert room == len(numbers) == receiver.counters["receive_frames"]
    assert count == sender.counters["transmit_frames"]


def test_two_processes_talk_both_ways_at_once(net: Net) -> None:
    """Full duplex: a stream each way, in order, answered while it runs."""
    station, mirror = net.station(), net.process()
    mirror.begin("do_mirror", 16)

    answers = [ask(station, mirror, 16, turn) for turn in range(50)]
    station.nic.send_frame(station.to(mirror, 64, (1 << 64) - 1))

    assert [16 * turn + 15 for turn in range(50)] == answers
    assert list(range(800)) == mirror.end()


def ask(station: Station, mirror: GuestProcess, window: int, turn: int) -> int:
    """Send one window of frames; give the number in the answer."""
    station.nic.send([station.to(mirror, 64, turn * window + index) for index in range(window)], 10)
    return numbered(station.gather(1)[0])

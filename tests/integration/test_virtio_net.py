"""Virtio network cards among venets: the same programs over each transport, and others when one ends."""

import asyncio
import threading
from contextlib import suppress

import pytest

from tests.support.lab import Net, Station
from tests.support.real_lab import real_lab
from tests.support.waiting import PATIENCE, eventually
from vbnet import _native
from vbnet.errors import BusyError, PeerGone, UsageError, VbnetError

TRANSPORTS = ("vbus", "mmio", "pci")
COUNT, WINDOW = 640, 64


@pytest.fixture(params=TRANSPORTS)
def card(request: pytest.FixtureRequest, net: Net) -> Station:
    """A station on a virtio network card, over each transport."""
    return net.station("virtio-net", transport=request.param)


@pytest.fixture
def venet(net: Net) -> Station:
    """A station on a venet of the same switch."""
    return net.station()


def test_frames_pass_both_ways_between_a_card_and_a_venet(card: Station, venet: Station) -> None:
    """Many times what its queues hold, of all lengths, whole and in order."""
    for one, two in ((card, venet), (venet, card)):
        for length in (60, 64, 590, 1514):
            for first in range(0, COUNT, WINDOW):
                frames = [one.to(two, length, number) for number in range(first, first + WINDOW)]
                assert WINDOW == one.nic.send(frames, PATIENCE)
                assert frames == two.gather(WINDOW)


def test_views_claims_and_tasks_work_on_a_card(card: Station, venet: Station) -> None:
    """What a program can do with a venet it can do with a card."""
    claimed = card.nic.claim(100, PATIENCE)
    assert claimed is not None
    with claimed as room:
        memoryview(room)[:] = card.to(venet, 100, 1)
    (view,) = venet.nic.recv_views(1, PATIENCE)
    assert bytes(memoryview(view)) == card.to(venet, 100, 1)
    view.release()

    async def ask() -> list[bytes]:
        assert 2 == await venet.nic.send_async([venet.to(card, 64, 2), venet.to(card, 64, 3)])
        return [frame for _ in range(2) for frame in await card.nic.recv_async(1, PATIENCE)]

    assert [venet.to(card, 64, 2), venet.to(card, 64, 3)] == asyncio.run(ask())
    (sent, received) = card.nic.totals()
    assert (1, 100, 2, 128) == (sent.frames, sent.bytes, received.frames, received.bytes)
    with pytest.raises(UsageError):
        card.nic.send([bytes(1519)])


def test_stacks_on_a_card_and_a_venet_ping_each_other(card: Station, venet: Station) -> None:
    """Small IP hosts run on either model, on one thread."""
    stacks = _native.StackGuests()
    one = stacks.add("card", card.nic, mac=str(card.nic.mac), ip="10.0.0.1/24")
    two = stacks.add("venet", venet.nic, mac=str(venet.nic.mac), ip="10.0.0.2/24")
    try:
        for guest, other in ((one, "10.0.0.2"), (two, "10.0.0.1")):
            assert None not in stacks.ping(guest, other, count=3, interval=0, timeout=PATIENCE)
    finally:
        stacks.close()


def test_traffic_between_a_card_and_a_venet_arrives_intact(card: Station, venet: Station) -> None:
    """Numbered frames with checked contents, in both directions at once: what arrives is whole, none twice."""
    guests = [_native.TrafficGuest(each.nic, mac=str(each.nic.mac)) for each in (card, venet)]
    try:
        for guest, other in ((guests[0], venet), (guests[1], card)):
            arrivals = _native.Arrivals.constant(5000)
            guest.start(str(other.nic.mac), size="imix", frames=1000, arrivals=arrivals)
        eventually(lambda: not any(guest.is_sending for guest in guests), "everything sent")
        dropped = [each.counters["receive_drop_no_room"] for each in (venet, card)]

        def arrived() -> bool:
            return all(
                guest.statistics()["received"]["frames"] + lost == 1000
                for guest, lost in zip(reversed(guests), dropped, strict=True)
            )

        eventually(arrived, "everything received")
        for guest in guests:
            received = guest.statistics()["received"]
            assert (0, 0) == (received["corrupted"], received["duplicates"])
    finally:
        for guest in guests:
            guest.close()


def test_carrier_of_a_card_is_told_and_followed(net: Net, card: Station, venet: Station) -> None:
    """Switched off, the card's guest hears of it, and frames to it are dropped under that reason."""
    card.set("enabled", 0)
    eventually(lambda: not card.nic.is_link_up, "the carrier to be gone")
    venet.nic.send([venet.to(card)])
    eventually(lambda: card.counters["receive_drop_link_down"] == 1, "the frame to be dropped")

    card.set("enabled", 1)

    eventually(lambda: card.nic.is_link_up, "the carrier to be back")
    venet.nic.send([venet.to(card, 64, 9)])
    assert [venet.to(card, 64, 9)] == card.gather(1)
    row = next(row for row in net.operator.port_list() if row["name"] == card.port)
    assert ("virtio-net", True) == (row["kind"], row["is_served"])


def test_unplugged_under_load_a_card_ends_and_its_neighbours_go_on(net: Net, card: Station, venet: Station) -> None:
    """Whoever sends and receives gets PeerGone; the port is gone; a neighbour's frames go on."""
    other = net.station("virtio-net")
    ended = threading.Event()

    def flood() -> None:
        with suppress(PeerGone, BusyError):
            while True:
                card.nic.send([card.to(venet)] * 32)
        ended.set()

    threading.Thread(target=flood, daemon=True).start()
    venet.gather(100)

    net.operator.device_unplug(card.port, card.guest.name)

    assert ended.wait(PATIENCE)
    with pytest.raises(VbnetError):
        card.nic.recv(1, PATIENCE)
    assert card.port not in {row["name"] for row in net.operator.port_list()}
    while venet.nic.recv(64, 0):
        pass
    other.nic.send([other.to(venet, 64, 5)])
    assert [other.to(venet, 64, 5)] == venet.gather(1)


def test_guest_killed_while_it_answers_leaves_no_port(net: Net, venet: Station) -> None:
    """At any instruction: the port goes, and its address is another's at once."""
    process = net.process("virtio-net")
    process.begin("do_mirror", 1)
    venet.nic.send([venet.to(process, 64, 1)])
    assert 1 == len(venet.gather(1))
    names = {row["name"] for row in net.operator.port_list() if row["kind"] == "virtio-net"}
    assert names

    venet.nic.send([venet.to(process, 64, number) for number in range(200)])
    process.kill()

    eventually(lambda: not names & {row["name"] for row in net.operator.port_list()}, "no port")
    other = net.station("virtio-net", mac=process.mac.hex(":"))
    while venet.nic.recv(64, 0):
        pass
    other.nic.send([other.to(venet, 64, 6)])
    assert [other.to(venet, 64, 6)] == venet.gather(1)


LAB = """
name: t
switches: {lan: }
guests:
  a: {kind: stack, nics: [{switch: lan, ip: 10.0.0.1/24}]}
  b: {kind: stack, nics: [{switch: lan, ip: 10.0.0.2/24, model: virtio-net, pairs: 4}]}
  c: {kind: stack, nics: [{switch: lan, ip: 10.0.0.3/24, model: virtio-net-mmio, trap-cost: 2us}]}
  d: {kind: traffic, nics: [{switch: lan, model: virtio-net-pci}]}
  e: {kind: traffic, nics: [{switch: lan}], send: {to: d, rate: 10k, for: 200ms}}
  f: {kind: python, run: "probe.py:main", nics: [{switch: lan, model: virtio-net-mmio}]}
"""
PROBE = """
def main(guest):
    nic = guest.nic()
    ask = bytes.fromhex("ffffffffffff") + bytes(nic.mac) + bytes.fromhex("08060001080006040001") + bytes(nic.mac)
    ask += bytes([10, 0, 0, 9]) + bytes(6)
    for last in (1, 2, 3):
        nic.send([ask + bytes([10, 0, 0, last])])
        found = nic.recv(1, 10.0)
        while found and found[0][28:32] != bytes([10, 0, 0, last]):
            found = nic.recv(1, 10.0)
        print("answer", last, bool(found), flush=True)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("no_leaked_processes")
def test_lab_of_all_models_comes_up_and_speaks() -> None:
    """Every kind of guest on every model, from a lab file: they answer each other, and what traps is counted."""
    with real_lab(LAB, files={"probe.py": PROBE}) as lab:
        eventually(lambda: "answer 3 True" in "".join(lab.logs("f")), "an answer from each stack")
        eventually(lambda: lab.counted("receive_frames").get("d.eth0 receive_frames", 0) >= 2000, "traffic")
        kinds = {row["name"]: row["kind"] for row in lab.rows("port", "list")}
        assert {"venet", "virtio-net"} == set(kinds.values())
        pairs = {row["name"]: row["attributes"].get("pairs") for row in lab.rows("device", "list")}
        assert ("4", "1", None) == (pairs["b.eth0"], pairs["c.eth0"], pairs["a.eth0"])

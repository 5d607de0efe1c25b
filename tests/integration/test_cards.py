"""Emulated cards between real processes: frames, pings and loads beside venet, traps, hostile drivers, and the end."""

from __future__ import annotations

import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.lab import Lab, Net, Station
from tests.support.processes import GuestProcess
from tests.support.real_lab import RealLab, real_lab
from tests.support.waiting import PATIENCE, eventually
from vbnet._native import CARD_COUNTERS, TRAFFIC_SINK_COUNTERS, StackGuests
from vbnet.bus.rundir import RunDir
from vbnet.devices.card import wire
from vbnet.devices.card.driver import CardNic
from vbnet.errors import PeerGone, UsageError
from vbnet.guestnode.sync import SyncOpenDevice
from vbnet.sharedmem import read_blocks

MODELS = ("e1000", "rtl8139")
ICS, IMS = 0xC8, 0xD0
TCTL, TDBAL, TDLEN, TDT = 0x0400, 0x3800, 0x3808, 0x3818


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    """Each model of card in turn."""
    name: str = request.param
    return name


def card(net: Net, model: str, **attributes: object) -> Station:
    """A station whose NIC is an emulated card."""
    return Station(net, net.guest(net.plug_nic(model, switch=net.switch, **attributes)))


def counted(lab: Lab, device: str) -> dict[str, int]:
    """What was counted for a card beside its port."""
    return lab._counters("nic", CARD_COUNTERS, f"device={device}")


def write(opened: SyncOpenDevice, offset: int, value: int) -> None:
    """Write a register as a hostile driver would: by an ordinary call, without any set-up."""
    opened.call(wire.Function.WRITE, struct.pack("<III", offset, 4, value))


def test_frames_go_both_ways_between_a_card_and_venet(net: Net, model: str) -> None:
    """Each frame of any length arrives, filled up to what a wire carries at least."""
    here, there = net.station(), card(net, model)

    for length in (14, 60, 61, 700, 1514):
        here.nic.send([here.to(there, length, length)])
        there.nic.send([there.to(here, length, length)])

        assert [here.to(there, length, length).ljust(60, b"\0")] == there.gather(1)
        assert [there.to(here, length, length).ljust(60, b"\0")] == here.gather(1)


def test_more_frames_than_a_card_has_slots_are_all_sent_in_order(net: Net, model: str) -> None:
    """A sender that waits for room gets it; the receiver finds every frame, in order."""
    there = net.station(slots=1024)
    here = card(net, model)
    frames = [here.to(there, 64 + number, number) for number in range(600)]

    sent = here.nic.send(frames)

    assert (600, frames) == (sent, there.gather(600))


def test_claims_and_views_work_as_on_any_card(net: Net, model: str) -> None:
    """A frame written in place is sent, and one that is viewed in place keeps its bytes."""
    here, there = card(net, model), card(net, model)
    frame = here.to(there, 200, 5)

    claim = here.nic.claim(200)
    assert claim is not None
    with claim:
        memoryview(claim)[:] = frame
    (view,) = there.nic.recv_views(1, PATIENCE)

    assert frame == bytes(view)
    view.release()


def test_card_is_received_from_by_asyncio(net: Net, model: str) -> None:
    """The descriptor of a card works in an event loop."""
    here, there = net.station(), card(net, model)

    here.nic.send([here.to(there, 64, 1)])
    frames = there.run(there.nic.recv_async(1, PATIENCE))

    assert [here.to(there, 64, 1)] == frames


def test_signal_of_a_card_is_served_by_an_emulated_controller_of_the_guest(net: Net, model: str) -> None:
    """Its line may be led to the guest's own controller, which then acknowledges and ends each interrupt."""
    here = net.station()
    name = net.plug_nic(model, switch=net.switch)
    net.operator.device_plug(net.device(f"{name}.intc", "intc-apic"), name)
    there = Station(net, net.guest(name))
    came = threading.Semaphore(0)
    intc = there.guest.bind("intc0")
    there.guest.run(intc.bind(there.nic.receive_signal, there.nic.serve(lambda frames: came.release(len(frames)))))

    for number in range(20):
        here.nic.send([here.to(there, 64, number)])
        assert came.acquire(timeout=PATIENCE)


def test_each_register_is_a_trap_that_is_counted_and_costs_what_it_should(net: Net, model: str) -> None:
    """Starting a card takes traps; with a cost they are answered as before."""
    there = card(net, model, trap_cost_ns=2000)
    here = net.station()

    there.set("trap_cost_ns", 5000)
    there.nic.send([there.to(here, 64, 1)])

    assert [there.to(here, 64, 1)] == here.gather(1)
    found = counted(net.lab, there.port)
    assert found["reads"] >= 3
    assert found["writes"] > 5
    assert found["resets"] == 1
    with pytest.raises(UsageError, match="trap_cost_ns"):
        there.set("trap_cost_ns", 1_000_001)


def test_mtu_beyond_the_model_is_refused(net: Net) -> None:
    """An rtl8139 carries 1500 bytes, an e1000 16106."""
    with pytest.raises(UsageError, match=r"68\.\.1500"):
        net.device(net.name(), "rtl8139", mtu=1501)

    here, there = card(net, "e1000", mtu=9000), card(net, "e1000", mtu=9000)
    here.nic.send([here.to(there, 9014, 1)])

    assert [here.to(there, 9014, 1)] == there.gather(1)


def test_card_that_is_unplugged_ends_every_wait_and_is_there_again_when_plugged(net: Net, model: str) -> None:
    """Whoever receives hears that the card is gone; plugged again, it works."""
    here, there = net.station(), card(net, model)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(there.nic.recv, 1)
        net.operator.device_unplug(there.port, there.guest.name)
        with pytest.raises(PeerGone):
            waiting.result(PATIENCE)

    net.operator.device_plug(there.port, there.guest.name)
    again: CardNic = there.guest.nic("eth0", PATIENCE)
    here.nic.send([here.to(there, 64, 3)])

    assert [here.to(there, 64, 3)] == again.recv(1, PATIENCE)


def test_killed_guest_leaves_its_card_for_the_next(net: Net, model: str) -> None:
    """``kill -9``: the port is gone at once, others go on, and another guest drives the same device."""
    here = net.station()
    name = net.plug_nic(model, switch=net.switch)
    with GuestProcess(net.lab.run_dir.path, name) as victim:
        here.nic.send([here.to(victim.mac, 64, 1)])
        assert [here.to(victim.mac, 64, 1)] == victim.do("recv", 1, PATIENCE)

        victim.kill()

    eventually(lambda: f"{name}.eth0" not in net.lab.ports(), "the port is gone")
    there = Station(net, net.guest(name))
    here.nic.send([here.to(there, 64, 9)])
    assert [here.to(there, 64, 9)] == there.gather(1)


def test_hostile_registers_end_one_half_of_their_card_and_disturb_nobody(net: Net) -> None:
    """A ring outside of memory is reported under its reason; two neighbours go on, and so does the host."""
    one, two = net.station(), card(net, "e1000")
    events = net.events("port.fault")
    name = net.plug_nic("e1000", switch=net.switch)
    guest = net.guest(name)
    opened = guest.open("eth0")
    line = opened.device.memory.allocate(wire.LINE_BYTES, wire.LINE_BYTES)
    opened.shm(wire.Region.LINE, line.offset, line.length, signal_offset=wire.LINE_SIGNAL_OFFSET)

    for offset, value in ((TCTL, 2), (TDBAL, 0x7FFF_FFF0), (TDLEN, 0x80), (TDT, 3), (IMS, 0xFFFF_FFFF), (ICS, 0xFF)):
        write(opened, offset, value)
    event = events.next("port.fault", name=f"{name}.eth0")
    for offset in range(0, 0x6000, 0x194):
        write(opened, offset, 0xFFFF_FFFF)

    one.nic.send([one.to(two, 64, 1)])
    assert "outside_memory" == event["rule"]
    assert "outside_memory" == net.lab.ports()[f"{name}.eth0"]["transmit_fault"]
    assert [one.to(two, 64, 1)] == two.gather(1)
    for data in (b"", b"\0" * 7, b"\0" * 368):
        with pytest.raises(UsageError):
            opened.call(wire.Function.WRITE, data)


def test_small_hosts_on_every_model_ping_each_other(net: Net, model: str) -> None:
    """A host on venet and one on a card answer each other, also with packets that fill a frame."""
    stacks = StackGuests()
    numbers, is_up = [], True
    for ip, station in (("10.10.0.1/24", net.station()), ("10.10.0.2/24", card(net, model))):
        numbers.append(stacks.add(station.guest.name, station.nic, mac=str(station.nic.mac), ip=ip))
        stacks.set_link(numbers[-1], is_up)

    for asker, asked, size in ((0, "10.10.0.2", 56), (1, "10.10.0.1", 1472)):
        trips = stacks.ping(numbers[asker], asked, 5, 0.0, PATIENCE, size)

        assert [] == [trip for trip in trips if trip is None]
    stacks.close()


LAB = """
name: t
switches: {lan: {}}
guests:
  small: {kind: stack, nics: [{switch: lan, ip: 10.10.0.2/24, model: rtl8139}]}
  gen: {kind: traffic, nics: [{switch: lan, model: e1000}], send: {to: sink, size: 300, rate: 2k}}
  sink: {kind: traffic, nics: [{switch: lan, model: e1000}]}
"""


@pytest.mark.usefixtures("no_leaked_processes")
def test_lab_with_cards_carries_a_checksummed_load_and_shows_the_models() -> None:
    """What arrives at the sink is whole and in order; ``vbnet device list`` names each guest's card."""
    with real_lab(LAB, ()) as lab:
        eventually(lambda: sunk(lab).get("frames", 0) > 500, "five hundred frames")

        found = sunk(lab)
        kinds = {row["name"]: row["type"] for row in lab.rows("device", "list")}
        assert (0, 0, 0) == (found["corrupted"], found["reordered"], found["duplicates"])
        assert {"small.eth0": "rtl8139", "gen.eth0": "e1000", "sink.eth0": "e1000"}.items() <= kinds.items()


def sunk(lab: RealLab) -> dict[str, int]:
    """What the sink of a lab counted."""
    for file in RunDir(lab.folder).counters.iterdir():
        for block in read_blocks(file) if file.is_file() else ():
            if block.kind == "traffic_sink" and block.labels["guest"] == "sink":
                return dict(zip(TRAFFIC_SINK_COUNTERS, block.values, strict=False))
    return {}

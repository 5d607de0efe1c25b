"""What a host node tells: to listeners, to its history, and each distinct error once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vbnet.bus.admin import WedgedLevel
from vbnet.bus.errorlog import DistinctError, read_errors
from vbnet.bus.history import read_history
from vbnet.bus.rundir import RunDir
from vbnet.bus.topics import BY_LABS
from vbnet.errors import NotFoundError, PeerFault, UsageError
from vbnet.hostnode.plugboard import contained
from vbnet.hostnode.telling import Refusals, Teller
from vbnet.hostnode.wedged import WedgeWatch
from vbnet.testing import ManualClock
from vbnet.testing.lab import Lab, eventually
from vbnet.testing.wire import RawPeer


class Told:
    """Remembers events and errors."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.errors: list[tuple[str, str, str]] = []

    def publish(self, topic: str, **fields: object) -> None:
        """Remember an event."""
        self.events.append((topic, fields))

    def note(self, what: str, whose: str, code: str, message: str) -> None:
        """Remember an error."""
        assert isinstance(message, str)
        self.errors.append((what, whose, code))


@pytest.fixture
def told() -> Told:
    """Somebody who listens."""
    return Told()


def errors(run_dir: RunDir) -> dict[tuple[str, str, str], DistinctError]:
    """What the error log has."""
    return {(error.what, error.whose, error.code): error for error in read_errors(run_dir).errors}


async def test_the_life_of_a_session_is_in_the_history_after_the_node_ended(run_root: Path) -> None:
    """From the node's first moment to its last, with the cause of each end."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan")
        await guest.close()
        await eventually(lambda: not lab.host.book.all())
        await lab.guest("db", "lan")

    found = read_history(lab.run_dir).events

    assert [
        *("node.starting", "node.ready", "bus.created", "device.created", "device.set", "device.plugged"),
        *("guest.joined", "guest.ready", "guest.gone", "guest.joined", "guest.ready"),
    ] == [event["topic"] for event in found][:11]
    assert {"node.stopping", "device.unplugged", "device.deleted"} <= {event["topic"] for event in found}
    causes = {event["guest"]: event["cause"] for event in found if event["topic"] == "guest.gone"}
    assert ("bye", True) == (causes["web"], causes["db"] in {"bye", "host-stopped"})
    assert [event["seq"] for event in found] == list(range(1, len(found) + 1))


async def test_a_quarantined_port_is_an_error_of_its_own(run_root: Path) -> None:
    """Each port and rule once, with its count."""
    async with Lab.open(run_root) as lab:
        for _ in range(3):
            fault = {"port": 3, "name": "web.eth0", "part": "tx", "rule": "next < size", "text": "got 900"}
            lab.fabric.fault(**fault)
            lab.host._take_faults()

        [event] = [event for event in read_history(lab.run_dir).events if event["topic"] == "port.fault"][-1:]
        found = errors(lab.run_dir)["port.fault", "web.eth0", "next < size"]

    assert ("error", "web.eth0", "tx") == (event["severity"], event["name"], event["part"])
    assert (3, "got 900") == (found.count, found.message)


async def test_a_quarantined_card_is_a_fault_of_the_guest_that_has_it(run_root: Path) -> None:
    """Its count goes up, nobody else's does, and whoever lists guests is told why it is served no more."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("web.eth0", "lan", "venet")
        await lab.plugged("db.eth0", "lan", "venet")
        web, db = await lab.guest("web", "lan"), await lab.guest("db", "lan")
        await web.open_device(1, 1)
        await db.open_device(2, 1)
        lab.fabric.add_port("", "web.eth0", "venet", receive_fault="bad_size", transmit_fault=None)
        port = lab.fabric.ports()[0]["id"]

        lab.fabric.fault(port=port, name="web.eth0", part="receive", rule="bad_size", text="got 900")
        lab.host._take_faults()
        found = {guest.name: (guest.faults, guest.quarantined) for guest in await lab.operator.guest_list()}

    assert {"web": (1, ["eth0: got 900"]), "db": (0, [])} == found


async def test_a_bug_in_a_device_is_told_and_contained(run_root: Path) -> None:
    """Which device, in which method, what kind of error; not what it was about, which may be a guest's data."""
    async with Lab.open(run_root) as lab:
        with contained(lab.host._services, lab.host.tally, "broken", "call", swallow=True):
            raise KeyError("PLANTED")

        [event] = [event for event in read_history(lab.run_dir).events if event["topic"] == "device.failed"]
        found = errors(lab.run_dir)

    assert ("broken", "call", "KeyError") == (event["device"], event["method"], event["error"])
    assert [("device.failed", "broken", "KeyError")] == list(found)
    assert "PLANTED" not in str(found) + str(event)


async def test_refusals_of_all_doors_are_errors(run_root: Path) -> None:
    """A guest's request, a packet of descriptors and an operator's verb, each under whose and which."""
    async with Lab.open(run_root) as lab:
        guest = await lab.guest("web")
        with pytest.raises(NotFoundError):
            await guest.open_device(77, 1)
        with pytest.raises(NotFoundError):
            await lab.operator.bus_delete("none")

        found = errors(lab.run_dir)

    assert {("bus.refused", "web", "ENOENT"), ("admin.refused", "operator", "ENOENT")} == set(found)
    assert "77" in found["bus.refused", "web", "ENOENT"].message


def test_a_guest_that_is_refused_again_and_again_is_told_of_once_a_heartbeat(told: Told) -> None:
    """A burst is one event with its count; an honest mistake now and then is none."""
    refusals = Refusals(told.publish, told.note)
    refusals.add("bus.refused", "honest", UsageError("once"))
    for _ in range(100):
        refusals.add("bus.refused", "hostile", PeerFault("bad", rule="parts == 1"))

    refusals.tell()
    refusals.tell()

    assert [("guest.refused", {"guest": "hostile", "code": "EPROTO", "count": 100, "text": "bad"})] == told.events
    assert {("bus.refused", "honest", "EINVAL"), ("bus.refused", "hostile", "EPROTO parts == 1")} == set(told.errors)


def test_refusals_to_ever_new_names_take_bounded_memory(told: Told) -> None:
    """Of so many only some are counted for bursts; each is still an error."""
    refusals = Refusals(told.publish, told.note)

    for number in range(5000):
        refusals.add("attach.refused", f"process {number}", UsageError("no"))

    assert (5000, 1024) == (len(told.errors), len(refusals._counts))


def test_a_bug_of_the_host_is_noted_without_its_text(told: Told) -> None:
    """What an unexpected error says may be anybody's data."""
    notes: list[str] = []
    refusals = Refusals(told.publish, lambda _what, _whose, _code, message: notes.append(message))

    refusals.add("bus.refused", "web", ValueError("PLANTED"))

    assert ["a bug of the host: ValueError"] == notes


def test_a_wedged_handler_is_told_once_when_it_begins_and_once_when_it_ends(told: Told) -> None:
    """Looking again tells nothing new; a guest that left is not wedged any more."""
    levels = {"web": [WedgedLevel(1, 2, 33, 1.5, 4)], "db": []}
    watch = WedgeWatch(lambda guest: levels[guest], told.publish)

    changed = [watch.look(guests) for guests in (["web", "db"], ["web", "db"], ["db"])]

    assert [{"web"}, set(), {"web"}] == changed
    place = {"guest": "web", "vcpu": 1, "priority": 2}
    assert [
        ("guest.wedged", {**place, "vector": 33, "since_s": 1.5, "pending": 4}),
        ("guest.unwedged", place),
    ] == told.events


def test_a_guest_cannot_push_others_out_of_the_history(tmp_path: Path) -> None:
    """Of one topic and guest a burst is kept; the next that is kept says how many were not."""
    clock, run_dir = ManualClock(), RunDir(tmp_path)
    teller = Teller(clock)
    teller.open(run_dir)
    teller.publish("guest.ready", guest="honest", bus="lan", pid=1)
    for _ in range(1000):
        teller.publish("guest.fault", guest="hostile", device="d", rule="r", text="t")
    clock.advance(1)
    teller.publish("guest.fault", guest="hostile", device="d", rule="r", text="t")
    teller.close()

    found = read_history(run_dir).events

    assert (22, 980, 1002) == (len(found), found[-1]["left_out"], found[-1]["seq"])
    assert 1001 == errors(run_dir)["guest.fault", "hostile", "r"].count


def test_what_the_history_left_out_is_told_when_nothing_comes_after_it(tmp_path: Path) -> None:
    """A flood that ends leaves its count, once."""
    clock, run_dir = ManualClock(), RunDir(tmp_path)
    teller = Teller(clock)
    teller.open(run_dir)
    for _ in range(50):
        teller.publish("guest.fault", guest="hostile", device="d", rule="r", text="t")
    teller.tell_left_out()
    clock.advance(5)
    teller.tell_left_out()
    teller.tell_left_out()
    teller.close()

    told = [event for event in read_history(run_dir).events if event["topic"] == "node.left_out"]

    assert [("guest.fault", "hostile", 30)] == [(event["of"], event["whose"], event["count"]) for event in told]


def test_fields_cannot_pass_for_the_head_of_an_event(tmp_path: Path) -> None:
    """A device that publishes a field named like one of the head's does not get through with it."""
    teller = Teller(ManualClock())
    teller.open(RunDir(tmp_path))

    teller.publish("outside.topic", seq=99, time=0, severity="error", more=1)
    teller.close()

    [event] = read_history(RunDir(tmp_path)).events
    assert ("outside.topic", 1, "info", 1) == (event["topic"], event["seq"], event["severity"], event["more"])


async def test_a_lab_tells_through_its_host_node_and_nothing_else_of_the_hosts(run_root: Path) -> None:
    """Topics of labs and of runs in them, with exactly their fields; none of the host's own."""
    async with Lab.open(run_root) as lab:
        await lab.operator.event_publish("lab.up", {"lab": "t", "count": 3})
        await lab.operator.event_publish("load.began", {"lab": "t", "profile": "p"})
        await lab.operator.event_publish("soak.finding", {"lab": "t", "profile": "p", "what": "lost", "detail": "1"})
        with pytest.raises(NotFoundError, match=r"no topic 'node\.stopping' that others may publish"):
            await lab.operator.event_publish("node.stopping", {"node": "lab"})
        with pytest.raises(UsageError, match="has the fields lab, count"):
            await lab.operator.event_publish("lab.up", {"lab": "t", "seq": 3})

        by_labs = [event for event in read_history(lab.run_dir).events if event["topic"].startswith(BY_LABS)]

    assert ["lab.up", "load.began", "soak.finding"] == [event["topic"] for event in by_labs]
    assert ("t", 3) == (by_labs[0]["lab"], by_labs[0]["count"])


async def test_a_forged_token_is_refused_and_not_written_down(run_root: Path) -> None:
    """The refusal counts as an error of that process; neither the log, nor events, nor errors have the token."""
    token = b"PLANTED-TOKEN-".ljust(32, b"x")
    async with Lab.open(run_root) as lab:
        with RawPeer(lab.run_dir.path) as peer:
            peer.packet(1, [1, token, False])
            await lab.operator.node_info()
            while not errors(lab.run_dir):
                await lab.operator.node_info()

        found = errors(lab.run_dir)
        kept = [path.read_bytes() for path in lab.run_dir.path.glob("*") if path.is_file()]

    [(what, whose, code)] = found
    assert ("attach.refused", True, "EPERM") == (what, whose.startswith("process "), code)
    assert not any(b"PLANTED" in data for data in kept)
    assert "PLANTED" not in str(lab.log.lines)

"""Native guests go on when their card leaves and comes again: unplugged, after a reset, after a quarantine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.real_lab import RealLab, real_lab
from tests.support.waiting import eventually
from vbnet._native import TRAFFIC_SINK_COUNTERS, VenetLayout
from vbnet.bus.operator import SyncOperator
from vbnet.bus.rundir import RunDir
from vbnet.cluster.guests.stack import SLOTS
from vbnet.sharedmem import read_blocks

MODELS = ["venet", "virtio-net", "virtio-net-pci", "e1000", "rtl8139"]
HOSTS = "\n".join(
    f"  s{number}: {{kind: stack, count: 2, nics: [{{switch: lan, model: {model}, ip: 10.10.{number}.1/16}}]}}"
    for number, model in enumerate(MODELS, 1)
)
ADDRESSES = {f"s{number}-{one}": f"10.10.{number}.{one + 1}" for number in range(1, len(MODELS) + 1) for one in (0, 1)}
LAB = f"""
name: t
switches: {{lan: }}
guests:
  one: {{kind: netns, nics: [{{switch: lan, ip: 10.10.0.1/16}}]}}
{HOSTS}
"""
TRAFFIC = """
name: t
switches: {{lan: }}
guests:
  from: {{kind: traffic, nics: [{{switch: lan, model: {model}}}], send: {{to: to, rate: 1k}}}}
  to: {{kind: traffic, nics: [{{switch: lan, model: {model}}}]}}
"""
RING_HEADER_BYTES = 0x400
"""Where a ring's slots of 8 bytes begin; see docs/wire/ring.md."""

pytestmark = pytest.mark.usefixtures("no_leaked_processes", "no_leaked_links")


@pytest.fixture
def hosts(namespaces: None, tun_device: None) -> Iterator[RealLab]:
    """A namespace, and two small IP hosts in one process for each model of card."""
    del namespaces, tun_device
    with real_lab(LAB) as up:
        yield up


@contextmanager
def operating(lab: RealLab) -> Iterator[SyncOperator]:
    """An operator of the lab's host node, without the command line, which takes a third of a second to load."""
    with SyncOperator(RunDir(lab.folder)) as operator:
        yield operator


def replug(operator: SyncOperator, guest: str) -> None:
    """Take a guest's card away, and give it back."""
    operator.device_unplug(f"{guest}.eth0", guest)
    operator.device_plug(f"{guest}.eth0", guest)


def answers(lab: RealLab, guest: str) -> None:
    """Wait until a small IP host answers pings."""
    address = ADDRESSES[guest]
    eventually(
        lambda: " 0% packet loss" in lab.within("one", "sh", "-c", f"ping -c 1 -W 1 {address} || true"),
        f"{guest} answers",
    )


def test_small_hosts_answer_again_after_their_card_was_unplugged(hosts: RealLab) -> None:
    """Whatever the model, and whoever else is in the process, who goes on answering meanwhile."""
    with operating(hosts) as operator:
        for guest in ADDRESSES:
            replug(operator, guest)
            answers(hosts, guest)

    for guest in ADDRESSES:
        answers(hosts, guest)


def test_small_hosts_answer_again_after_each_reset(hosts: RealLab) -> None:
    """Their memory is enough for one card, so nothing of the one before may be left; three times over."""
    with operating(hosts) as operator:
        for guest in ADDRESSES:
            for _ in range(3):
                operator.guest_reset(guest)
                answers(hosts, guest)


def test_a_quarantined_small_host_answers_again_after_a_reset(hosts: RealLab) -> None:
    """The way out that operators are told is one, also for two in one process."""
    scribble(hosts, "s1-0")
    hosts.within("one", "sh", "-c", f"ping -c 1 -W 1 {ADDRESSES['s1-0']}; ping -c 1 -W 1 {ADDRESSES['s1-1']}; true")
    with operating(hosts) as operator:
        eventually(lambda: 2 == sum(bool(port["receive_fault"]) for port in operator.port_list()), "two quarantines")

        told = {row["guest"]: row["detail"] for row in hosts.rows("ps")}
        faults = {row["name"]: row["faults"] for row in hosts.rows("guest", "list")}
        for guest in ("s1-0", "s1-1"):
            operator.guest_reset(guest)

    for guest in ("s1-0", "s1-1"):
        answers(hosts, guest)
        assert 1 == faults[guest]
        assert told[guest].startswith("quarantined: eth0: ")
        assert f"`vbnet guest reset {guest}`" in told[guest]
    assert 0 == faults["s2-0"]


@pytest.mark.parametrize("model", [MODELS[0], *(pytest.param(model, marks=pytest.mark.slow) for model in MODELS[1:])])
def test_traffic_goes_on_after_its_cards_were_unplugged_and_guests_reset(model: str) -> None:
    """Numbers go on at both ends: what was sent while nobody was there is lost, and nothing is seen twice."""
    with real_lab(TRAFFIC.format(model=model)) as lab, operating(lab) as operator:
        for guest in ("from", "to"):
            replug(operator, guest)
            moves_on(lab)
            operator.guest_reset(guest)
            moves_on(lab)

        found = counted(lab, "to", "traffic_sink", TRAFFIC_SINK_COUNTERS)

    assert 0 < found["lost"]
    assert 0 == found["duplicates"] == found["corrupted"] == found["stale"]


def counted(lab: RealLab, guest: str, kind: str, names: Sequence[str]) -> dict[str, int]:
    """What a traffic guest has counted so far."""
    place = RunDir(lab.folder).process_counters(lab.state().guests[guest].process)
    [block] = [block for block in read_blocks(place) if block.kind == kind]
    return dict(zip(names, block.values, strict=False))


def moves_on(lab: RealLab) -> None:
    """Wait until the sink has counted a hundred frames more than now."""

    def frames() -> int:
        return counted(lab, "to", "traffic_sink", TRAFFIC_SINK_COUNTERS)["frames"]

    before = frames()
    eventually(lambda: frames() > before + 100, "the sink gets frames")


def scribble(lab: RealLab, guest: str) -> None:
    """Post buffers that cannot be in a guest's memory, and of all others in its process, as a broken guest would."""
    process = lab.state().processes[lab.state().guests[guest].process].identity
    assert process is not None
    slots = VenetLayout(1500, SLOTS, SLOTS).rx_offset + RING_HEADER_BYTES
    for file in Path(f"/proc/{process.pid}/fd").iterdir():
        if "memfd:vbnet-ram" in str(file.readlink()):
            with file.open("r+b", buffering=0) as memory:
                os.pwrite(memory.fileno(), b"\xff" * 8 * SLOTS, slots)

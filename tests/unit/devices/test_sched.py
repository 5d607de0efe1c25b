"""Both halves of sched on a bench: the guest is this process, so its classes need no privilege to be told apart."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.support.waiting import eventually
from vbnet._native import SCHED_CLASSES, SCHED_COUNTERS
from vbnet.devices.sched import metrics, wire
from vbnet.devices.sched.device import SchedClass
from vbnet.devices.sched.driver import Sched, SchedDriver
from vbnet.errors import PeerFault, ResourceError, UnsupportedError, UsageError
from vbnet.hostnode.device import SharedRegion, SignalEnds
from vbnet.testing import FakeOpener, GuestBench, HostBench

RAM_BYTES = 1 << 16


@pytest.fixture
def host() -> Iterator[HostBench]:
    """Give a test a device that ends with it."""
    bench = HostBench(SchedClass())
    yield bench
    bench.device.release()


@pytest.fixture
def guest(host: HostBench) -> Iterator[GuestBench]:
    """Give a test a guest with memory."""
    bench = GuestBench(host, ram_bytes=RAM_BYTES)
    yield bench
    bench.close()


def threads(host: HostBench) -> list[dict[str, object]]:
    """What the operator sees."""
    found: list[dict[str, object]] = json.loads(host.device.attributes.texts()["threads"])
    return found


async def bound(guest: GuestBench, records: int = 2) -> Sched:
    """A driver at work."""
    return await SchedDriver(records).probe(guest.device("sched0"))


def test_metrics_and_classes_are_those_of_the_native_half() -> None:
    """One metric for each counter, in its order, and the same classes on both sides."""
    assert SCHED_COUNTERS == list(metrics.SCHED.values)
    assert SCHED_CLASSES == [found.name.lower() for found in wire.Class]


async def test_thread_is_in_hand_while_its_block_lasts(host: HostBench, guest: GuestBench) -> None:
    """What a thread wants is applied, shown to the operator, and forgotten afterwards."""
    sched = await bound(guest)

    with sched.thread("batch") as me:
        eventually(lambda: me.state.applied == "batch", "it is applied")
        during = threads(host)
    eventually(lambda: threads(host) == [], "it is let go")

    assert [(threading.get_native_id(), "batch", "batch")] == [
        (row["tid"], row["wanted"], row["applied"]) for row in during
    ]
    assert os.SCHED_OTHER == os.sched_getscheduler(0)


async def test_same_words_again_cost_the_host_nothing(host: HostBench, guest: GuestBench) -> None:
    """Declaring what was declared, or turning without consequence, rings no doorbell."""
    sched = await bound(guest)

    with sched.thread("normal") as me:
        eventually(lambda: me.state.applied == "normal", "it is applied")
        before = host.device.attributes.texts()["counts"]
        for _ in range(100):
            me.declare("normal")
            me.running()
            me.idle()

        assert before == host.device.attributes.texts()["counts"]


async def test_as_many_threads_as_records_and_no_more(guest: GuestBench) -> None:
    """One too many is told so; a record that was given back is used again."""
    sched = await bound(guest, records=1)

    with sched.thread("normal"), pytest.raises(ResourceError, match="every record"), sched.thread("normal"):
        pass
    with sched.thread("normal"):
        pass


async def test_unknown_class_is_refused_by_the_driver(guest: GuestBench) -> None:
    """A misspelt class is the caller's mistake, and the record is free again."""
    sched = await bound(guest, records=1)

    with pytest.raises(UsageError, match="hasty"), sched.thread("hasty"):
        pass
    with sched.thread("normal"):
        pass


async def test_thread_that_is_nobodys_is_refused_with_its_reason(guest: GuestBench) -> None:
    """The guest reads why in its own page."""
    sched = await bound(guest)

    with sched.thread("idle", tid=0x7FFFFFFF) as me:
        eventually(lambda: me.state.refusal is not None, "it is refused")

        assert ("forged_thread", None) == (me.state.refusal, me.state.applied)


@pytest.mark.parametrize("header", [b"", struct.pack("<4sII", b"vSCH", 1, 257), struct.pack("<4sII", b"vSCH", 2, 1)])
def test_page_that_is_none_is_a_fault_of_the_guest(host: HostBench, guest: GuestBench, header: bytes) -> None:
    """Nothing, a version of tomorrow, and more records than there may be: each is reported and refused."""
    connection = host.open("sched0", opener=guest.opener)
    memoryview(guest.ram.view(4096, 12))[: len(header)] = header
    ends = SignalEnds(os.eventfd(0), os.eventfd(0))
    region = SharedRegion(0, guest.ram, 4096, 0x400, 0, 0, 0, wire.SIGNAL_OFFSET, ends)

    with pytest.raises(PeerFault):
        connection.shm(region)

    assert 1 == len(guest.opener.faults)
    os.close(ends.kick_fd)
    os.close(ends.call_fd)


def test_page_without_its_doorbell_is_refused(host: HostBench, guest: GuestBench) -> None:
    """A page whose signal is elsewhere, or missing, is the guest's mistake."""
    connection = host.open("sched0", opener=guest.opener)

    with pytest.raises(UsageError, match="0x80"):
        connection.shm(SharedRegion(0, guest.ram, 4096, 0x400, 0, 0, 0))


def test_guest_of_another_machine_is_refused(host: HostBench) -> None:
    """Its threads are not here."""
    with pytest.raises(UnsupportedError):
        host.open("sched0", opener=FakeOpener(is_remote=True))


async def test_driver_learns_what_the_host_can_do(host: HostBench, guest: GuestBench) -> None:
    """The driver's set and the operator's sentence say the same."""
    sched = await bound(guest)

    cannot = host.device.attributes.texts()["cannot"]

    assert {name for name in wire.ABILITIES if name not in cannot} == sched.abilities

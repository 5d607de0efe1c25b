"""The host half of timer: what it takes, what it refuses, and whose fault is told to whom."""

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from vbnet._native import TIMER_COUNTERS, Ram, Timers
from vbnet.devices.timer import wire
from vbnet.devices.timer.device import TimerClass
from vbnet.devices.timer.metrics import METRICS
from vbnet.errors import ExistsError, PeerFault, UnsupportedError, UsageError
from vbnet.hostnode.device import Connection, SharedRegion, SignalEnds
from vbnet.testing import FakeOpener, HostBench

SLOTS = 64


class Guest:
    """A guest's memory with a timer page, and the regions that show it."""

    def __init__(self, **attributes: str) -> None:
        self.bench = HostBench(TimerClass(), attributes)
        self.ram = Ram.create(65536)
        self.timers = Timers(self.ram, SLOTS)
        self.opener = FakeOpener(signals=self.bench.signals)
        self.connection: Connection = self.bench.open("device", opener=self.opener)
        self.bells: list[int] = []

    def region(self, number: int, offset: int, length: int, signal_offset: int) -> SharedRegion:
        """A region with a doorbell."""
        kick, call = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        self.bells += [kick, call]
        ends = SignalEnds(kick, call)
        return SharedRegion(number, self.ram, offset, length, 0, 0, 0, signal_offset, ends)

    def page(self) -> SharedRegion:
        """The timer page."""
        layout = self.timers.layout
        return self.region(wire.PAGE, layout.page_offset, layout.page_bytes, wire.PAGE_SIGNAL_OFFSET)

    def signal(self, priority: int) -> SharedRegion:
        """The signal of a priority."""
        layout = self.timers.layout
        offset = layout.signals_offset + priority * layout.signal_bytes
        return self.region(wire.SIGNAL + priority, offset, layout.signal_bytes, 0)

    def close(self) -> None:
        """Everything is gone."""
        self.bench.unplug()
        self.bench.device.release()
        for bell in self.bells:
            os.close(bell)


@asynccontextmanager
async def guest(**attributes: str) -> AsyncIterator[Guest]:
    """A guest on a bench, on a running loop."""
    made = Guest(**attributes)
    yield made
    made.close()


def answered(work: Callable[[Guest], Any], **attributes: str) -> Any:
    """What ``work`` gives on a loop."""

    async def run() -> Any:
        async with guest(**attributes) as made:
            return work(made)

    return asyncio.run(run())


def test_query_tells_what_the_operator_set() -> None:
    """Enabled, most slots, and the lead in nanoseconds."""
    data = answered(lambda guest: guest.connection.call(wire.QUERY, b""), slots_max="4096", lead_us="7", enabled="0")

    assert struct.pack("<IIQ", 0, 4096, 7000) == data


def test_page_and_signals_are_taken_once_each() -> None:
    """A second page or signal of the same priority is refused, another priority is not."""

    def work(guest: Guest) -> int:
        guest.connection.shm(guest.page())
        guest.connection.shm(guest.signal(0))
        guest.connection.shm(guest.signal(7))
        for again in (guest.page(), guest.signal(7)):
            with pytest.raises(ExistsError):
                guest.connection.shm(again)
        return int(guest.bench.device.attributes["guests"])

    assert 1 == answered(work)


@pytest.mark.parametrize(
    "region",
    [
        lambda guest: guest.signal(0),
        lambda guest: replace(guest.page(), signal=None, signal_offset=None),
        lambda guest: replace(guest.page(), signal_offset=0),
        lambda guest: replace(guest.page(), id=9),
    ],
    ids=["signal before page", "no doorbell", "doorbell elsewhere", "no such region"],
)
def test_regions_that_make_no_sense_are_refused(region: Callable[[Guest], SharedRegion]) -> None:
    """The guest's mistake: nothing is kept, nobody is blamed."""

    def work(guest: Guest) -> list[PeerFault]:
        with pytest.raises(UsageError):
            guest.connection.shm(region(guest))
        return guest.opener.faults

    assert [] == answered(work)


def test_page_that_is_none_is_a_fault_of_the_guest() -> None:
    """It is told to the opener under its rule, and the guest may try again with a proper one."""

    def work(guest: Guest) -> list[object]:
        with pytest.raises(PeerFault):
            guest.connection.shm(replace(guest.page(), length=guest.page().length - 128))
        memory = memoryview(guest.ram.view(guest.page().offset, 4))
        magic = bytes(memory)
        memory[:] = b"nope"
        with pytest.raises(PeerFault):
            guest.connection.shm(guest.page())
        memory[:] = magic
        guest.connection.shm(guest.page())
        return [fault.fields["rule"] for fault in guest.opener.faults]

    assert ["bad_size", "bad_header"] == answered(work)


def test_more_slots_than_allowed_are_a_fault() -> None:
    """Whatever the driver asks for, the operator's limit holds; it has been asked for before."""

    def work(guest: Guest) -> list[object]:
        guest.timers = Timers(guest.ram, 2 * SLOTS)
        with pytest.raises(PeerFault):
            guest.connection.shm(guest.page())
        return [fault.fields["rule"] for fault in guest.opener.faults]

    assert ["bad_size"] == answered(work, slots_max=str(SLOTS))


def test_disabled_device_takes_no_page() -> None:
    """It says which attribute."""

    def work(guest: Guest) -> None:
        with pytest.raises(UnsupportedError, match="enabled"):
            guest.connection.shm(guest.page())

    answered(work, enabled="0")


@pytest.mark.parametrize(("function", "data"), [(wire.QUERY, b"x"), (99, b"")])
def test_calls_that_make_no_sense_are_refused(function: int, data: bytes) -> None:
    """QUERY takes nothing, and there is no other function."""

    def work(guest: Guest) -> None:
        with pytest.raises(UsageError):
            guest.connection.call(function, data)

    answered(work)


@pytest.mark.parametrize(
    ("name", "text"), [("slots_max", "63"), ("slots_max", "131073"), ("lead_us", "1001"), ("enabled", "2")]
)
def test_impossible_attributes_are_refused(name: str, text: str) -> None:
    """Out of range is said when it is set."""
    device = HostBench(TimerClass()).device

    with pytest.raises(UsageError):
        device.attributes.set_text(name, text, is_open=False)


def test_each_counter_has_its_metric() -> None:
    """In the same order, under the same name."""
    names = [metric.name.removeprefix("vbnet_timer_").removesuffix("_total") for metric in METRICS]

    assert names == TIMER_COUNTERS

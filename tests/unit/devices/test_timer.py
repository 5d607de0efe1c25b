"""timer without processes: what the host half takes and refuses, and who keeps the timers when it is switched off."""

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.support.waiting import PATIENCE
from vbnet._native import TIMER_COUNTERS, Ram, Timers, timer_now_ns
from vbnet.bus.limits import RAM_HEADER_BYTES
from vbnet.devices.timer import driver, wire
from vbnet.devices.timer.device import TimerClass
from vbnet.devices.timer.driver import Tick, TimerDriver
from vbnet.devices.timer.metrics import TIMER
from vbnet.errors import (
    DeadlineError,
    ExistsError,
    PeerFault,
    PeerGone,
    ResourceError,
    UnsupportedError,
    UsageError,
)
from vbnet.hostnode.device import Connection, SharedRegion, SignalEnds
from vbnet.hostnode.signals import SignalBook
from vbnet.testing import FakeOpener, GuestBench, HostBench

SLOTS = 64
LONG = 3600.0


class TellingOpener(FakeOpener):
    """An opener that can be waited for.

    Attributes:
        told: set when it was told of a fault.
    """

    def __init__(self, signals: SignalBook) -> None:
        super().__init__(signals=signals)
        self.told = asyncio.Event()

    def fault(self, fault: PeerFault) -> None:
        """Remember it, and say so."""
        super().fault(fault)
        self.told.set()


class Guest:
    """A guest's memory with a timer page, and the regions that show it."""

    def __init__(self, **attributes: str) -> None:
        self.bench = HostBench(TimerClass(), attributes)
        self.ram = Ram.create(65536)
        self.timers = Timers(self.ram, SLOTS)
        self.opener = TellingOpener(self.bench.signals)
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

    def set(self, name: str, value: object) -> None:
        """What an operator does while guests have the device open."""
        self.bench.device.attributes.set_text(name, str(value), is_open=True)

    def kept(self) -> int:
        """How many guests' timers the host keeps."""
        return int(self.bench.device.attributes["guests"])

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


@pytest.mark.parametrize(
    ("function", "data"),
    [(wire.QUERY, b"x"), (wire.KEEP, b"x"), (wire.RELEASE, b"x"), (wire.KEEP, b""), (99, b"")],
    ids=["query with data", "keep with data", "release with data", "keep without a page", "no such function"],
)
def test_calls_that_make_no_sense_are_refused(function: int, data: bytes) -> None:
    """No function takes data, and there are three."""

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
    assert list(TIMER.values) == TIMER_COUNTERS


def test_each_switch_is_told_to_whoever_has_the_device_open() -> None:
    """Also to a guest that has shared no page."""

    def work(guest: Guest) -> list[bool]:
        for value in (0, 1):
            guest.set("enabled", value)
        guest.bench.close(guest.connection)
        guest.set("enabled", 0)
        return guest.opener.links

    assert [False, True] == answered(work)


def test_guest_that_does_not_follow_is_kept_on_and_shown() -> None:
    """Switched off, the host serves it as before: its timers expire, its doorbell rings, `guests` counts it."""

    def work(guest: Guest) -> tuple[bool, int]:
        guest.connection.shm(guest.page())
        guest.connection.shm(guest.signal(0))
        guest.timers.connect(guest.bells[0], 0)
        guest.timers.connect_priority(0, guest.bells[3])
        guest.set("enabled", 0)
        mine = guest.timers.arm(timer_now_ns() + 1_000_000)
        return guest.timers.wait(mine, PATIENCE) is not None, guest.kept()

    assert (True, 1) == answered(work)


def test_released_page_is_let_go_of_and_can_be_kept_again_with_its_signals() -> None:
    """As often as one likes, and more often than needed; what was armed meanwhile expires by the same doorbells."""

    def work(guest: Guest) -> list[object]:
        seen: list[object] = []
        guest.connection.shm(guest.page())
        guest.timers.connect(guest.bells[0], 0)
        guest.connection.call(wire.RELEASE, b"")
        guest.connection.call(wire.RELEASE, b"")
        seen.append(guest.kept())
        guest.connection.shm(guest.signal(0))
        guest.timers.connect_priority(0, guest.bells[3])
        mine = guest.timers.arm(timer_now_ns())
        seen.append(guest.timers.wait(mine, 0))
        guest.connection.call(wire.KEEP, b"")
        guest.connection.call(wire.KEEP, b"")
        seen.append(guest.kept())
        guest.timers.connect(guest.bells[0], 0)
        for timer in (mine, guest.timers.arm(timer_now_ns() + 1_000_000)):
            tick = guest.timers.wait(timer, PATIENCE)
            seen.append(tick and tick.number)
        return seen

    assert [0, None, 1, 1, 1] == answered(work)


def test_nothing_is_kept_while_switched_off() -> None:
    """KEEP is refused as sharing a page is, and nothing changes by it."""

    def work(guest: Guest) -> int:
        guest.connection.shm(guest.page())
        guest.connection.call(wire.RELEASE, b"")
        guest.set("enabled", 0)
        with pytest.raises(UnsupportedError, match="enabled"):
            guest.connection.call(wire.KEEP, b"")
        return guest.kept()

    assert 0 == answered(work)


def test_fewer_slots_for_guests_to_come_do_not_blame_one_that_comes_back() -> None:
    """It was granted more, and keeps it for as long as it has the device open."""

    def work(guest: Guest) -> tuple[int, list[PeerFault]]:
        guest.timers = Timers(guest.ram, 2 * SLOTS)
        guest.connection.shm(guest.page())
        guest.connection.call(wire.RELEASE, b"")
        guest.set("slots_max", SLOTS)
        guest.connection.call(wire.KEEP, b"")
        return guest.kept(), guest.opener.faults

    assert (1, []) == answered(work)


@pytest.mark.parametrize("region", ["page", "signal"])
def test_page_and_signals_are_checked_anew_when_they_are_kept_again(region: str) -> None:
    """What the guest wrote there meanwhile is its fault, and nothing is kept."""

    def work(guest: Guest) -> tuple[int, list[object]]:
        shown = {"page": guest.page(), "signal": guest.signal(0)}
        for each in shown.values():
            guest.connection.shm(each)
        guest.connection.call(wire.RELEASE, b"")
        memoryview(guest.ram.view(shown[region].offset, 4))[:] = b"nope"
        with pytest.raises(PeerFault):
            guest.connection.call(wire.KEEP, b"")
        return guest.kept(), [fault.fields["rule"] for fault in guest.opener.faults]

    assert (0, ["bad_header"]) == answered(work)


async def test_timers_that_were_given_up_are_not_kept_again() -> None:
    """Whose doorbell blocked once would hold the thread up again and again."""
    async with guest() as made, asyncio.timeout(PATIENCE):
        made.connection.shm(made.page())
        made.connection.shm(made.signal(0))
        made.timers.connect_priority(0, made.bells[3])
        assert ([], None) == made.timers.take_for_loop()
        os.eventfd_write(made.bells[3], 2**64 - 2)
        os.set_blocking(made.bells[3], True)
        made.timers.arm(1)
        made.timers.connect(made.bells[0], 0)
        await made.opener.told.wait()

        with pytest.raises(UsageError, match="given up"):
            made.connection.call(wire.KEEP, b"")

        assert 0 == made.kept()


class Pair:
    """Both halves on a bench, with timers bound."""

    def __init__(self, enabled: int) -> None:
        self.host = HostBench(TimerClass(), {"enabled": str(enabled)})
        self.guest = GuestBench(self.host, ram_bytes=1 << 16)
        self.reported: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: self.reported.append(context.get("exception")))
        self.timers: driver.Timers

    def switch(self, value: int) -> None:
        """What the operator does, and what the guest is told of it."""
        self.host.device.attributes.set_text("enabled", str(value), is_open=True)
        self.guest.device("device").link_changed(is_up=self.guest.opener.links[-1])

    async def settled(self, *, is_shared: bool) -> None:
        """Wait until the guest has done as it was told."""
        while self.timers.is_shared is not is_shared:
            await self.timers.after(0.001)
        assert int(is_shared) == self.host.device.attributes["guests"]

    def disturb(self, monkeypatch: pytest.MonkeyPatch, function: int, *by: Exception | Callable[[], object]) -> None:
        """Have the next calls of a function fail, or be preceded by something, one after the other."""
        left, call = list(by), self.guest.call_device

        async def instead(handle: int, number: int, data: bytes, deadline_s: float | None) -> bytes:
            if number == function and left:
                first = left.pop(0)
                if isinstance(first, Exception):
                    raise first
                first()
            return await call(handle, number, data, deadline_s)

        monkeypatch.setattr(self.guest, "call_device", instead)


@asynccontextmanager
async def pair(enabled: int = 1) -> AsyncIterator[Pair]:
    """Timers bound on a bench, on the running loop."""
    made = Pair(enabled)
    async with asyncio.timeout(PATIENCE):
        made.timers = await TimerDriver(slots=SLOTS).probe(made.guest.device("device"))
        yield made
        await made.timers.remove()
    made.guest.close()
    made.host.device.release()


def assert_none_lost(ticks: list[Tick], period_ns: int) -> None:
    """Numbers go up, what had no tick is counted, and all are on one grid."""
    first_ns = ticks[0].deadline_ns - (ticks[0].number - 1) * period_ns
    number = 0
    for tick in ticks:
        assert (number + 1 + tick.missed, first_ns + (tick.number - 1) * period_ns) == (tick.number, tick.deadline_ns)
        number = tick.number


@pytest.mark.parametrize("enabled", [1, 0])
async def test_bound_guest_follows_each_switch_and_loses_no_tick(enabled: int) -> None:
    """Wherever it began, on the event loop and in a thread, of two priorities, and of timers armed on the way."""
    async with pair(enabled) as made:
        timers, heard = made.timers, list[Tick]()
        ticking = timers.arm(0.001, every=0.001, priority=3, callback=heard.append)
        mine = timers.arm(0.002, every=0.002)
        distant = timers.arm(LONG)

        def wait() -> list[Tick]:
            waited = []
            while (tick := timers.wait(mine, PATIENCE)) is not None:
                waited.append(tick)
            return waited

        waiting = asyncio.create_task(asyncio.to_thread(wait))
        for value in (1 - enabled, enabled) * 5:
            made.switch(value)
            await made.settled(is_shared=bool(value))
            assert 1 == (await timers.after(0.001, priority=value)).number
        before = len(heard)
        while len(heard) < before + 5:
            await timers.after(0.001)

        assert (True, True, True) == (ticking.cancel(), mine.cancel(), distant.cancel())
        assert_none_lost(heard, 1_000_000)
        assert_none_lost(await waiting, 2_000_000)
        assert [] == made.reported


async def test_switches_faster_than_the_guest_end_where_the_last_one_says() -> None:
    """What was between is of no interest."""
    async with pair() as made:
        for value in (0, 1, 0, 1, 0):
            made.switch(value)
        await made.settled(is_shared=False)

        assert 1 == (await made.timers.after(0.001)).number
        assert [] == made.reported


async def test_switch_between_question_and_answer_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest asks to be kept just when the operator thinks otherwise."""
    async with pair() as made:
        made.switch(0)
        await made.settled(is_shared=False)
        made.disturb(monkeypatch, wire.KEEP, lambda: made.switch(0))

        made.switch(1)
        await made.timers.settle()

        assert 1 == (await made.timers.after(0.001)).number
        assert (False, []) == (made.timers.is_shared, made.reported)


async def test_switch_while_a_guest_binds_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to share its page, and then refused: it keeps its timers itself."""
    made = Pair(1)
    device, share = made.guest.device("device"), made.guest.share

    async def late(*arguments: Any) -> Any:
        made.host.device.attributes.set_text("enabled", "0", is_open=True)
        return await share(*arguments)

    monkeypatch.setattr(made.guest, "share", late)
    async with asyncio.timeout(PATIENCE):
        timers = await TimerDriver(slots=SLOTS).probe(device)

        assert (False, 1) == (timers.is_shared, (await timers.after(0.001)).number)
        await timers.remove()
    made.guest.close()
    made.host.device.release()


async def test_host_that_refuses_to_keep_timers_is_reported_and_they_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next switch is tried anew."""
    refusal = ResourceError("no descriptor is free")
    async with pair() as made:
        made.switch(0)
        await made.settled(is_shared=False)
        made.disturb(monkeypatch, wire.KEEP, refusal)

        made.switch(1)
        while not made.reported:
            await made.timers.after(0.001)

        assert (False, [refusal]) == (made.timers.is_shared, made.reported)
        made.switch(1)
        await made.settled(is_shared=True)


async def test_host_that_does_not_answer_is_asked_until_it_has_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that kept one page would take each other's marks."""
    async with pair() as made:
        made.disturb(monkeypatch, wire.RELEASE, DeadlineError("slow"), DeadlineError("slow"))

        made.switch(0)
        await made.settled(is_shared=False)

        assert 1 == (await made.timers.after(0.001)).number
        assert [] == made.reported


async def test_whoever_waits_hears_it_when_nobody_can_keep_the_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the host, which is switched off, nor this process: waiting would have no end."""

    class Broken:
        def attach(self, *_place: object, **_limits: object) -> int:
            raise ResourceError("no counter is free")

    async with pair() as made:
        waiting = [
            asyncio.create_task(asyncio.to_thread(made.timers.wait, made.timers.arm(LONG))),
            asyncio.create_task(made.timers.after(LONG)),
        ]
        await made.timers.after(0.001)
        monkeypatch.setattr(driver, "_own_keeper", Broken)

        made.switch(0)
        ends = await asyncio.gather(*waiting, return_exceptions=True)

        assert [PeerGone, PeerGone] == [type(end) for end in ends]
        assert [ResourceError] == [type(error) for error in made.reported]
        with pytest.raises(PeerGone):
            made.timers.arm(LONG)


@pytest.mark.parametrize("enabled", [1, 0])
async def test_device_that_leaves_ends_the_timers_wherever_they_are_kept(enabled: int) -> None:
    """Who waits gets PeerGone, and the memory is free again."""
    async with pair(enabled) as made:
        free = made.guest.memory.allocate
        waiting = asyncio.create_task(made.timers.after(LONG))
        await made.timers.after(0.001)

        made.guest.unplug()
        await made.timers.remove()

        with pytest.raises(PeerGone):
            await waiting
        whole = made.guest.ram.size - RAM_HEADER_BYTES
        assert free(whole, 1).offset == RAM_HEADER_BYTES

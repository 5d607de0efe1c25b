"""Timers across real processes: a host that keeps them, guests that arm them, and either of them dying."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import vbnet
from tests.support import vbnet_program
from tests.support.waiting import PATIENCE, eventually
from vbnet.bus.operator import SyncOperator
from vbnet.devices.timer.driver import Tick, TimerDriver, Timers
from vbnet.errors import BusyError, ClosedError, PeerGone, UsageError
from vbnet.guestnode import GuestNode
from vbnet.telemetry import read_counted
from vbnet.testing.processes import HostProcess, PythonProcess

LONG = 3600.0
ARMING_GUEST = """
import sys, vbnet
with vbnet.Guest(sys.argv[2], "lan", address=sys.argv[1]) as guest:
    timers = guest.bind("timer0")
    mine = timers.arm(0.001, every=0.001)
    timers.wait(mine)
    print("ticking", flush=True)
    sys.stdin.readline()
"""
COUNTING_GUEST = """
import sys, threading, vbnet
PERIOD_NS = 1_000_000
with vbnet.Guest("app", "lan", address=sys.argv[1]) as guest:
    timers = guest.bind("timer0")
    first_ns = timers.now_ns() + PERIOD_NS
    mine = timers.arm(deadline_ns=first_ns, every=PERIOD_NS / 1e9, priority=4)

    def obey():
        for line in sys.stdin:
            if line.strip() == "end":
                mine.cancel()
                return
            due_ns = timers.now_ns() + 2_000_000
            once = timers.arm(deadline_ns=due_ns)
            tick = timers.wait(once, 15)
            print(tick.number, tick.deadline_ns - due_ns, timers.wait(once, 0), timers.is_shared, flush=True)

    threading.Thread(target=obey).start()
    print("ticking", flush=True)
    number = lost = 0
    while (tick := timers.wait(mine, 15)) is not None:
        lost += tick.number != number + 1 + tick.missed or tick.deadline_ns != first_ns + (tick.number - 1) * PERIOD_NS
        number = tick.number
    passed = (timers.now_ns() - first_ns) // PERIOD_NS + 1
    print("lost", lost, "kept up", passed - number < 1000, flush=True)
"""


class Site:
    """A host with one timer device on one bus."""

    def __init__(self, host: HostProcess) -> None:
        self.host = host
        self.operator = SyncOperator(host.run_dir, deadline_s=PATIENCE)
        self.operator.bus_create("lan")
        self.operator.device_create("timer0", "timer")
        self.operator.device_plug("timer0", "lan")

    def guest(self, name: str = "app") -> vbnet.Guest:
        """A guest for plain functions."""
        return vbnet.Guest(name, "lan", address=self.host.run_dir)

    def set(self, name: str, value: object) -> None:
        """Set an attribute of the device."""
        self.operator.device_set("timer0", name, str(value))

    def kept(self) -> int:
        """How many guests' timers the host keeps."""
        return int(self.operator.device_get("timer0").attributes["guests"])

    def wait_kept(self, count: int) -> None:
        """Wait until it keeps those of so many guests."""
        eventually(lambda: self.kept() == count, f"timers of {count} guests kept by the host")

    def counted(self, guest: str = "app") -> dict[str, int]:
        """What the host counted for a guest."""
        found = read_counted(self.host.run_dir.counters, "timer")
        [values] = [dict(block.values) for block in found if block.labels["guest"] == guest]
        return values


@pytest.fixture
def site(run_root: Path) -> Iterator[Site]:
    """Give a test a host with a timer device."""
    with HostProcess(run_root) as host:
        made = Site(host)
        yield made
        made.operator.close()


@asynccontextmanager
async def bound(site: Site, name: str = "app", driver: TimerDriver | None = None) -> AsyncIterator[Timers]:
    """Timers of a guest that lives on the running loop."""
    async with asyncio.timeout(PATIENCE), await GuestNode.connect(site.host.run_dir, name) as node:
        guest = await node.join(name, "lan")
        guest.register(driver or TimerDriver())
        yield await guest.bind("timer0")


def test_thread_waits_for_a_timer_that_the_host_keeps(site: Site) -> None:
    """It comes once, not before its deadline, and the host counts it."""
    with site.guest() as guest:
        timers = guest.bind("timer0", PATIENCE)
        deadline_ns = timers.now_ns() + 2_000_000
        timer = timers.arm(deadline_ns=deadline_ns)

        tick = timers.wait(timer, PATIENCE)

        assert timers.is_shared
        assert (1, deadline_ns, 0) == (tick.number, tick.deadline_ns, tick.missed)
        assert deadline_ns <= timers.now_ns()
        assert timers.wait(timer, PATIENCE) is None
        assert 1 == site.counted()["expiries"]


def test_async_for_gives_ticks_on_their_grid(site: Site) -> None:
    """Each tick's deadline is a whole number of periods after the first, and what had no tick is counted."""

    async def program() -> list[Tick]:
        async with bound(site) as timers:
            ticks = []
            async for tick in timers.every(0.002):
                ticks.append(tick)
                if len(ticks) == 10:
                    break
            return ticks

    ticks = asyncio.run(program())

    first_ns = ticks[0].deadline_ns - (ticks[0].number - 1) * 2_000_000
    assert [first_ns + (tick.number - 1) * 2_000_000 for tick in ticks] == [tick.deadline_ns for tick in ticks]
    assert ticks[-1].number == len(ticks) + sum(tick.missed for tick in ticks)


def test_callbacks_come_in_the_order_of_deadlines_and_urgent_ones_are_kept_apart(site: Site) -> None:
    """Whatever order timers are armed in, and whatever priorities they have."""

    async def program() -> list[str]:
        async with bound(site) as timers:
            heard: list[str] = []
            over = asyncio.Event()
            base_ns = timers.now_ns() + 20_000_000

            def hearing(name: str) -> Callable[[Tick], None]:
                return lambda _tick: heard.append(name)

            for index, priority in ((2, 7), (0, 3), (1, 0)):
                deadline_ns = base_ns + index * 20_000_000
                timers.arm(deadline_ns=deadline_ns, priority=priority, callback=hearing(str(index)))
            timers.arm(deadline_ns=base_ns + 80_000_000, callback=lambda _tick: over.set())
            await over.wait()
            return heard

    assert ["0", "1", "2"] == asyncio.run(program())


def test_moved_and_cancelled_timers_keep_their_word(site: Site) -> None:
    """A moved timer comes at its new deadline only, a cancelled one never."""

    async def program() -> tuple[list[int], bool, bool]:
        async with bound(site) as timers:
            heard: list[int] = []
            moved = timers.arm(LONG, callback=lambda tick: heard.append(tick.deadline_ns))
            cancelled = timers.arm(0.001, callback=lambda tick: heard.append(-tick.deadline_ns))
            was_there = cancelled.cancel()
            target_ns = timers.now_ns() + 5_000_000
            moved.move(deadline_ns=target_ns)
            await timers.after(0.02)
            assert [target_ns] == heard
            return heard, was_there, cancelled.cancel()

    heard, was_there, is_there = asyncio.run(program())

    assert (1, True, False) == (len(heard), was_there, is_there)


def test_failing_callback_is_reported_and_the_others_run(site: Site) -> None:
    """The loop's exception handler hears of it."""

    async def program() -> list[str]:
        async with bound(site) as timers:
            reported: list[str] = []
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _loop, context: reported.append(str(context["exception"])))

            def fail(tick: Tick) -> None:
                raise RuntimeError(f"tick {tick.number}")

            timers.arm(0.001, callback=fail)
            await timers.after(0.01)
            return reported

    assert ["tick 1"] == asyncio.run(program())


def test_wrong_use_is_refused(site: Site) -> None:
    """Periods too short, priorities out of range, a callback in a thread, waiting for a callback, no time or two."""
    with site.guest() as guest:
        timers = guest.bind("timer0", PATIENCE)
        wrong: list[dict[str, Any]] = [
            {"in_seconds": 1, "every": 1e-6},
            {"in_seconds": 1, "every": -1},
            {"in_seconds": 1, "priority": 8},
            {"in_seconds": 1, "callback": print},
            {"in_seconds": 1, "deadline_ns": 1},
            {},
        ]

        for arguments in wrong:
            with pytest.raises((UsageError, OverflowError)):
                timers.arm(**arguments)


def test_all_slots_in_use_is_said_and_one_cancelled_is_enough(site: Site) -> None:
    """What the operator allows is the limit, however many the driver asks for."""
    site.set("slots_max", 64)
    with site.guest() as guest:
        guest.register(TimerDriver(slots=4096))
        timers = guest.bind("timer0", PATIENCE)
        made = [timers.arm(LONG) for _ in range(64)]

        with pytest.raises(BusyError):
            timers.arm(LONG)
        made[5].cancel()

        assert timers.arm(LONG).cancel()


def test_disabled_device_lets_guests_keep_their_timers_themselves(site: Site) -> None:
    """The same program works, and can tell."""
    site.set("enabled", 0)

    async def program() -> tuple[bool, int, int]:
        async with bound(site) as timers:
            tick = await timers.after(0.002, priority=5)
            mine = timers.arm(0.001)
            waited = await asyncio.to_thread(timers.wait, mine, PATIENCE)
            assert waited is not None
            return timers.is_shared, tick.number, waited.number

    assert (False, 1, 1) == asyncio.run(program())
    assert 0 == site.kept()


def test_guest_that_is_bound_follows_the_command_there_and_back(
    site: Site, run_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes throughout: its timers are kept where the operator says, and none is lost or comes twice."""
    monkeypatch.setenv("VBNET_RUN_DIR", str(run_root))
    with PythonProcess(COUNTING_GUEST, [str(site.host.run_dir.path)]) as guest:
        assert "ticking" == guest.line()
        for enabled in (0, 1, 0, 1):
            vbnet_program.run("device", "set", "timer0", f"enabled={enabled}")
            site.wait_kept(enabled)
            guest.tell("once")
            assert f"1 0 None {bool(enabled)}" == guest.line()

        guest.tell("end")

        assert "lost 0 kept up True" == guest.line()
        assert 0 == guest.wait()


def test_guest_that_stands_still_is_served_on_and_follows_later(site: Site) -> None:
    """Switching off waits for nobody, and another guest's timers go on."""
    with site.guest("bystander") as guest, PythonProcess(COUNTING_GUEST, [str(site.host.run_dir.path)]) as still:
        timers = guest.bind("timer0", PATIENCE)
        assert "ticking" == still.line()
        still.pause()
        site.set("enabled", 0)
        site.wait_kept(1)

        assert timers.wait(timers.arm(0.002), PATIENCE) is not None
        assert (False, 1) == (timers.is_shared, site.kept())
        still.resume()
        site.wait_kept(0)
        still.tell("end")
        assert "lost 0 kept up True" == still.line()


def test_lead_can_be_changed_while_guests_run(site: Site) -> None:
    """Without it nobody is told early; with it timers still never come early."""
    with site.guest() as guest:
        timers = guest.bind("timer0", PATIENCE)
        timer = timers.arm(0.001, every=0.001)

        for lead_us in (0, 1000, 0):
            site.set("lead_us", lead_us)
            ticks = [timers.wait(timer, PATIENCE) for _ in range(20)]
            assert all(tick is not None and tick.deadline_ns <= timers.now_ns() for tick in ticks)


def test_guest_killed_by_nine_frees_what_the_host_kept(site: Site) -> None:
    """At once, and another guest's timers go on."""
    with site.guest("bystander") as guest:
        timers = guest.bind("timer0", PATIENCE)
        timer = timers.arm(0.005, every=0.005)
        with PythonProcess(ARMING_GUEST, [str(site.host.run_dir.path), "victim"]) as victim:
            assert "ticking" == victim.line()
            assert 2 == site.kept()
            victim.kill()

        site.wait_kept(1)

        assert timers.wait(timer, PATIENCE) is not None
        assert {"bystander"} == {block.labels["guest"] for block in read_counted(site.host.run_dir.counters, "timer")}


@pytest.mark.parametrize("enabled", [1, 0])
def test_everything_that_waits_hears_that_the_host_died(site: Site, enabled: int) -> None:
    """A thread, a sleeper and an iterator: all get PeerGone, and so does who arms afterwards; whoever keeps them."""
    site.set("enabled", enabled)

    async def program() -> list[str]:
        async with bound(site) as timers:
            thread_started = threading.Event()

            def wait() -> None:
                timer = timers.arm(LONG)
                thread_started.set()
                timers.wait(timer)

            async def iterate() -> None:
                async for _tick in timers.every(LONG):
                    pass

            tasks = [
                asyncio.create_task(asyncio.to_thread(wait)),
                asyncio.create_task(timers.after(LONG)),
                asyncio.create_task(iterate()),
            ]
            await asyncio.to_thread(thread_started.wait, PATIENCE)
            await timers.after(0.001)
            site.host.kill()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            with pytest.raises(PeerGone):
                timers.arm(1.0)
            return [type(end).__name__ for end in ends]

    assert ["PeerGone"] * 3 == asyncio.run(program())


def test_unplug_ends_waiting_and_closing_says_closed(site: Site) -> None:
    """A device that leaves is a peer that is gone; a guest that leaves closed it itself."""
    with site.guest() as guest:
        timers = guest.bind("timer0", PATIENCE)
        timer = timers.arm(LONG)
        site.operator.device_unplug("timer0", "lan")

        with pytest.raises(PeerGone):
            timers.wait(timer, PATIENCE)

    site.operator.device_plug("timer0", "lan")
    with site.guest() as guest:
        timers = guest.bind("timer0", PATIENCE)
        timer = timers.arm(LONG)
    with pytest.raises((ClosedError, PeerGone)):
        timers.wait(timer, PATIENCE)
    assert 0 == site.kept()


def test_ten_thousand_timers_of_one_guest_all_come(site: Site) -> None:
    """However many, whatever priorities, armed in whatever order."""
    count = 10_000

    async def program() -> int:
        async with bound(site, driver=TimerDriver(slots=16384)) as timers:
            over = asyncio.Event()
            heard: set[int] = set()

            def hear(tick: Tick) -> None:
                heard.add(tick.id)
                if len(heard) == count:
                    over.set()

            base_ns = timers.now_ns() + 10_000_000
            for index in range(count):
                timers.arm(deadline_ns=base_ns + index * 7919 % count * 1000, priority=index % 8, callback=hear)
            await over.wait()
            return len(heard)

    assert count == asyncio.run(program())

"""The interrupt controller end to end: a real host node, threads that serve signals, doorbells between guests."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from vbnet._native import CounterFile
from vbnet.bus.admin import WedgedLevel
from vbnet.bus.operator import EventStream
from vbnet.devices.intc import wire
from vbnet.devices.intc.driver import Intc, IntcDriver
from vbnet.devices.intc.metrics import LATENCY
from vbnet.errors import ExistsError, NotFoundError, NotPermittedError, UnsupportedError, UsageError
from vbnet.guestnode import GuestSession
from vbnet.telemetry.node import read_files
from vbnet.testing.fabric import FakeFabric
from vbnet.testing.lab import Lab, one_turn

PATIENCE_S = 10.0
PRIORITY_5 = LATENCY.index("priority_5")
RAM_BYTES = 1 << 20


@pytest.fixture
def run(run_dir: Path) -> Callable[[Callable[[Lab], Coroutine[Any, Any, None]]], None]:
    """Return a function that runs a test's body beside a host node with a controller on bus ``lan``."""

    def run_it(body: Callable[[Lab], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with Lab.open(run_dir) as lab:
                await lab.plugged("irq", "lan", "intc")
                await body(lab)

        asyncio.run(main())

    return run_it


@asynccontextmanager
async def served(lab: Lab, name: str, vcpus: int = 1) -> AsyncIterator[tuple[GuestSession, Intc]]:
    """Give a guest with a controller at work."""
    guest = await lab.guest(name, "lan", ram_bytes=RAM_BYTES)
    guest.register(IntcDriver(vcpus, is_realtime=False))
    yield guest, await guest.bind("intc0")


class Heard:
    """Counts calls of a handler, and lets a test wait for them."""

    def __init__(self) -> None:
        self.count = 0
        self.threads: list[str] = []
        self._changed = threading.Condition()

    def __call__(self) -> None:
        """Be the handler."""
        with self._changed:
            self.count += 1
            self.threads.append(threading.current_thread().name)
            self._changed.notify_all()

    async def reach(self, count: int) -> None:
        """Wait until the handler was called so often."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: self.count >= count, PATIENCE_S)

        assert await asyncio.to_thread(wait), f"called {self.count} times, not {count}"


def latencies(counters: Path) -> list[int]:
    """Everything that was timed of the one controller that there is."""
    blocks, _files = read_files([counters])
    [block] = [block for block in blocks if block.kind == LATENCY.kind]
    assert {"guest": "web"} == block.labels
    return list(block.values)


async def subscribed(lab: Lab, stream: EventStream) -> None:
    """Wait until a stream gets events: subscribing takes its time."""
    hearing = asyncio.ensure_future(anext(stream))
    while not hearing.done():
        lab.host.publish("probe")
        await one_turn()
    await hearing


async def row_of(lab: Lab, name: str) -> dict[str, Any]:
    """Give what ``vbnet signal list`` shows of a signal."""
    rows = await lab.operator.signal_list()
    return next(row for row in rows if name in {row["name"], f"{row['guest']}/{row['name']}"})


def test_wake_ups_are_timed_by_priority_within_what_the_test_measured(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that slept tells how long its ring took to be heard; only the priority that was raised has samples."""
    counters = tmp_path / "host.counters"
    monkeypatch.setattr(FakeFabric, "counters", CounterFile.create(counters, 1 << 20))

    async def body(lab: Lab) -> None:
        async with served(lab, "web") as (_, intc):
            heard = Heard()
            signal = await intc.create("tick", heard, priority=5)
            spent_ns = 0

            async def raise_until_timed() -> list[int]:
                """Give the samples of each priority, once that of the signal has some."""
                nonlocal spent_ns
                for count in range(1, 1000):
                    start_ns = time.monotonic_ns()
                    await lab.operator.signal_raise("web/tick")
                    await heard.reach(count)
                    spent_ns += time.monotonic_ns() - start_ns
                    await lab.operator.signal_list()  # what was answered last is recorded then
                    words = latencies(counters)
                    if words[PRIORITY_5] >= 3:
                        return words
                raise AssertionError("the guest never said that it was woken")

            words = await asyncio.wait_for(raise_until_timed(), PATIENCE_S)

            assert [5] == [each for each in range(8) if words[LATENCY.index(f"priority_{each}")]]
            assert 0 < words[PRIORITY_5 + 1] <= spent_ns
            assert 0 == words[LATENCY.index("impossible")]
            await signal.destroy()

    run(body)


def test_an_operators_raise_is_served_on_the_thread_of_its_priority(run: Callable[..., None]) -> None:
    """The handler runs on the thread of priority 5; the signal's row says where it leads and that it woke somebody."""

    async def body(lab: Lab) -> None:
        async with served(lab, "web") as (_, intc):
            heard = Heard()
            signal = await intc.create("tick", heard, priority=5)

            await lab.operator.signal_raise("web/tick")
            await heard.reach(1)

            row = await row_of(lab, "web/tick")
            assert ["vbnet-irq-5"] == heard.threads
            expected = {"route": "vector", "to": "web", "vcpu": 0, "vector": signal.vector, "priority": 5, "raises": 1}
            assert expected == {name: row[name] for name in expected}
            await signal.destroy()

    run(body)


def test_raises_while_masked_are_served_as_one(run: Callable[..., None]) -> None:
    """Masked by the guest or by the host: nothing is served meanwhile, and one call is left at the end."""

    async def body(lab: Lab) -> None:
        async with served(lab, "web") as (_, intc):
            heard, witness = Heard(), Heard()
            signal = await intc.create("tick", heard)
            await intc.create("witness", witness)
            signal.mask()
            for _ in range(3):
                await lab.operator.signal_raise("web/tick")
            await lab.operator.signal_raise("web/witness")
            await witness.reach(1)
            before = heard.count

            signal.unmask()
            await heard.reach(1)
            await signal.mask_at_host()
            for _ in range(3):
                await lab.operator.signal_raise("web/tick")
            await lab.operator.signal_raise("web/witness")
            await witness.reach(2)
            between = heard.count
            await signal.mask_at_host(is_masked=False)
            await heard.reach(2)

            assert (0, 1, 2) == (before, between, heard.count)

    run(body)


def test_a_threshold_holds_lower_priorities_back(run: Callable[..., None]) -> None:
    """Below the threshold nothing is served; at or above it everything is; lowering it lets the rest through."""

    async def body(lab: Lab) -> None:
        async with served(lab, "web") as (_, intc):
            low, high = Heard(), Heard()
            await intc.create("low", low, priority=3)
            await intc.create("high", high, priority=4)
            intc.vcpus[0].threshold = 4

            await lab.operator.signal_raise("web/low")
            await lab.operator.signal_raise("web/high")
            await high.reach(1)
            held = low.count
            intc.vcpus[0].threshold = 0
            await low.reach(1)

            assert 0 == held

    run(body)


def test_a_more_urgent_handler_runs_in_the_middle_of_a_less_urgent_one(run: Callable[..., None]) -> None:
    """The handler of priority 1 returns only after the one of priority 7 has run."""

    async def body(lab: Lab) -> None:
        async with served(lab, "web") as (_, intc):
            begun, urgent_ran = threading.Event(), threading.Event()
            ended = Heard()

            def slow() -> None:
                begun.set()
                assert urgent_ran.wait(PATIENCE_S), "the urgent handler did not preempt"
                ended()

            await intc.create("slow", slow, priority=1)
            await intc.create("urgent", urgent_ran.set, priority=7)

            await lab.operator.signal_raise("web/slow")
            assert await asyncio.to_thread(begun.wait, PATIENCE_S)
            await lab.operator.signal_raise("web/urgent")
            await ended.reach(1)

            assert 0 == intc.vcpus[0].failures

    run(body)


def test_a_handler_that_raises_is_counted_and_the_next_runs(run: Callable[..., None]) -> None:
    """A bug of a handler ends with that call of it."""

    async def body(lab: Lab) -> None:
        async with served(lab, "web") as (_, intc):
            heard = Heard()

            def broken() -> None:
                heard()
                raise RuntimeError("as the test wants")

            await intc.create("broken", broken)
            for count in (1, 2):
                await lab.operator.signal_raise("web/broken")
                await heard.reach(count)
            await intc.create("fine", heard)
            await lab.operator.signal_raise("web/fine")
            await heard.reach(3)

            assert 2 == intc.vcpus[0].failures

    run(body)


def test_a_handler_that_does_not_return_is_shown_as_wedged(run: Callable[..., None]) -> None:
    """The guest's row names the priority and vector that are stuck, and other priorities go on."""

    async def body(lab: Lab) -> None:
        async with served(lab, "web") as (_, intc):
            let_go, heard = threading.Event(), Heard()
            stuck = await intc.create("stuck", lambda: let_go.wait(PATIENCE_S), priority=2)
            await intc.create("fine", heard, priority=3)

            await lab.operator.signal_raise("web/stuck")
            await lab.operator.signal_raise("web/fine")
            await heard.reach(1)
            wedged: list[WedgedLevel] = []
            while not wedged:
                [guest] = await lab.operator.guest_list()
                wedged = guest.wedged
            let_go.set()

            assert [(0, 2, stuck.vector)] == [(found.vcpu, found.priority, found.vector) for found in wedged]

    run(body)


def test_a_guest_rings_another_only_with_a_grant(run: Callable[..., None]) -> None:
    """Without a grant refused, with one served, after it was taken back ignored and counted."""

    async def body(lab: Lab) -> None:
        async with served(lab, "alice") as (_, alice), served(lab, "bob") as (_, bob):
            heard = Heard()
            signal = await alice.create("bell", heard, priority=2)
            with pytest.raises(NotPermittedError):
                await bob.connect("alice/bell")

            await signal.grant("bob")
            bell = await bob.connect("alice/bell")
            bell.ring()
            await heard.reach(1)
            await signal.revoke("bob")
            bell.ring()
            witness = await bob.create("witness", heard)
            own = await bob.connect("bob/witness")
            own.ring()
            await heard.reach(2)

            assert ["vbnet-irq-2", "vbnet-irq-0"] == heard.threads
            await witness.destroy()

    run(body)


def test_events_of_the_bus_come_at_the_highest_priority(run: Callable[..., None]) -> None:
    """A device that comes is told of on the thread of priority 7, while priority 0 is held up; ended, it is no more."""

    async def body(lab: Lab) -> None:
        async with served(lab, "web") as (guest, intc):
            begun, let_go, heard = threading.Event(), threading.Event(), Heard()

            def slow() -> None:
                begun.set()
                let_go.wait(PATIENCE_S)

            await intc.create("slow", slow)
            signal = await intc.on_bus_events(heard)
            await lab.operator.signal_raise("web/slow")
            assert await asyncio.to_thread(begun.wait, PATIENCE_S)

            await lab.plugged("e", "lan", "echo")
            await heard.reach(1)
            let_go.set()
            with pytest.raises(ExistsError):
                await intc.on_bus_events(heard)
            await signal.destroy()

            assert {"vbnet-irq-7"} == set(heard.threads)
            assert "echo0" in {device.name for device in guest.devices}

    run(body)


def test_foreign_signals_are_not_there(run: Callable[..., None]) -> None:
    """A guest that names another guest's line is told that there is none, whatever it asks."""

    async def body(lab: Lab) -> None:
        async with served(lab, "alice") as (_, alice), served(lab, "bob") as (_, bob):
            theirs = await alice.create("bell", Heard())
            mine = await bob.create("bell", Heard())
            mine.line = theirs.line
            asked: list[Callable[[], Awaitable[object]]] = [
                mine.raise_,
                mine.export,
                lambda: mine.route(0),
                lambda: mine.set_priority(1),
                lambda: mine.grant("bob"),
                mine.mask_at_host,
            ]

            for ask in asked:
                with pytest.raises(NotFoundError):
                    await ask()

            assert "vector" == (await row_of(lab, "alice/bell"))["route"]

    run(body)


def test_what_cannot_be_is_refused(run: Callable[..., None]) -> None:
    """Unknown priority, vCPU, taken name, a slash in a name, a descriptor that is no eventfd."""

    async def body(lab: Lab) -> None:
        async with served(lab, "web") as (_, intc):
            signal = await intc.create("bell", Heard())
            pipe = os.pipe()

            with pytest.raises(UsageError):
                await intc.create("other", Heard(), priority=8)
            with pytest.raises(NotFoundError):
                await intc.create("other", Heard(), vcpu=1)
            with pytest.raises(ExistsError):
                await intc.create("bell", Heard())
            with pytest.raises(UsageError):
                await intc.create("a/b", Heard())
            with pytest.raises(UsageError):
                await signal.drive(pipe[0])
            with pytest.raises(UsageError):
                await signal.set_priority(8)

            assert 1 == len([row for row in await lab.operator.signal_list() if row["device"] == "signal"])
            for fd in pipe:
                os.close(fd)

    run(body)


def test_a_signal_is_handed_on_as_an_eventfd_and_driven_by_one(run: Callable[..., None]) -> None:
    """Exported, its raises make the eventfd readable; driven, each write to an eventfd or socket is a raise."""

    async def body(lab: Lab) -> None:
        async with served(lab, "web") as (_, intc):
            heard = Heard()
            stream = lab.operator.events()
            await subscribed(lab, stream)
            driven = await intc.create("driven", heard)
            exported = await intc.create("exported", heard)
            source = os.eventfd(0, os.EFD_NONBLOCK)
            ours, theirs = socket.socketpair()

            fd = await exported.export()
            await lab.operator.signal_raise("web/exported")
            await asyncio.to_thread(os.eventfd_read, _blocking(fd))
            await driven.drive(source)
            os.eventfd_write(source, 1)
            await heard.reach(1)
            await driven.drive(theirs.fileno())
            theirs.close()
            ours.send(b"x")
            await heard.reach(2)
            sources = (await row_of(lab, "web/driven"))["sources"]
            ours.close()
            async for event in stream:
                if event["topic"] == "signal.source_gone":
                    break

            assert 2 == sources
            os.close(fd)
            os.close(source)

    run(body)


def _blocking(fd: int) -> int:
    os.set_blocking(fd, True)
    return fd


def test_an_operator_reroutes_a_signal_to_another_vcpu(run: Callable[..., None]) -> None:
    """The same vector is then served by the other vCPU's thread."""

    async def body(lab: Lab) -> None:
        async with served(lab, "web", vcpus=2) as (_, intc):
            heard = Heard()
            await intc.create("bell", heard, priority=1)

            await lab.operator.signal_route("web/bell", vcpu=1)
            await lab.operator.signal_raise("web/bell")
            await heard.reach(1)

            assert [0, 1] == [vcpu.served for vcpu in intc.vcpus]

    run(body)


def test_the_emulated_controller_serves_the_same_signals_by_traps(run_dir: Path) -> None:
    """The same driver and handlers, most urgent first, through acknowledge and end; a bad trap is refused."""

    async def main() -> None:
        async with Lab.open(run_dir) as lab:
            await lab.plugged("irq", "lan", "intc-apic")
            await lab.plugged("fast", "lan", "fastcall")
            async with served(lab, "web") as (_, intc):
                order: list[str] = []
                heard = Heard()

                def note(name: str) -> Callable[[], None]:
                    def handler() -> None:
                        order.append(name)
                        heard()

                    return handler

                busy = threading.Event()
                await intc.create("first", lambda: busy.wait(PATIENCE_S))
                await intc.create("low", note("low"), priority=1)
                await intc.create("high", note("high"), priority=6)
                await lab.operator.signal_raise("web/first")
                await lab.operator.signal_raise("web/low")
                await lab.operator.signal_raise("web/high")
                while not all([(await row_of(lab, f"web/{name}"))["raises"] for name in ("low", "high")]):
                    await one_turn()
                routes = {row["route"] for row in await lab.operator.signal_list() if row["device"] == "signal"}
                busy.set()
                await heard.reach(2)

                with pytest.raises(UsageError):
                    await asyncio.to_thread(intc.trap, wire.Function.END, b"")
                with pytest.raises(UnsupportedError):
                    intc.vcpus[0].threshold = 3
                assert (["high", "low"], {"apic"}) == (order, routes)

    asyncio.run(main())


def test_a_leaving_guest_takes_its_signals_with_it(run: Callable[..., None]) -> None:
    """No line, controller or outbox of it is left, and the name is free again."""

    async def body(lab: Lab) -> None:
        async with served(lab, "web") as (guest, intc):
            await intc.create("bell", Heard())
            stream = lab.operator.events()
            await subscribed(lab, stream)
            await guest.close()
            async for event in stream:
                if event["topic"] == "guest.gone":
                    break
            left = await lab.operator.signal_list()

        async with served(lab, "web") as (_, intc):
            await intc.create("bell", Heard())

        assert [] == left

    run(body)

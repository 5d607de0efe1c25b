"""Calls of devices through memory: whoever calls from any thread gets the answer, one way or the other."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from vbnet._native import FASTCALL_COUNTERS, FASTCALL_SERVICE_COUNTERS
from vbnet.devices.echo.wire import EchoFunction
from vbnet.devices.fastcall import metrics, wire
from vbnet.errors import BusyError, ClosedError, UsageError
from vbnet.guestnode import GuestSession
from vbnet.guestnode.proxy import OpenDevice
from vbnet.testing.lab import Lab

RAM = 64 * 1024


@asynccontextmanager
async def fast_lab(run_root: Path, **attributes: str) -> AsyncIterator[tuple[Lab, GuestSession, OpenDevice]]:
    """A guest beside an echo and a fastcall device, with the echo open."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("echo", "lan")
        await lab.plugged("fast", "lan", "fastcall", attributes)
        guest = await lab.guest("web", "lan", ram_bytes=RAM)
        opened = await (await guest.wait_device("echo0")).open()
        yield lab, guest, opened


async def slots(lab: Lab) -> str:
    """How many slots are shown now."""
    return (await lab.operator.device_get("fast")).attributes["slots"]


async def test_loop_thread_is_answered_through_memory(run_root: Path) -> None:
    """It could not wait for a message, so it was none."""
    async with fast_lab(run_root) as (_lab, guest, opened):
        await guest.bind("fastcall0")

        answer = opened.fastcall(EchoFunction.ECHO, b"hello")

        assert answer == b"hello"


async def test_other_threads_get_slots_of_their_own(run_root: Path) -> None:
    """They call at the same time, and each gets its own answer."""
    async with fast_lab(run_root) as (lab, _guest, opened):
        everyone_is_here = threading.Barrier(3)

        def call(number: int) -> bytes:
            everyone_is_here.wait(10)
            return opened.fastcall(EchoFunction.ECHO, bytes([number]))

        answers = await asyncio.gather(*(asyncio.to_thread(call, number) for number in range(3)))

        assert [b"\0", b"\1", b"\2"] == answers
        assert await slots(lab) == "4"


async def test_slot_of_a_thread_that_ended_is_used_again(run_root: Path) -> None:
    """Threads come and go; slots stay as many as called at once."""
    async with fast_lab(run_root) as (lab, _guest, opened):

        def call() -> None:
            thread = threading.Thread(target=lambda: opened.fastcall(EchoFunction.ECHO))
            thread.start()
            thread.join()

        for _ in range(5):
            await asyncio.to_thread(call)

        assert await slots(lab) == "2"


async def test_thread_for_which_no_slot_is_left_makes_ordinary_calls(run_root: Path) -> None:
    """A limit of slots limits speed, not what works."""
    async with fast_lab(run_root, slots_max="1") as (lab, _guest, opened):
        answer = await asyncio.to_thread(opened.fastcall, EchoFunction.ECHO, b"slowly")

        assert (b"slowly", "1") == (answer, await slots(lab))


async def test_without_a_fastcall_device_threads_make_ordinary_calls(run_root: Path) -> None:
    """The same program runs on every bus."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("echo", "lan")
        guest = await lab.guest("web", "lan")
        opened = await (await guest.wait_device("echo0")).open()

        answer = await asyncio.to_thread(opened.fastcall, EchoFunction.ECHO, b"hello")

        assert answer == b"hello"
        with pytest.raises(UsageError, match="await call"):
            opened.fastcall(EchoFunction.ECHO)


async def test_device_without_a_fast_handler_is_called_the_ordinary_way(run_root: Path) -> None:
    """Its author need not know of fastcalls."""
    async with fast_lab(run_root) as (_lab, guest, _opened):
        cell = await (await guest.wait_device("cell0")).open()
        await guest.bind("fastcall0")

        with pytest.raises(UsageError, match="share region"):
            await asyncio.to_thread(cell.fastcall, 0)
        with pytest.raises(UsageError, match="await call"):
            cell.fastcall(0)


async def test_long_data_goes_the_ordinary_way(run_root: Path) -> None:
    """A slot holds 368 bytes, an ordinary call more."""
    async with fast_lab(run_root) as (_lab, _guest, opened):
        sent = [bytes(wire.DATA_BYTES), bytes(wire.DATA_BYTES + 1)]

        answers = [await asyncio.to_thread(opened.fastcall, EchoFunction.ECHO, data) for data in sent]

        assert sent == answers


async def test_refusal_is_the_same_error_as_of_a_call(run_root: Path) -> None:
    """Class and sentence; only the fields stay behind."""
    async with fast_lab(run_root) as (_lab, guest, opened):
        await guest.bind("fastcall0")

        with pytest.raises(BusyError, match="echo refuses, as FAIL asks"):
            opened.fastcall(EchoFunction.FAIL)


async def test_calls_can_be_switched_off_and_on_while_guests_call(run_root: Path) -> None:
    """Off, the loop's own thread cannot wait; threads notice nothing."""
    async with fast_lab(run_root) as (lab, guest, opened):
        await guest.bind("fastcall0")

        await lab.operator.device_set("fast", "enabled", "0")
        with pytest.raises(UsageError):
            opened.fastcall(EchoFunction.ECHO)
        while_off = await asyncio.to_thread(opened.fastcall, EchoFunction.ECHO, b"off")
        await lab.operator.device_set("fast", "enabled", "1")
        while_on = opened.fastcall(EchoFunction.ECHO, b"on")

        assert [b"off", b"on"] == [while_off, while_on]


@pytest.mark.parametrize(
    ("attribute", "text"), [("enabled", "2"), ("slots_max", "0"), ("spin_us", "100001"), ("trap_ns", "-1")]
)
async def test_attributes_out_of_range_are_refused(run_root: Path, attribute: str, text: str) -> None:
    """Nothing changes."""
    async with fast_lab(run_root) as (lab, _guest, _opened):
        before = (await lab.operator.device_get("fast")).attributes

        with pytest.raises(UsageError):
            await lab.operator.device_set("fast", attribute, text)

        assert before == (await lab.operator.device_get("fast")).attributes


async def test_more_slots_than_allowed_are_refused(run_root: Path) -> None:
    """Whatever a guest asks for by itself."""
    async with fast_lab(run_root, slots_max="1") as (_lab, guest, _opened):
        opened = await (await guest.wait_device("fastcall0")).open()
        await guest.bind("fastcall0")

        with pytest.raises(UsageError, match="carries its signal"):
            await opened.shm(0, 8192, wire.SLOT_BYTES)
        with pytest.raises(UsageError):
            await opened.call(7)
        info = wire.INFO.unpack(await opened.call(wire.Function.INFO))

        assert info == (1, 50)


async def test_closed_device_is_out_of_reach(run_root: Path) -> None:
    """Its handler is withdrawn before it is closed."""
    async with fast_lab(run_root) as (_lab, guest, opened):
        await guest.bind("fastcall0")
        await opened.close()

        with pytest.raises(ClosedError):
            opened.fastcall(EchoFunction.ECHO)


async def test_unplugged_fastcall_device_leaves_ordinary_calls(run_root: Path) -> None:
    """And one that is plugged later is used again."""
    async with fast_lab(run_root) as (lab, guest, opened):
        first = await asyncio.to_thread(opened.fastcall, EchoFunction.ECHO, b"1")
        await lab.operator.device_unplug("fast", "lan")
        second = await asyncio.to_thread(opened.fastcall, EchoFunction.ECHO, b"2")
        await lab.operator.device_plug("fast", "lan")
        await guest.wait_device("fastcall0")
        third = await asyncio.to_thread(opened.fastcall, EchoFunction.ECHO, b"3")

        assert [b"1", b"2", b"3"] == [first, second, third]
        assert await slots(lab) == "2"


async def test_slots_are_lent_to_native_code_all_or_none_and_used_again(run_root: Path) -> None:
    """Of three slots one is the loop's: two can be lent, and once they are given back, others."""
    async with fast_lab(run_root, slots_max="3") as (lab, _guest, opened):
        lent = await opened.fast_slots(2)
        assert lent is not None
        assert await opened.fast_slots(1) is None

        lent.give_back()
        again = await opened.fast_slots(2)

        assert again is not None
        assert 2 == len(again.slots)
        assert await slots(lab) == "3"


async def test_without_a_fastcall_device_no_slot_is_lent(run_root: Path) -> None:
    """Whoever asked makes ordinary calls."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("echo", "lan")
        guest = await lab.guest("web", "lan", ram_bytes=RAM)
        opened = await (await guest.wait_device("echo0")).open()

        assert await opened.fast_slots(1) is None


async def test_memory_of_slots_comes_back_when_the_device_leaves(run_root: Path) -> None:
    """Nothing of the guest's memory stays taken."""
    async with fast_lab(run_root) as (lab, guest, opened):
        before = guest.memory.free_bytes
        await asyncio.to_thread(opened.fastcall, EchoFunction.ECHO)
        await lab.operator.device_unplug("fast", "lan")
        await guest.close()

        assert before == guest.memory.free_bytes


def test_metrics_are_those_of_the_native_counters() -> None:
    """In their order, so that value n is metric n."""
    assert (FASTCALL_COUNTERS, FASTCALL_SERVICE_COUNTERS) == (list(metrics.SLOT.values), list(metrics.SERVICE.values))

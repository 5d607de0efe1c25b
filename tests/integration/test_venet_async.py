"""The NIC in asyncio programs: the forms that wait on the running loop, whatever loop that is."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.lab import Net, Station, ethernet, numbered
from tests.support.waiting import PATIENCE, eventually
from vbnet.devices.venet.driver import VenetDriver, VenetNic
from vbnet.errors import PeerGone
from vbnet.guestnode import GuestNode

SHORT = 0.01
"""A wait that is meant to be in vain."""


@asynccontextmanager
async def joined(net: Net, name: str) -> AsyncIterator[VenetNic]:
    """A NIC of a guest that lives on the running loop, as in a plain asyncio program."""
    async with await GuestNode.connect(net.lab.run_dir, name) as node:
        guest = await node.join(name, name)
        guest.register(VenetDriver(16))
        yield await guest.nic("eth0", PATIENCE)


async def turn() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)  # a turn of the loop, not a wait


def own(nic: VenetNic, number: int) -> bytes:
    """A numbered frame from a NIC to itself."""
    return ethernet(bytes(nic.mac), bytes(nic.mac), 64, number)


def test_frames_are_sent_and_received_in_a_plain_asyncio_program(net: Net) -> None:
    """Two guests on one loop talk to each other; a receiver that waits lets the sender run."""
    names = [net.plug_nic(), net.plug_nic()]

    async def program() -> list[int]:
        async with joined(net, names[0]) as first, joined(net, names[1]) as second:
            numbers: list[int] = []
            for number in range(100):
                waiting = asyncio.create_task(second.recv_async(32, PATIENCE))
                await turn()
                frame = ethernet(bytes(second.mac), bytes(first.mac), 64, number)
                assert 1 == await first.send_async([frame], PATIENCE)
                numbers += map(numbered, await waiting)
            return numbers

    assert list(range(100)) == asyncio.run(program())


def test_async_for_gives_every_frame_in_order(net: Net) -> None:
    """Iterating over the NIC waits for frames for as long as the program likes."""
    name = net.plug_nic("venet-loopback")

    async def program() -> list[int]:
        async with joined(net, name) as nic:
            sending = asyncio.create_task(nic.send_async([own(nic, number) for number in range(12)]))
            numbers: list[int] = []
            async with asyncio.timeout(PATIENCE):
                async for frame in nic:
                    numbers.append(numbered(frame))
                    if len(numbers) == 12:
                        break
            await sending
            return numbers

    assert list(range(12)) == asyncio.run(program())


def test_nic_of_a_plain_guest_serves_the_loop_of_any_program(net: Net) -> None:
    """The async forms wait on the loop they are called on, also when the bus runs elsewhere."""
    station = net.station("venet-loopback")

    async def program() -> list[bytes]:
        waiting = asyncio.create_task(station.nic.recv_async(32, PATIENCE))
        await turn()
        await station.nic.send_async([station.to(station, 64, 1)])
        return await waiting

    assert [station.to(station, 64, 1)] == asyncio.run(program())


def test_waiting_in_vain_ends_when_the_time_is_up(net: Net) -> None:
    """A timeout gives an empty list; 0 looks once; neither leaves anything behind on the loop."""
    station = net.station("venet-loopback")

    async def program() -> list[list[bytes]]:
        in_vain = [await station.nic.recv_async(32, timeout) for timeout in (SHORT, 0)]
        await station.nic.send_async([station.to(station)])
        return [*in_vain, await station.nic.recv_async(32, PATIENCE)]

    assert [[], [], [station.to(station)]] == asyncio.run(program())


def test_looking_without_waiting_takes_what_is_there(net: Net) -> None:
    """A timeout of 0 gives the frames that wait, and sends what there is room for."""
    station = net.station("venet-loopback")

    async def program() -> tuple[int, list[bytes]]:
        sent = await station.nic.send_async([station.to(station)], 0)
        eventually(lambda: station.counters["receive_frames"] == 1, "it came back")
        return sent, await station.nic.recv_async(32, 0)

    assert (1, [station.to(station)]) == asyncio.run(program())


def test_cancelled_receiver_loses_no_frame(net: Net) -> None:
    """Whoever stops waiting leaves the frames to the next one."""
    station = net.station("venet-loopback")

    async def program() -> list[bytes]:
        waiting = asyncio.create_task(station.nic.recv_async())
        await turn()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await station.nic.send_async([station.to(station)])
        return await station.nic.recv_async(32, PATIENCE)

    assert [station.to(station)] == asyncio.run(program())


def test_sender_waits_on_the_loop_until_there_is_room(net: Net) -> None:
    """While the host stands still, send_async lets the loop go on; when its time is up it says how many were sent."""
    name = net.plug_nic("venet-loopback")

    async def program() -> tuple[int, int, list[int]]:
        async with joined(net, name) as nic:
            slots = nic.layout.tx_slots
            net.lab.host.pause()
            try:
                short = await nic.send_async([own(nic, number) for number in range(slots + 4)], SHORT)
                sending = asyncio.create_task(nic.send_async([own(nic, slots)], PATIENCE))
                await turn()
                assert not sending.done()
            finally:
                net.lab.host.resume()
            numbers: list[int] = []
            while len(numbers) < slots and (batch := await nic.recv_async(32, PATIENCE)):
                numbers += map(numbered, batch)
            # The late one may come back before there is a buffer for it again: then it is dropped and counted.
            return short, await sending, numbers[:slots]

    assert (16, 1, list(range(16))) == asyncio.run(program())


async def receive(nic: VenetNic) -> object:
    """Wait for frames without a limit."""
    return await nic.recv_async()


async def iterate(nic: VenetNic) -> object:
    """Wait for frames in a loop."""
    return [frame async for frame in nic]


@pytest.mark.parametrize("wait", [receive, iterate])
def test_waiting_task_hears_that_its_device_left(
    net: Net, wait: Callable[[VenetNic], Coroutine[Any, Any, object]]
) -> None:
    """Unplugged while a task waits for frames: the task gets PeerGone, and so does every later call."""
    name = net.plug_nic("venet-loopback")

    async def program() -> None:
        async with joined(net, name) as nic, asyncio.timeout(PATIENCE):
            waiting = asyncio.create_task(wait(nic))
            await turn()
            await asyncio.to_thread(net.operator.device_unplug, f"{name}.eth0", name)
            with pytest.raises(PeerGone):
                await waiting
            with pytest.raises(PeerGone):
                nic.recv(1, 0)

    asyncio.run(program())


def test_waiting_sender_hears_that_its_device_left(net: Net) -> None:
    """A task that waits for room in a full ring gets PeerGone when the device is unplugged."""
    name = net.plug_nic("venet-loopback")

    async def program() -> None:
        async with joined(net, name) as nic, asyncio.timeout(PATIENCE):
            net.lab.host.pause()
            sending = asyncio.create_task(nic.send_async([own(nic, number) for number in range(100000)]))
            await turn()
            unplugging = asyncio.create_task(asyncio.to_thread(net.operator.device_unplug, f"{name}.eth0", name))
            net.lab.host.resume()
            await unplugging
            with pytest.raises(PeerGone):
                await sending

    asyncio.run(program())


def test_station_on_a_loop_that_is_gone_can_be_used_on_the_next(net: Net) -> None:
    """A program may run one loop after another; a NIC belongs to none of them."""
    station: Station = net.station("venet-loopback")

    for number in range(3):

        async def program(number: int = number) -> list[bytes]:
            await station.nic.send_async([station.to(station, 64, number)])
            return await station.nic.recv_async(32, PATIENCE)

        assert [station.to(station, 64, number)] == asyncio.run(program())

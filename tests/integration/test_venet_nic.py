"""The NIC as plain functions use it: sending and receiving, waiting, views, claims, threads, and the end."""

import asyncio
import gc
import inspect
import select
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.lab import Lab, Net, Station, numbered
from tests.support.waiting import PATIENCE, eventually
from vbnet.devices.venet.driver import VenetNic
from vbnet.errors import BusyError, ClosedError, UsageError

SHORT = 0.01
"""A wait that is meant to be in vain."""


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that wait."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def loop(net: Net) -> Station:
    """A station that receives what it sends, with rings of 16 slots."""
    return net.station("venet-loopback", slots=16)


@pytest.fixture
def paused(net: Net) -> Iterator[Callable[[], None]]:
    """Stand the host still; it goes on when the function given is called, at the latest after the test."""
    net.lab.host.pause()
    yield net.lab.host.resume
    net.lab.host.resume()


def frames(station: Station, count: int, start: int = 0) -> list[bytes]:
    """Return numbered frames from a station to itself."""
    return [station.to(station, 64, number) for number in range(start, start + count)]


def wait_busy(call: Callable[[], object]) -> None:
    """Wait until a call is refused because another thread is at it."""

    def is_busy() -> bool:
        try:
            call()
        except BusyError:
            return True
        return False

    eventually(is_busy, "another thread is at it")


# --- sending and receiving ----------------------------------------------------------------------------------------


def test_recv_without_waiting_gives_nothing_when_there_is_nothing(loop: Station) -> None:
    """A timeout of 0 looks once; a short one ends by itself; both give an empty list, recv_frame gives None."""
    assert [] == loop.nic.recv(32, 0)
    assert [] == loop.nic.recv(32, SHORT)
    assert loop.nic.recv_frame(0) is None
    assert loop.nic.recv_frame(SHORT) is None
    assert [] == loop.nic.recv_views(32, 0)


def test_recv_without_limit_waits_for_the_first_frame(loop: Station, pool: ThreadPoolExecutor) -> None:
    """A timeout of None waits for as long as it takes."""
    waiting = pool.submit(loop.nic.recv, 32)
    wait_busy(lambda: loop.nic.recv(1, 0))

    loop.nic.send(frames(loop, 1))

    assert frames(loop, 1) == waiting.result(PATIENCE)


def test_recv_gives_at_most_as_many_as_asked_for(loop: Station) -> None:
    """The rest stays for the next call, in order."""
    loop.nic.send(frames(loop, 5))
    eventually(lambda: loop.counters["receive_frames"] == 5, "all came back")

    assert [frames(loop, 2), frames(loop, 3, 2), []] == [loop.nic.recv(limit, 0) for limit in (2, 32, 32)]


@pytest.mark.parametrize("timeout", [-1.0, float("nan"), -0.001])
def test_time_that_cannot_be_is_refused(loop: Station, timeout: float) -> None:
    """A timeout is None, 0 or more."""
    for call in (loop.nic.recv, loop.nic.recv_views):
        with pytest.raises(UsageError):
            call(1, timeout)
    with pytest.raises(UsageError):
        loop.nic.recv_frame(timeout)
    with pytest.raises(UsageError):
        loop.nic.set_poll_seconds(timeout)


def test_send_takes_any_bytes_in_any_iterable(loop: Station) -> None:
    """Bytes, bytearrays and memoryviews, in a list or from a generator, are frames alike."""
    [frame] = frames(loop, 1)

    sent = loop.nic.send([frame, bytearray(frame), memoryview(frame)]) + loop.nic.send(iter((frame,)))

    assert 4 == sent
    assert [frame] * 4 == loop.gather(4)


def test_send_to_a_host_that_stands_still_sends_what_there_is_room_for(
    loop: Station, paused: Callable[[], None]
) -> None:
    """When the ring is full, send gives the number sent: at once without waiting, or when its time is up."""
    slots = loop.nic.layout.tx_slots

    assert slots == loop.nic.send(frames(loop, slots + 4), 0)
    assert 0 == loop.nic.send(frames(loop, 4), 0)
    assert 0 == loop.nic.send(frames(loop, 4), SHORT)
    assert not loop.nic.send_frame(frames(loop, 1)[0], SHORT)
    assert loop.nic.claim(64, SHORT) is None
    paused()

    assert frames(loop, slots) == loop.gather(slots)


def test_send_without_limit_waits_until_there_is_room_for_all(
    loop: Station, paused: Callable[[], None], pool: ThreadPoolExecutor
) -> None:
    """A full ring makes send wait for as long as it takes; then every frame is sent."""
    count = 3 * loop.nic.layout.tx_slots
    sending = pool.submit(loop.nic.send, frames(loop, count))
    wait_busy(lambda: loop.nic.send([], 0))

    paused()

    assert count == sending.result(PATIENCE)
    loop.wait_taken(count)


def test_poll_finds_the_descriptor_readable_when_a_frame_arrives(loop: Station) -> None:
    """A program with a loop of its own arms the NIC, polls fileno, and then receives without waiting."""
    poll = select.poll()
    poll.register(loop.nic, select.POLLIN)
    assert loop.nic.arm_receive()
    assert [] == poll.poll(0)

    loop.nic.send(frames(loop, 1))

    assert [(loop.nic.fileno(), select.POLLIN)] == poll.poll(PATIENCE * 1000)
    assert frames(loop, 1) == loop.nic.recv(32, 0)
    assert loop.nic.arm_receive()
    assert [] == poll.poll(0)


def test_arming_is_refused_while_frames_wait(loop: Station) -> None:
    """Whoever would sleep although there is something to receive is told so."""
    loop.nic.send(frames(loop, 1))
    eventually(lambda: loop.counters["receive_frames"] == 1, "it came back")

    assert not loop.nic.arm_receive()
    assert frames(loop, 1) == loop.nic.recv(32, 0)


def test_totals_say_what_was_sent_and_received(loop: Station) -> None:
    """Both directions count frames and bytes on the guest's side too."""
    loop.nic.send(frames(loop, 3))
    loop.gather(3)

    sent, received = loop.nic.totals()

    assert (3, 192, 3, 192) == (sent.frames, sent.bytes, received.frames, received.bytes)


def test_mtu_can_be_lowered_to_refuse_longer_frames(loop: Station) -> None:
    """A guest that was told of a smaller MTU sends nothing longer; more than the buffers hold cannot be chosen."""
    loop.nic.set_mtu(100)

    with pytest.raises(UsageError):
        loop.nic.send([loop.to(loop, 119)])
    with pytest.raises(UsageError):
        loop.nic.set_mtu(1501)
    assert 1 == loop.nic.send([loop.to(loop, 118)])


# --- views --------------------------------------------------------------------------------------------------------


def test_view_shows_the_frame_where_it_lies_and_cannot_be_written(loop: Station) -> None:
    """Nothing is copied until the reader copies; the memory is read-only through the view."""
    loop.nic.send(frames(loop, 1))

    [view] = loop.nic.recv_views(32, PATIENCE)

    with memoryview(view) as memory:
        assert frames(loop, 1) == [bytes(memory)]
        assert memory.readonly
    assert 64 == len(view)


def test_view_is_not_released_while_somebody_reads_it(loop: Station) -> None:
    """A buffer goes back only when no memoryview of it is left; afterwards there is nothing to see."""
    loop.nic.send(frames(loop, 1))
    [view] = loop.nic.recv_views(32, PATIENCE)
    memory = memoryview(view)

    with pytest.raises(BusyError):
        view.release()
    memory.release()
    view.release()
    view.release()

    with pytest.raises(ClosedError):
        memoryview(view)


def hold_all(station: Station) -> list[Any]:
    """Hold every receive buffer a station has."""
    buffers = station.nic.layout.rx_slots * 5 // 4
    held: list[Any] = []
    while len(held) < buffers:
        station.nic.send(frames(station, 1, len(held)), PATIENCE)
        held += station.nic.recv_views(1, PATIENCE)
    return held


def overflow(station: Station) -> None:
    """Send a frame that there is no buffer for, and wait until it is dropped."""
    before = station.counters["receive_drop_no_room"]
    station.nic.send(frames(station, 1))
    eventually(lambda: station.counters["receive_drop_no_room"] == before + 1, "the frame is dropped")


@pytest.mark.parametrize("release", ["call", "with", "collector"])
def test_buffers_come_back_when_their_views_end(loop: Station, release: str) -> None:
    """Held buffers hold up traffic, counted; released in any way, or collected, they receive again, every one."""
    held = hold_all(loop)
    assert list(range(len(held))) == [numbered(bytes(view)) for view in held]
    overflow(loop)

    while held:
        view = held.pop()
        if release == "call":
            view.release()
        elif release == "with":
            with view:
                pass
        del view
    gc.collect()

    count = loop.nic.layout.rx_slots
    assert count == loop.nic.send(frames(loop, count, 100), PATIENCE)
    assert frames(loop, count, 100) == loop.gather(count)


def test_view_released_while_another_thread_waits_for_frames_is_received_into(
    loop: Station, pool: ThreadPoolExecutor
) -> None:
    """A thread that waits with every buffer held posts those that come back meanwhile."""
    held = hold_all(loop)
    waiting: Future[list[bytes]] = pool.submit(loop.nic.recv, 1)
    wait_busy(lambda: loop.nic.recv(1, 0))

    for view in held:
        view.release()
    sent = 0
    while not waiting.done():
        sent += loop.nic.send(frames(loop, 1), PATIENCE)

    assert frames(loop, 1) == waiting.result(PATIENCE)


def test_view_outlives_the_nic(net: Net) -> None:
    """A frame that is held can be read after its NIC was closed."""
    station = net.station("venet-loopback")
    station.nic.send(frames(station, 1))
    [view] = station.nic.recv_views(32, PATIENCE)

    station.guest.close()

    assert frames(station, 1) == [bytes(view)]
    view.release()


# --- claims -------------------------------------------------------------------------------------------------------


def claim(station: Station, length: int = 64) -> Any:
    """Claim room for a frame that is certainly there."""
    claimed = station.nic.claim(length, PATIENCE)
    assert claimed is not None
    return claimed


def test_claim_is_written_in_place_and_sent_when_it_is_committed(loop: Station) -> None:
    """A program writes the frame where it will be sent from; it may turn out shorter than it was claimed."""
    [whole, cut] = frames(loop, 2)
    for frame, length in ((whole, None), (cut, 40)):
        room = claim(loop)
        assert 64 == len(room)
        with memoryview(room) as memory:
            memory[:] = frame
        room.commit(length)

    assert [whole, cut[:40]] == loop.gather(2)


def test_claim_in_a_with_block_is_sent_at_its_end_unless_it_fails(loop: Station) -> None:
    """Leaving the block commits, leaving it by an exception gives the room back."""
    with claim(loop) as room, memoryview(room) as memory:
        memory[:] = frames(loop, 1)[0]
    with pytest.raises(ZeroDivisionError), claim(loop):
        _ = 1 // 0
    with claim(loop) as room:
        room.cancel()

    loop.nic.send(frames(loop, 1, 5))
    assert frames(loop, 1) + frames(loop, 1, 5) == loop.gather(2)


def test_claim_ends_once(loop: Station) -> None:
    """What was committed or cancelled is neither any more, and cannot be written."""
    committed, cancelled = claim(loop), None
    committed.commit()
    cancelled = claim(loop)
    cancelled.cancel()

    for room in (committed, cancelled):
        for end in (room.commit, room.cancel, lambda room=room: memoryview(room)):
            with pytest.raises(ClosedError):
                end()
    assert 1 == len(loop.gather(1))


def test_claim_keeps_everyone_else_from_sending(loop: Station) -> None:
    """One claim at a time, nothing overtakes it; one that is forgotten gives the room back."""
    room = claim(loop)
    for call in (lambda: loop.nic.send(frames(loop, 1)), lambda: loop.nic.claim(64), loop.nic.arm_send):
        with pytest.raises(BusyError):
            call()

    del room
    gc.collect()

    assert 1 == loop.nic.send(frames(loop, 1))
    assert frames(loop, 1) == loop.gather(1)


@pytest.mark.parametrize("length", [13, 65])
def test_commit_of_more_than_was_claimed_or_less_than_a_header_is_refused(loop: Station, length: int) -> None:
    """The claim stays as it was and can still be committed."""
    room = claim(loop)

    with pytest.raises(UsageError):
        room.commit(length)

    room.commit()
    assert 64 == len(loop.gather(1)[0])


# --- threads ------------------------------------------------------------------------------------------------------


def test_one_thread_sends_while_another_receives(loop: Station, pool: ThreadPoolExecutor) -> None:
    """The two directions do not lock each other; every frame sent is received, in order."""
    count, window, room = 2000, 8, threading.Semaphore(8)

    def receive() -> list[int]:
        numbers: list[int] = []
        while len(numbers) < count and (batch := loop.nic.recv(window, PATIENCE)):
            numbers += map(numbered, batch)
            room.release(len(batch))
        return numbers

    receiving = pool.submit(receive)
    for number in range(count):
        assert room.acquire(timeout=PATIENCE)
        assert loop.nic.send_frame(loop.to(loop, 64, number), PATIENCE)

    assert list(range(count)) == receiving.result(PATIENCE)


def test_two_threads_at_the_same_direction_are_told_so(loop: Station, pool: ThreadPoolExecutor) -> None:
    """The second one gets BusyError at once, in every method of that direction; the first one goes on."""
    waiting = pool.submit(loop.nic.recv, 1)
    wait_busy(lambda: loop.nic.recv(1, 0))

    for call in (loop.nic.recv, loop.nic.recv_frame, loop.nic.recv_views, loop.nic.arm_receive, loop.nic.totals):
        with pytest.raises(BusyError):
            call()
    loop.nic.send(frames(loop, 1))

    assert frames(loop, 1) == waiting.result(PATIENCE)


# --- the end ------------------------------------------------------------------------------------------------------


def test_thread_that_waits_hears_that_its_guest_was_closed(net: Net, pool: ThreadPoolExecutor) -> None:
    """Closed by another thread of the program, recv and send end with ClosedError instead of waiting for ever."""
    station = net.station("venet-loopback")
    receiving = pool.submit(station.nic.recv)
    wait_busy(lambda: station.nic.recv(1, 0))

    station.guest.close()

    with pytest.raises(ClosedError):
        receiving.result(PATIENCE)


def test_claim_of_a_closed_nic_is_not_sent(net: Net) -> None:
    """The memory under a claim may be another NIC's once its own is closed: committing it then does nothing."""
    station = net.station("venet-loopback")
    room = claim(station)

    station.guest.close()

    with pytest.raises(ClosedError):
        room.commit()


ARGUMENTS: dict[str, Any] = {
    "frames": [bytes(64)],
    "pieces": [bytes(32), bytes(32)],
    "request": None,
    "frame": bytes(64),
    "length": 64,
    "max": 1,
    "timeout": 0,
    "mtu": 1500,
    "budget": 32,
    "on_frames": list,
    "value": 0.0,
    "tx_kick": 0,
    "tx_call": 0,
    "rx_kick": 0,
    "rx_call": 0,
}
ENDS = {"belong", "close", "abandon", "remove"}
"""Methods that may be called at any time, and the one that its driver calls before there is a card."""
METHODS = sorted(name for name in dir(VenetNic) if not name.startswith("_") and callable(getattr(VenetNic, name)))


def call_any(nic: VenetNic, name: str) -> object:
    """Call a method with arguments that are right, by their names, and wait for it if it is a coroutine."""
    method = getattr(nic, name)
    result = method(*(ARGUMENTS[word] for word in inspect.signature(method).parameters))
    return asyncio.run(result) if inspect.iscoroutine(result) else result


@pytest.fixture(scope="module")
def ended(lab: Lab) -> Iterator[Station]:
    """A station whose guest was closed by its program."""
    with lab.net() as net:
        station = net.station("venet-loopback")
        station.guest.close()
        yield station


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ENDS])
def test_method_of_a_closed_nic_says_that_it_is_closed(ended: Station, name: str) -> None:
    """Whatever is called after the program closed its guest raises ClosedError, also by way of the bus."""
    with pytest.raises(ClosedError):
        call_any(ended.nic, name)

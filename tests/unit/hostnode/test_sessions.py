"""Guests on a host node: hello, ready, open, call, share, reset, leave."""

import asyncio
import contextlib
import functools
import os
import re
import select
from pathlib import Path

import pytest

from vbnet.bus import fdpass, messages
from vbnet.bus.limits import Limits
from vbnet.errors import (
    BusyError,
    ClosedError,
    DeadlineError,
    ExistsError,
    NotFoundError,
    NotPermittedError,
    PeerGone,
    ResourceError,
    UsageError,
)
from vbnet.guestnode import GuestNode, GuestSession
from vbnet.guestnode.parcels import KEPT_LENDS
from vbnet.hostnode import metrics
from vbnet.testing import ManualClock
from vbnet.testing.lab import Lab, eventually, one_turn
from vbnet.testing.processes import count_fds, count_own_fds

RAM = 64 * 1024


def has_devices(guest: GuestSession, expected: list[int]) -> bool:
    """Whether the guest sees these devices, in this order."""
    return expected == [device.dev_id for device in guest.devices]


async def test_a_guest_sees_its_bus_and_no_other(run_root: Path) -> None:
    """What is plugged elsewhere can neither be seen nor opened."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("mine", "a")
        await lab.plugged("other", "b")
        await lab.plugged("more", "b")
        guest = await lab.guest("web", "a")

        listed = await guest.list_devices()

        assert listed == [(1, "echo", "echo0"), (2, "echo-cell", "cell0")]
        with pytest.raises(NotFoundError):
            await guest.open_device(3, 1)


async def test_a_guest_without_a_bus_gets_a_private_one_that_ends_with_it(run_root: Path) -> None:
    """Its name says whose it is; what was plugged there is unplugged."""
    async with Lab.open(run_root) as lab:
        guest = await lab.guest("alone")
        await lab.operator.device_create("e", "echo")
        await lab.operator.device_plug("e", guest.bus)
        await guest.wait_device("echo0")

        assert re.fullmatch(rf"[\w.-]+-{os.getpid()}-[0-9a-f-]{{36}}", guest.bus)
        await guest.close()

        await eventually(lambda: not lab.host.plugboard.model.buses())
        assert (await lab.operator.device_get("e")).plugs == []


async def test_every_device_is_replayed_exactly_once_then_live_ones_follow(run_root: Path) -> None:
    """Plugging and unplugging while many guests become ready leaves no gap and no double."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("old", "lan")
        node = await lab.node()

        async def churn() -> None:
            for index in range(60):
                await lab.plugged(f"d{index}", "lan")
                if index % 3 == 0:
                    await lab.operator.device_unplug(f"d{index}", "lan")

        guests, _ = await asyncio.gather(
            asyncio.gather(*(node.join(f"g{index}", "lan", ram_bytes=0) for index in range(30))), churn()
        )
        expected = [slot.dev_id for slot in lab.host.plugboard.model.slots("lan")]

        for guest in guests:
            await eventually(functools.partial(has_devices, guest, expected))


async def test_no_event_comes_before_ready(run_root: Path) -> None:
    """A session that said hello hears nothing until it says it can."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan")
        stream = guest.events()

        await guest._node.ask(guest.sid, messages.Negotiate(messages.NEGOTIATE_MAGIC, 1))
        await lab.plugged("late", "lan")
        await guest.list_devices()
        assert not stream._waiting
        await guest._node.ask(guest.sid, messages.Ready())

        assert [event.dev_id for event in stream._waiting] == [1, 2, 3, 4]  # type: ignore[union-attr]


async def test_a_second_ready_is_refused(run_root: Path) -> None:
    """Nothing is replayed twice."""
    async with Lab.open(run_root) as lab:
        guest = await lab.guest("web")

        with pytest.raises(ExistsError):
            await guest._node.ask(guest.sid, messages.Ready())


async def test_an_open_names_a_version_the_device_speaks(run_root: Path) -> None:
    """A wrong version is refused with those that work."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan")

        with pytest.raises(UsageError) as caught:
            await guest.devices[0].open(2)

        assert eval(str(caught.value.fields["versions"])) == [1]  # noqa: S307 - a list of numbers as text


async def test_an_exclusive_interface_lets_in_one_a_shared_one_all(run_root: Path) -> None:
    """Busy while it is open, free after the close."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        first = await lab.guest("first", "lan")
        second = await lab.guest("second", "lan")
        cell = await first.devices[1].open()
        await first.devices[0].open()
        await second.devices[0].open()

        with pytest.raises(BusyError, match="first"):
            await second.devices[1].open()
        await cell.close()

        await (await second.devices[1].open()).close()


async def test_calls_carry_data_refusals_and_counts(run_root: Path) -> None:
    """The device answers each opener on its own."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan", "echo", {"prefix": "> ", "limit": "10"})
        guest = await lab.guest("web", "lan")
        async with await guest.devices[0].open() as one, await guest.devices[0].open() as two:
            answers = [await one.call(0, b"hi"), await one.call(1, b"hi"), await two.call(1, b"ho")]

            with pytest.raises(BusyError):
                await one.call(3)
            with pytest.raises(UsageError):
                await one.call(99)
            with pytest.raises(UsageError, match="at most 10"):
                await one.call(0, b"x" * 11)

            assert answers == [b"> hi", b"HI", b"HO"]
            assert (2).to_bytes(8, "little") == await one.call(2)


async def test_two_classes_with_one_abi_serve_the_same_driver(run_root: Path) -> None:
    """The guest cannot tell the classes apart but by what they do."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("quiet", "lan", "echo")
        await lab.plugged("loud", "lan", "echo-loud")
        guest = await lab.guest("web", "lan")
        echoes = [device for device in guest.devices if device.abi_type == "echo"]

        answers = [await (await device.open()).call(0, b"hi") for device in echoes]

        assert answers == [b"hi", b"HI"]


async def test_memory_is_shared_with_and_without_a_signal(run_root: Path) -> None:
    """The device works on the guest's own bytes, and rings when there is a bell."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan", ram_bytes=RAM)
        memory = memoryview(guest.ram.view(4096, 64))

        async with await guest.devices[1].open() as cell:
            signal = await cell.shm(0, 4096, 64, signal_offset=48)
            memory[:5] = b"hello"
            await cell.call(0)
            assert signal is not None
            await eventually(lambda: select.select([signal.call_fd], [], [], 0)[0])
            rung = os.eventfd_read(signal.call_fd)
        async with await guest.devices[1].open() as cell:
            silent = await cell.shm(0, 4096, 64)
            await cell.call(1, b"store")

        assert (bytes(memory[59:]), rung, silent) == (b"olleh", 1, None)
        assert bytes(memory[:5]) == b"store"
        memory.release()


async def test_shmclose_is_the_last_word_of_its_cookie(run_root: Path) -> None:
    """Close is answered after it; unplug sends it after the drop; the cookie comes back verbatim."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan", ram_bytes=RAM)
        stream = guest.events()
        cell = await guest.devices[1].open()
        await cell.shm(0, 4096, 64, signal_offset=0)
        await cell.close()
        again = await guest.devices[1].open()
        await again.shm(0, 4096, 64)

        await lab.operator.device_unplug("e", "lan")
        await eventually(lambda: len(stream._waiting) == 6)

        assert [
            messages.LinkState(2, is_up=True),
            messages.ShmClose(1),
            messages.LinkState(2, is_up=True),
            messages.DevDrop(1),
            messages.DevDrop(2),
            messages.ShmClose(2),
        ] == list(stream._waiting)


@pytest.mark.parametrize(
    ("offset", "length", "signal_offset", "error"),
    [
        (0, 64, -1, UsageError),
        (4095, 64, -1, UsageError),
        (RAM, 1, -1, UsageError),
        (RAM - 63, 64, -1, UsageError),
        (4096, (1 << 63) - 1, -1, UsageError),
        ((1 << 63) - 1, 64, -1, UsageError),
        (4096, 64, 52, UsageError),
        (4096, 64, 2, UsageError),
        (4096, 64, 1 << 40, UsageError),
        (4096, 4097, -1, UsageError),
    ],
)
async def test_a_region_out_of_bounds_is_refused_and_the_session_goes_on(
    run_root: Path, offset: int, length: int, signal_offset: int, error: type[Exception]
) -> None:
    """No sum overflows, no header is reached, nothing behind the end is touched."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan", ram_bytes=RAM)
        cell = await guest.devices[1].open()

        with pytest.raises(error):
            await cell.shm(0, offset, length, signal_offset=signal_offset)

        assert None is await cell.shm(0, 4096, 64)


async def test_a_guest_without_memory_cannot_share_any(run_root: Path) -> None:
    """It learns how to get some."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan")
        cell = await guest.devices[1].open()

        with pytest.raises(UsageError, match="ram_bytes"):
            await cell.shm(0, 4096, 64)


async def test_quotas_hold_and_are_given_back(run_root: Path) -> None:
    """Handles, regions and shared bytes are counted up and down."""
    limits = Limits(handles_per_session=2, regions_per_session=1, shared_bytes_per_session=100)
    async with Lab.open(run_root, limits=limits) as lab:
        await lab.plugged("e", "lan")
        await lab.plugged("f", "lan")
        guest = await lab.guest("web", "lan", ram_bytes=RAM)
        first, second = [await guest.devices[index].open() for index in (1, 3)]

        with pytest.raises(ResourceError):
            await guest.devices[0].open()
        with pytest.raises(ResourceError):
            await first.shm(0, 4096, 101)
        await first.shm(0, 4096, 100)
        with pytest.raises(ResourceError):
            await second.shm(0, 8192, 1)
        await first.close()

        await second.shm(0, 8192, 100)


async def test_names_are_unique_among_the_living(run_root: Path) -> None:
    """A second guest of one name is refused; after the first left, its name is free."""
    async with Lab.open(run_root) as lab:
        first = await lab.guest("web")

        with pytest.raises(ExistsError):
            await lab.guest("web")
        await first.close()
        await eventually(lambda: len(lab.host.book) == 0)

        await lab.guest("web")


async def test_an_attribute_locked_while_open_is(run_root: Path) -> None:
    """The host knows who has it open."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan")
        opened = await guest.devices[0].open()

        with pytest.raises(BusyError):
            await lab.operator.device_set("e", "limit", "5")
        await lab.operator.device_set("e", "prefix", "!")
        await opened.close()

        await lab.operator.device_set("e", "limit", "5")


async def test_negotiation_resets_a_guest_without_restarting_it(run_root: Path) -> None:
    """Everything it had open is closed on both sides, its devices come anew, and it works again."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan", ram_bytes=RAM)
        before = await guest.devices[1].open()
        await before.shm(0, 4096, 64, signal_offset=0)

        await guest.reset()

        with pytest.raises(PeerGone):
            await before.call(0)
        await before.close()
        async with await guest.devices[1].open() as cell:
            await cell.shm(0, 4096, 64, signal_offset=0)
        assert (await lab.operator.guest_list())[0].state == "ready"


async def test_an_operator_resets_a_guest(run_root: Path) -> None:
    """To the guest its devices leave and come back under their old ids."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan")
        opened = await guest.devices[0].open()
        stream = guest.events()

        await lab.operator.guest_reset("web")
        await eventually(lambda: len(stream._waiting) == 4)

        assert [
            messages.DevDrop(1),
            messages.DevDrop(2),
            messages.DevAdd(1, "echo", "echo0"),
            messages.DevAdd(2, "echo-cell", "cell0"),
        ] == list(stream._waiting)
        with pytest.raises(PeerGone):
            await opened.call(0)
        assert await (await guest.devices[0].open()).call(0, b"x") == b"x"


async def test_a_descriptor_given_reaches_the_session_and_is_closed_with_it(run_root: Path) -> None:
    """Gifts that no device took do not outlive the guest."""
    async with Lab.open(run_root) as lab:
        guest = await lab.guest("web")
        reader, writer = os.pipe()

        await guest.give_fd(7, writer)
        os.close(writer)
        with pytest.raises(ExistsError):
            await guest.give_fd(7, reader)
        await guest.close()
        await eventually(lambda: len(lab.host.book) == 0)

        assert os.read(reader, 1) == b""
        os.close(reader)


async def test_a_descriptor_lent_reaches_the_guest_whoever_is_first(run_root: Path) -> None:
    """The guest may ask before the descriptor comes or after it; it gets what the device lent, by its ticket."""
    async with Lab.open(run_root) as lab:
        guest = await lab.guest("web")
        session = lab.host.book.find("web")
        reader, writer = os.pipe()

        early = asyncio.ensure_future(guest.take_fd(1, None))
        await one_turn()
        tickets = [session.lend(writer), session.lend(writer)]
        os.close(writer)
        taken = [await early, await guest.take_fd(tickets[1], None)]
        for number, fd in enumerate(taken):
            os.write(fd, bytes([number]))
            os.close(fd)

        assert [1, 2] == tickets
        assert b"\x00\x01" == os.read(reader, 10)
        assert b"" == os.read(reader, 1)
        os.close(reader)


async def test_a_ticket_nobody_gave_and_one_that_was_used_bring_nothing(run_root: Path) -> None:
    """Waiting ends with the deadline, also for a second taker of one ticket."""
    async with Lab.open(run_root) as lab:
        guest = await lab.guest("web")
        fd = os.eventfd(0)
        ticket = lab.host.book.find("web").lend(fd)
        os.close(fd)

        os.close(await guest.take_fd(ticket, None))

        for nothing in (ticket, 99):
            with pytest.raises(DeadlineError):
                await guest.take_fd(nothing, 0.01)


async def test_lent_descriptors_nobody_takes_are_bounded_and_end_with_the_guest(run_root: Path) -> None:
    """A guest keeps the newest few; the rest is closed on arrival, and those few when it leaves."""
    async with Lab.open(run_root) as lab:
        guest = await lab.guest("web")
        session = lab.host.book.find("web")
        fd = os.eventfd(0)
        before = count_own_fds()

        for _ in range(KEPT_LENDS + 36):
            ticket = session.lend(fd)
        os.close(await guest.take_fd(ticket, None))
        await eventually(lambda: count_fds(os.getpid()) == before + KEPT_LENDS)
        with pytest.raises(DeadlineError):
            await guest.take_fd(1, 0.01)
        await guest.close()

        await eventually(lambda: count_fds(os.getpid()) == before)
        os.close(fd)


async def test_nothing_is_lent_to_a_process_that_does_not_read(run_root: Path) -> None:
    """The host refuses and counts; what waits is bounded, arrives once the process reads, and then lending goes on."""
    async with Lab.open(run_root) as lab:
        guest = await lab.guest("web")
        session = lab.host.book.find("web")
        fd = os.eventfd(0)
        before = count_own_fds()

        lent = 0
        with contextlib.suppress(ResourceError):
            while lent < Limits().outbound_messages:  # the guest is on this event loop, which does not turn meanwhile
                lent = session.lend(fd)
        held = count_fds(os.getpid()) - before
        os.close(await guest.take_fd(lent, None))
        os.close(await guest.take_fd(session.lend(fd), None))

        assert Limits().lends_waiting == held
        assert [lent + 1, 1] == [lab.host.tally.value(metric) for metric in (metrics.LENDS, metrics.LENDS_REFUSED)]
        os.close(fd)


async def test_nothing_is_lent_to_a_guest_that_ended(run_root: Path) -> None:
    """Its device hears that it is gone."""
    async with Lab.open(run_root) as lab:
        guest = await lab.guest("web")
        session = lab.host.book.find("web")
        await guest.close()
        await eventually(lambda: session.is_gone)

        with pytest.raises(PeerGone):
            session.lend(0)


async def test_a_lend_for_another_session_is_closed_at_once(run_root: Path) -> None:
    """A packet that names a session this process does not have leaves no descriptor behind."""
    async with Lab.open(run_root) as lab:
        await lab.guest("web")
        session = lab.host.book.find("web")
        assert session.attached is not None
        before = count_own_fds()
        fd = os.eventfd(0)

        session.attached.lend(session.sid + 7, 1, fd)
        os.close(fd)

        await eventually(lambda: count_fds(os.getpid()) == before)


async def test_a_silent_process_is_stuck_then_heard_again(run_root: Path) -> None:
    """Missing heartbeats make it stuck, visible and still attached; one message makes it well."""
    clock = ManualClock()
    async with Lab.open(run_root, clock=clock) as lab:
        await lab.plugged("e", "lan")
        guest_clock = ManualClock()
        node = await GuestNode.connect(lab.run_dir, clock=guest_clock)
        guest = await node.join("web", "lan", ram_bytes=0)

        for _ in range(2):
            clock.advance(7.5)
        assert lab.host.book.find("web").state == "ready"
        node._link.send = lambda _data: None  # type: ignore[method-assign, assignment]
        clock.advance(7.5)
        assert lab.host.book.find("web").state == "stuck"
        del node._link.send

        assert len(await guest.list_devices()) == 2
        assert lab.host.book.find("web").state == "ready"
        await node.close()


async def test_a_probe_is_answered(run_root: Path) -> None:
    """A process that merely had nothing to say is found alive."""
    clock = ManualClock()
    async with Lab.open(run_root, clock=clock) as lab:
        node = await GuestNode.connect(lab.run_dir, clock=ManualClock())
        await node.join("web", ram_bytes=0)

        for _ in range(4):
            clock.advance(7.5)
        await eventually(lambda: lab.host.book.find("web").state == "ready")

        await node.close()


async def test_heartbeats_keep_a_process_well(run_root: Path) -> None:
    """One message an interval, for all its guests."""
    clock = ManualClock()
    async with Lab.open(run_root, clock=clock) as lab:
        guest_clock = ManualClock()
        node = await GuestNode.connect(lab.run_dir, clock=guest_clock)
        await node.join("a", ram_bytes=0)
        await node.join("b", ram_bytes=0)
        peer = lab.host.book.find("a").peer

        for _ in range(10):
            clock.advance(7.5)
            guest_clock.advance(7.5)
            await eventually(lambda: peer.last_heard_ns == clock.now_ns())

        assert guest_clock.pending == 1
        assert not peer.is_stuck
        await node.close()


async def test_leaving_ends_the_session_only(run_root: Path) -> None:
    """Other guests of the same process go on."""
    async with Lab.open(run_root) as lab:
        node = await lab.node()
        first = await node.join("first", ram_bytes=0)
        second = await node.join("second", ram_bytes=0)

        await first.close()
        await eventually(lambda: len(lab.host.book) == 1)

        assert await second.list_devices() == []
        with pytest.raises(ClosedError):
            await first.list_devices()


async def test_a_process_may_have_so_many_guests_and_no_more(run_root: Path) -> None:
    """The quota is a process's, and leaving makes room."""
    async with Lab.open(run_root, limits=Limits(sessions_per_connection=2)) as lab:
        node = await lab.node()
        first, _ = [await node.join(name, ram_bytes=0) for name in ("a", "b")]

        with pytest.raises(ResourceError, match="too many guests"):
            await node.join("c", ram_bytes=0)
        await first.close()

        await node.join("c", ram_bytes=0)


async def test_who_does_not_attach_in_time_is_forgotten(run_root: Path) -> None:
    """A session that never proves who it is holds its name for ten seconds, not forever."""
    clock = ManualClock()
    async with Lab.open(run_root, clock=clock) as lab:
        node = await lab.node()
        hello = messages.Hello("slow", None, os.getpid(), "raw", 1, 1)
        welcome = await node.ask(99, hello)
        assert isinstance(welcome, messages.Welcome)

        clock.advance(10.0)

        assert [] == lab.host.book.all()
        assert [] == lab.host.plugboard.model.buses()
        with pytest.raises(NotPermittedError):
            await node.hand_over(fdpass.Attach(welcome.token, has_ram=False), [])


async def call_steadily(guest: GuestSession) -> list[bytes]:
    """A hundred calls to the first device."""
    async with await guest.devices[0].open() as echo:
        return [await echo.call(0, b"%d" % index) for index in range(100)]


async def open_whatever_comes(guest: GuestSession) -> None:
    """Use each new echo at once; it may be gone by then, and nothing else may go wrong."""
    async for event in guest.events():
        if isinstance(event, messages.DevAdd) and event.type == "echo":
            for device in [device for device in guest.devices if device.dev_id == event.dev_id]:
                with contextlib.suppress(PeerGone, NotFoundError):
                    await (await device.open()).call(0, b"x")


async def test_hot_plug_under_load_disturbs_nobody_else(run_root: Path) -> None:
    """Devices come and go while guests call: callers of the gone learn it, all others are answered."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("stays", "lan")
        await lab.operator.device_create("moves", "echo")
        node = await lab.node()
        guests = [await node.join(f"g{index}", "lan", ram_bytes=RAM) for index in range(4)]

        async def replug() -> None:
            for _ in range(30):
                await lab.operator.device_plug("moves", "lan")
                await lab.operator.device_unplug("moves", "lan")

        openers = [asyncio.ensure_future(open_whatever_comes(guest)) for guest in guests]
        _, *answers = await asyncio.gather(replug(), *map(call_steadily, guests))

        assert [[b"%d" % index for index in range(100)]] * 4 == answers
        for guest, opener in zip(guests, openers, strict=True):
            await eventually(functools.partial(has_devices, guest, [1, 2]))
            assert not opener.done()
            opener.cancel()

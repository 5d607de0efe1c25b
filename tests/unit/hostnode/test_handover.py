"""Operators take signals as eventfds and raise signals by eventfds: who holds what, how long, and what ends it."""

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from vbnet.bus import messages
from vbnet.bus.fdpass import connect_fds, receive_packet
from vbnet.bus.keys import KeyStore
from vbnet.bus.limits import Limits
from vbnet.bus.link import Secrets
from vbnet.bus.operator import Operator
from vbnet.errors import (
    ClosedError,
    NotFoundError,
    PeerGone,
    ResourceError,
    UnsupportedError,
    UsageError,
)
from vbnet.testing.lab import Lab, eventually
from vbnet.testing.processes import count_fds, count_own_fds
from vbnet.testing.wire import RawPeer, pack


@asynccontextmanager
async def alarmed(run_root: Path, limits: Limits | None = None) -> AsyncIterator[Lab]:
    """A lab with a signal ``alarm``, which has been driven before."""
    async with Lab.open(run_root, limits=limits) as lab:
        await lab.operator.signal_create("alarm")
        async with await Operator.connect(lab.run_dir) as first:
            with eventfd() as fd:
                await first.signal_drive("alarm", fd)
        await eventually(lambda: not drives(lab))
        yield lab


@contextmanager
def eventfd() -> Iterator[int]:
    """An eventfd, closed in the end."""
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def drives(lab: Lab) -> int:
    """How many eventfds of operators the host counts."""
    return lab.host.tally.snapshot()["vbnet_attach_drives"]


async def row(lab: Lab, signal: str = "alarm") -> dict[str, Any]:
    """A signal as the host lists it."""
    [found] = [each for each in await lab.operator.signal_list() if each["name"] == signal]
    return found


async def raised(lab: Lab, count: int) -> None:
    """Return once ``alarm`` was raised so often.

    Raises:
        TimeoutError: it was not.
    """
    async with asyncio.timeout(10):
        while (await row(lab))["raises"] < count:
            pass


async def test_a_signal_is_exported_with_what_was_kept_and_stays_led_there(run_root: Path) -> None:
    """The eventfd has the raise from before and those that follow, also when the operator that asked is gone."""
    async with alarmed(run_root) as lab:
        await lab.operator.signal_raise("alarm")
        await raised(lab, 1)

        async with await Operator.connect(lab.run_dir) as other:
            fd = await other.signal_export("alarm")
        await eventually(lambda: select.select([fd], [], [], 0)[0])
        kept = os.eventfd_read(fd)
        await lab.operator.signal_raise("alarm")
        await eventually(lambda: select.select([fd], [], [], 0)[0])

        assert (1, 1) == (kept, os.eventfd_read(fd))
        assert ("eventfd", False) == ((await row(lab))["route"], os.get_blocking(fd))
        assert not os.get_inheritable(fd)
        os.close(fd)


async def test_an_export_leaves_no_connection(run_root: Path) -> None:
    """An operator that drives nothing takes no guest's place: the eventfd alone is more than before."""
    async with alarmed(run_root) as lab:
        os.close(await lab.operator.signal_export("alarm"))
        before = count_own_fds()

        fds = [await lab.operator.signal_export("alarm") for _ in range(20)]

        await eventually(lambda: count_fds(os.getpid()) == before + 20)
        for fd in fds:
            os.close(fd)


async def test_each_write_raises_until_the_operator_is_closed(run_root: Path) -> None:
    """What was written before counts too; afterwards nothing does, and nothing is left."""
    async with alarmed(run_root) as lab, await Operator.connect(lab.run_dir) as other:
        await other.node_info()
        before = count_own_fds()
        with eventfd() as fd:
            os.eventfd_write(fd, 1)
            await other.signal_drive("alarm", fd)
            await raised(lab, 1)
            os.eventfd_write(fd, 1)
            await raised(lab, 2)
            held = (drives(lab), (await row(lab))["sources"])

            await other.close()
            await eventually(lambda: not drives(lab))
            os.eventfd_write(fd, 1)
            await lab.operator.signal_raise("alarm")
            await raised(lab, 3)

        assert ((1, 1), 0, 3) == (held, (await row(lab))["sources"], (await row(lab))["raises"])
        assert before > count_fds(os.getpid())


async def test_a_kept_drive_outlives_its_operator_and_ends_with_the_signal(run_root: Path) -> None:
    """It needs no connection; the host lets go of it when the signal is destroyed."""
    async with alarmed(run_root) as lab:
        before = count_own_fds()
        async with await Operator.connect(lab.run_dir) as other:
            with eventfd() as fd:
                kept = await other.signal_drive("alarm", fd, keep=True)
                again = os.dup(fd)
            with pytest.raises(NotFoundError):
                await other.signal_drive_ended(kept)

        os.eventfd_write(again, 1)
        await raised(lab, 1)
        os.close(again)
        held = (drives(lab), count_fds(os.getpid()) - before)
        await lab.operator.signal_destroy("alarm")

        assert ((1, 1), 0) == (held, drives(lab))
        await eventually(lambda: count_fds(os.getpid()) == before)


async def test_who_drives_is_told_when_the_signal_is_destroyed(run_root: Path) -> None:
    """Once for each drive, whether it waits already or asks later; drives of other signals go on."""
    async with alarmed(run_root) as lab:
        await lab.operator.signal_create("other")
        with eventfd() as fd:
            waited, asked = [await lab.operator.signal_drive("alarm", fd) for _ in range(2)]
            other = await lab.operator.signal_drive("other", fd)
            waiting = asyncio.ensure_future(lab.operator.signal_drive_ended(waited))
            going_on = asyncio.ensure_future(lab.operator.signal_drive_ended(other))

            await lab.operator.signal_destroy("alarm")
            await waiting
            await lab.operator.signal_drive_ended(asked)

            with pytest.raises(NotFoundError):
                await lab.operator.signal_drive_ended(waited)
            assert (1, False) == (drives(lab), going_on.done())
        await lab.operator.signal_destroy("other")
        await going_on


async def test_who_drives_is_told_when_the_host_ends(run_root: Path) -> None:
    """PeerGone, as for everything an operator waits for; ClosedError when it closed itself."""
    async with alarmed(run_root) as lab, await Operator.connect(lab.run_dir) as other:
        with eventfd() as fd:
            waits = [
                asyncio.ensure_future(each.signal_drive_ended(await each.signal_drive("alarm", fd)))
                for each in (lab.operator, other)
            ]
            await other.close()
            with pytest.raises(ClosedError):
                await waits[1]
            with pytest.raises(ClosedError):
                await other.signal_export("alarm")

            await lab.host.stop()

            with pytest.raises(PeerGone):
                await waits[0]


async def test_what_is_no_eventfd_drives_nothing(run_root: Path) -> None:
    """Closed here, a pipe, a file; neither side keeps anything of it."""
    async with alarmed(run_root) as lab:
        pipe = os.pipe()
        file = os.memfd_create("file")
        before = count_own_fds()

        for fd, word in ((1 << 40, "not open"), (-1, "not open"), (pipe[0], "eventfd"), (file, "eventfd")):
            with pytest.raises(UsageError, match=word):
                await lab.operator.signal_drive("alarm", fd)

        await eventually(lambda: count_fds(os.getpid()) == before)
        assert (0, 0) == (drives(lab), (await row(lab))["sources"])
        for fd in (*pipe, file):
            os.close(fd)


async def test_no_such_signal_is_not_found_and_changes_nothing(run_root: Path) -> None:
    """The error is the one that other verbs give."""
    async with alarmed(run_root) as lab:
        with eventfd() as fd:
            with pytest.raises(NotFoundError, match="no signal 'siren'"):
                await lab.operator.signal_export("siren")
            with pytest.raises(NotFoundError, match="no signal 'siren'"):
                await lab.operator.signal_drive("siren", fd)

        assert "nowhere" == (await row(lab))["route"]


async def test_all_drives_together_are_bounded_the_kept_ones_included(run_root: Path) -> None:
    """ENOSPC for one more, until one has ended."""
    async with alarmed(run_root, Limits(drives=2)) as lab, await Operator.connect(lab.run_dir) as other:
        with eventfd() as fd:
            await lab.operator.signal_drive("alarm", fd, keep=True)
            await other.signal_drive("alarm", fd)
            for keep in (False, True):
                with pytest.raises(ResourceError, match="2 eventfds already"):
                    await lab.operator.signal_drive("alarm", fd, keep=keep)

            await other.close()
            await eventually(lambda: drives(lab) == 1)

            await lab.operator.signal_drive("alarm", fd)


async def test_an_operator_that_leaves_ends_no_guest_of_its_process(run_root: Path) -> None:
    """Not even one that has only said hello, and whose process is known to the host by the operator alone."""
    async with alarmed(run_root) as lab, await Operator.connect(lab.run_dir) as other:
        with zmq.Context() as context, context.socket(zmq.DEALER) as bus, eventfd() as fd:
            bus.connect(lab.run_dir.endpoint(0))
            bus.send(pack([1, 1, 1, [RawPeer.HELLO, "late", None, os.getpid(), "raw", 1, 1]]))
            await eventually(lab.host.book.all)
            await other.signal_drive("alarm", fd)

            await other.close()
            await eventually(lambda: not drives(lab))

            assert ["late"] == [session.name for session in lab.host.book.all()]


async def test_the_last_guest_connection_of_a_process_ends_what_waits_beside_an_operator_s(run_root: Path) -> None:
    """A session that said hello can never attach then, although the process goes on as an operator."""
    async with alarmed(run_root) as lab:
        with eventfd() as fd:
            await lab.operator.signal_drive("alarm", fd)
            node = await lab.node()
            await node.ask(99, messages.Hello("late", None, os.getpid(), "raw", 1, 1))

            await node.close()

            await eventually(lambda: not lab.host.book.all())
            assert 1 == drives(lab)


async def test_an_operator_that_drives_nothing_gives_way_to_a_guest(run_root: Path) -> None:
    """When all places are taken, and only then; one that drives stays, and a guest beyond that is not let in."""
    async with alarmed(run_root, Limits(channels=2)) as lab, await Operator.connect(lab.run_dir) as busy:
        with eventfd() as fd, connect_fds(lab.run_dir, lab.run_dir.operate_socket, 5) as idle:
            await busy.signal_drive("alarm", fd)
            idle.send(pack([1, 1, [3, "alarm"]]))
            await eventually(lambda: arrived(idle))
            os.close(receive_packet(idle)[1][0])

            guest = await lab.guest("web")
            await eventually(lambda: arrived(idle))

            assert b"" == idle.recv(1)
            assert (1, []) == (drives(lab), await guest.list_devices())
            with pytest.raises(PeerGone):
                await lab.guest("late")


def arrived(sock: socket.socket) -> bool:
    """Whether there is something to read, or the other side hung up."""
    return bool(select.select([sock], [], [], 0)[0])


async def test_an_export_that_nobody_waits_for_any_more_is_closed(run_root: Path) -> None:
    """A caller that was cancelled leaks nothing when the eventfd comes after all."""
    async with alarmed(run_root) as lab:
        with eventfd() as fd:
            await lab.operator.signal_drive("alarm", fd)  # so that the connection stays
            os.close(await lab.operator.signal_export("alarm"))
            before = count_own_fds()
            asked = asyncio.ensure_future(lab.operator.signal_export("alarm"))
            await asyncio.sleep(0)

            asked.cancel()
            os.close(await lab.operator.signal_export("alarm"))

            assert asked.cancelled()
            assert before == count_fds(os.getpid())


async def test_over_tcp_nothing_is_handed_over(tmp_path: Path) -> None:
    """It says why, and what to do, without asking anybody."""
    keys = KeyStore(tmp_path / "keys").make()
    async with await Operator.connect("tcp://127.0.0.1:9", secrets=Secrets(keys, keys.public)) as far:
        with eventfd() as fd:
            for work in (far.signal_export("alarm"), far.signal_drive("alarm", fd), far.signal_drive_ended(1)):
                with pytest.raises(UnsupportedError, match="on the host node's own machine"):
                    await work

"""How the end of a guest's process is counted, whatever order its two sockets are read in."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from vbnet.bus.history import read_history
from vbnet.hostnode import goodbyes
from vbnet.hostnode.sessions import Session
from vbnet.testing import ManualClock
from vbnet.testing.lab import Lab, eventually
from vbnet.testing.wire import RawPeer
from vbnet.units import SECOND_NS

WAIT_S = goodbyes.GOODBYE_WAIT_NS / SECOND_NS


async def joined(lab: Lab, guest: RawPeer, name: str = "web") -> Session:
    """The session of a guest that joined lawfully."""
    await asyncio.to_thread(guest.join, 1, name)
    return lab.host.book.find(name)


def causes(lab: Lab) -> list[str]:
    """Why sessions ended, in order."""
    return [str(event["cause"]) for event in read_history(lab.run_dir).events if event["topic"] == "guest.gone"]


async def test_a_goodbye_that_is_read_first_counts(run_root: Path) -> None:
    """The hang-up that follows is about nobody any more."""
    async with Lab.open(run_root, clock=ManualClock()) as lab:
        with RawPeer(lab.run_dir.path) as guest:
            session = await joined(lab, guest)
            guest.send(1, 0, [guest.BYE])
            await eventually(lambda: session.is_gone)

            guest.attach_socket.close()

        assert ["bye"] == causes(lab)


async def test_a_goodbye_that_is_read_behind_the_hang_up_counts(run_root: Path) -> None:
    """It is waited for, and nothing else is needed to end the session."""
    async with Lab.open(run_root, clock=ManualClock()) as lab:
        with RawPeer(lab.run_dir.path) as guest:
            session = await joined(lab, guest)
            guest.attach_socket.close()
            await eventually(lambda: session.lost_by)
            assert not session.is_gone

            guest.send(1, 0, [guest.BYE])
            await eventually(lambda: session.is_gone)

        assert ["bye"] == causes(lab)


async def test_the_last_word_of_a_process_that_is_gone_counts(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goodbye, hang-up and the end of the connection are all there when the host looks."""
    monkeypatch.setattr(goodbyes, "GOODBYE_WAIT_NS", 3600 * SECOND_NS)
    async with Lab.open(run_root) as lab:
        for turn in range(20):
            with RawPeer(lab.run_dir.path) as guest:
                session = await joined(lab, guest, f"web{turn}")
                guest.send(1, 0, [guest.BYE])
                guest.attach_socket.close()
                guest.bus.close(5000)
            await eventually(partial(getattr, session, "is_gone"))

        assert ["bye"] * 20 == causes(lab)


async def test_who_ends_without_a_word_is_ended_as_soon_as_its_connection_is(
    run_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No time has to pass: that nothing more can come is known."""
    monkeypatch.setattr(goodbyes, "GOODBYE_WAIT_NS", 3600 * SECOND_NS)
    async with Lab.open(run_root) as lab:
        with RawPeer(lab.run_dir.path) as guest:
            session = await joined(lab, guest)

        await eventually(lambda: session.is_gone)

        assert ["hung-up"] == causes(lab)


async def test_who_hangs_up_and_says_nothing_is_not_waited_for_long(run_root: Path) -> None:
    """A process that keeps its bus connection holds up the end of its session by a bounded time."""
    clock = ManualClock()
    async with Lab.open(run_root, clock=clock) as lab:
        with RawPeer(lab.run_dir.path) as guest:
            session = await joined(lab, guest)
            guest.attach_socket.close()
            await eventually(lambda: clock.pending and session.lost_by)

            clock.advance(WAIT_S / 2)
            assert not session.is_gone
            clock.advance(WAIT_S)

        assert ["hung-up"] == causes(lab)


async def test_a_name_is_free_once_its_process_is_known_to_be_gone(run_root: Path) -> None:
    """A guest that is started again at once need not wait for what its predecessor may still say."""
    async with Lab.open(run_root, clock=ManualClock()) as lab:
        with RawPeer(lab.run_dir.path) as guest:
            before = await joined(lab, guest)
            guest.attach_socket.close()
            await eventually(lambda: before.lost_by)

            after = await lab.guest("web")
            assert before.is_gone
            await after.list_devices()
            guest.send(1, 0, [guest.BYE])

        assert ["hung-up"] == causes(lab)


async def test_who_never_attached_may_say_goodbye_as_well(run_root: Path) -> None:
    """A process that said hello, goodbye, and was gone."""
    async with Lab.open(run_root, clock=ManualClock()) as lab:
        with RawPeer(lab.run_dir.path) as guest:
            await asyncio.to_thread(guest.hello, 1, "web")
            session = lab.host.book.find("web")
            guest.attach_socket.close()
            await eventually(lambda: session.lost_by)
            guest.send(1, 0, [guest.BYE])
            await eventually(lambda: session.is_gone)

        assert ["bye"] == causes(lab)

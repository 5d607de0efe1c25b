"""Descriptors that wait for a taker, and takers that wait for descriptors."""

import asyncio
import os

import pytest

from vbnet.errors import BusyError, PeerGone
from vbnet.guestnode.parcels import Parcels
from vbnet.testing import ManualClock
from vbnet.testing.lab import one_turn
from vbnet.testing.processes import count_fds, count_own_fds

KEY = ("lend", 1, 7)


async def test_second_taker_of_one_parcel_is_refused() -> None:
    """Only one may wait for it, and gets it."""
    parcels = Parcels(ManualClock())
    first = asyncio.ensure_future(parcels.take(KEY, 1))
    await one_turn()

    with pytest.raises(BusyError):
        await parcels.take(KEY, 1)
    fd = os.eventfd(0)
    parcels.came(KEY, [fd])

    assert [fd] == await first
    os.close(fd)


async def test_parcel_that_comes_while_its_taker_is_cancelled_is_closed() -> None:
    """Nobody holds it, so nobody else could close it."""
    parcels = Parcels(ManualClock())
    before = count_own_fds()
    taker = asyncio.ensure_future(parcels.take(KEY, 1))
    await one_turn()

    parcels.came(KEY, [os.eventfd(0), os.eventfd(0)])
    taker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taker

    assert before == count_fds(os.getpid())
    assert 0 == len(parcels)


async def test_parcel_under_a_key_in_use_replaces_the_kept_one() -> None:
    """The host's mistake costs the older descriptor, and leaks none."""
    parcels = Parcels(ManualClock())
    before = count_own_fds()

    parcels.came(KEY, [os.eventfd(0)])
    parcels.came(KEY, [newer := os.eventfd(0)])

    assert before + 1 == count_fds(os.getpid())
    assert [newer] == await parcels.take(KEY, 1)
    os.close(newer)


async def test_end_of_the_host_ends_waiting_and_closes_what_was_kept() -> None:
    """Who waits, and who asks later, hears of it."""
    parcels = Parcels(ManualClock())
    before = count_own_fds()
    parcels.came(("lend", 2, 1), [os.eventfd(0)])
    waiting = asyncio.ensure_future(parcels.take(KEY, 1))
    await one_turn()

    parcels.fail_all(PeerGone("the host node ended"))

    for taker in (waiting, parcels.take(KEY, 1)):
        with pytest.raises(PeerGone):
            await taker
    assert before == count_fds(os.getpid())

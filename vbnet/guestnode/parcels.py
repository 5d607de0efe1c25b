"""Descriptors that came from the host, until somebody takes them.

A descriptor and the word about it (an answer over ZeroMQ) travel on two sockets, so either may be first: who asks
early waits, what comes early is kept. A kept descriptor belongs to its session and is closed with it. How many of them
a session keeps is bounded, for nobody promised to take them: beyond it the oldest are closed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence

from vbnet.bus.link import Requests
from vbnet.clock import Clock
from vbnet.errors import BusyError, VbnetError

__all__ = ["KEPT_LENDS", "Key", "Parcels", "close_fds"]

KEPT_LENDS = 64
"""Lent descriptors that a session keeps until somebody takes them."""

Key = tuple[str, int, int]
"""What kind of parcel it is, whose (sid), and its number."""

_log = logging.getLogger("vbnet.guest")


class Parcels:
    """What came for the sessions of one process, and who waits for it.

    Args:
        clock: for deadlines.
    """

    def __init__(self, clock: Clock) -> None:
        self._requests: Requests[Sequence[int]] = Requests(clock)
        self._waiters: dict[Key, int] = {}
        self._kept: dict[Key, Sequence[int]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    async def take(self, key: Key, deadline_s: float) -> Sequence[int]:
        """The descriptors of a parcel, once it has come; they are the caller's.

        Raises:
            DeadlineError: it did not come. BusyError: somebody else waits for it. PeerGone: the host ended.
        """
        kept = self._kept.pop(key, None)
        if kept is not None:
            return kept
        what, sid, number = key
        if key in self._waiters:
            raise BusyError(f"somebody waits for {what} {number} of session {sid} already", ticket=number)
        seq, future = self._requests.begin(f"{what} {number}", deadline_s)
        self._waiters[key] = seq
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                close_fds(future.result())  # it came while the caller was being cancelled
            raise
        finally:
            del self._waiters[key]

    def came(self, key: Key, fds: Sequence[int], *, kept_at_most: int | None = None) -> None:
        """One arrived: to whoever waits for it, or to be kept.

        Args:
            key: of the parcel.
            fds: its descriptors; become this object's.
            kept_at_most: how many of this kind the session may keep, the new one included; None: any number.
        """
        waiter = self._waiters.get(key)
        if waiter is not None and self._requests.answer(waiter, fds):
            return
        close_fds(self._kept.pop(key, ()))
        self._kept[key] = fds
        if kept_at_most is not None:
            alike = [other for other in self._kept if other[:2] == key[:2]]
            for oldest in alike[:-kept_at_most]:
                _log.warning("%s %d of session %d was not taken and is closed", *_order(oldest))
                close_fds(self._kept.pop(oldest))

    def discard(self, sid: int) -> None:
        """A session is over: what it kept is closed."""
        for key in [key for key in self._kept if key[1] == sid]:
            close_fds(self._kept.pop(key))

    def fail_all(self, error: VbnetError) -> None:
        """The host is gone: who waits hears of it, what was kept is closed."""
        self._requests.fail_all(error)
        for fds in self._kept.values():
            close_fds(fds)
        self._kept.clear()


def close_fds(fds: Sequence[int]) -> None:
    """Close them all."""
    for fd in fds:
        os.close(fd)


def _order(key: Key) -> tuple[str, int, int]:
    return key[0], key[2], key[1]

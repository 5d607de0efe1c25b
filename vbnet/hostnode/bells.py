"""How the event loop rings guests' doorbells: never itself.

    Session, Opener ── ring(fd) ────────> Bells ── ring(fd, key, owner) ──> native Bellman's thread ── write ──> eventfd
                    <─ doorbell_blocked ─ Bells <─ take_blocked() ──

A doorbell is an open file that the guest shares: it can fill the counter and clear ``O_NONBLOCK``, and whoever writes
next waits for as long as the guest likes. No look beforehand helps, for the guest may do so right after it. So a native
thread rings, which is freed when a doorbell blocks, and which tells whose it was. Each that blocks delays the rings of
everybody, so an owner gets to do it once: none of its doorbells is rung afterwards. The thread is started by the first
ring; most hosts never need it, for their guests kick and are called by the fabric. Source: eventfd(2).
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Protocol

from vbnet.hostnode import metrics
from vbnet.hostnode.metrics import Tally

if TYPE_CHECKING:
    from vbnet._native import Bellman

__all__ = ["BellOwner", "Bells"]


class BellOwner(Protocol):
    """Whose doorbells are rung; found again by identity."""

    def doorbell_blocked(self, fd: int) -> None:
        """Hear, once and on the event loop, that the doorbell blocked; it may have been forgotten since."""


class Bells:
    """Rings doorbells without ever blocking; used from one event loop.

    Args:
        tally: counts the rings that were lost.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._bellman: Bellman | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._count = itertools.count(1)
        self._numbers: dict[BellOwner, int] = {}
        self._owners: dict[int, BellOwner] = {}

    def ring(self, fd: int, owner: BellOwner) -> None:
        """Have a doorbell rung soon; several rings may become one, and nothing is rung whose owner made one block.

        Args:
            fd: an eventfd, open until ``forget``.
            owner: whose it is, until ``forget_owner``.

        Raises:
            ResourceError: the machine has no thread or descriptor left for it.
        """
        bellman = self._bellman if self._bellman is not None else self._start()
        number = self._numbers.get(owner)
        if number is None:
            number = next(self._count)
            self._numbers[owner], self._owners[number] = number, owner
        if not bellman.ring(fd, fd, number):
            self._tally.add(metrics.LOST_RINGS)

    def forget(self, fd: int) -> None:
        """Let go of a doorbell; afterwards its number may mean another one."""
        if self._bellman is not None:
            self._bellman.forget(fd)

    def forget_owner(self, owner: BellOwner) -> None:
        """Let go of an owner and whatever of its doorbells waits; harmless for one that never rang."""
        number = self._numbers.pop(owner, None)
        if self._bellman is not None and number is not None:
            del self._owners[number]
            self._bellman.forget_owner(number)

    def close(self) -> None:
        """End the thread; harmless when it never started."""
        if self._bellman is not None and self._loop is not None:
            self._loop.remove_reader(self._bellman.fault_fd())
            self._bellman.close()
            self._bellman = None
            self._numbers.clear()
            self._owners.clear()

    def _start(self) -> Bellman:
        from vbnet._native import Bellman  # noqa: PLC0415 - hosts that ring nobody do without

        self._bellman, self._loop = Bellman(), asyncio.get_running_loop()
        self._loop.add_reader(self._bellman.fault_fd(), self._take_blocked)
        return self._bellman

    def _take_blocked(self) -> None:
        if self._bellman is None:
            return
        for number, fd in self._bellman.take_blocked():
            self._owners[number].doorbell_blocked(fd)

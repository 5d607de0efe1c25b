"""How the event loop rings guests' doorbells: never itself.

    Session, Opener ── ring(fd) ──> Bells ── ring(fd, key) ──> native Bellman's thread ── write ──> eventfd
                    <─ on_blocked ─ Bells <─ take_blocked() ──

A doorbell is an open file that the guest shares: it can fill the counter and clear ``O_NONBLOCK``, and whoever writes
next waits for as long as the guest likes. No look beforehand helps, for the guest may do so right after it. So a native
thread rings, which is freed when a doorbell blocks, and which tells whose it was. It is started by the first ring; most
hosts never need it, for their guests kick and are called by the fabric. Source: eventfd(2).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from vbnet.hostnode import metrics
from vbnet.hostnode.metrics import Tally

if TYPE_CHECKING:
    from vbnet._native import Bellman

__all__ = ["Bells"]


class Bells:
    """Rings doorbells without ever blocking; used from one event loop.

    Args:
        tally: counts the rings that were lost.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._bellman: Bellman | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_blocked: dict[int, Callable[[], None]] = {}

    def ring(self, fd: int, on_blocked: Callable[[], None]) -> None:
        """Have a doorbell rung soon; several rings may become one.

        Args:
            fd: an eventfd, open until ``forget``.
            on_blocked: called once, on the event loop, when its holder made it block; it is not rung again then.

        Raises:
            ResourceError: the machine has no thread or descriptor left for it.
        """
        bellman = self._bellman if self._bellman is not None else self._start()
        self._on_blocked[fd] = on_blocked
        if not bellman.ring(fd, fd):
            self._tally.add(metrics.LOST_RINGS)

    def forget(self, fd: int) -> None:
        """Let go of a doorbell; afterwards its number may mean another one."""
        if self._bellman is not None and self._on_blocked.pop(fd, None) is not None:
            self._bellman.forget(fd)

    def close(self) -> None:
        """End the thread; harmless when it never started."""
        if self._bellman is not None and self._loop is not None:
            self._loop.remove_reader(self._bellman.fault_fd())
            self._bellman.close()
            self._bellman = None
            self._on_blocked.clear()

    def _start(self) -> Bellman:
        from vbnet._native import Bellman  # noqa: PLC0415 - hosts that ring nobody do without

        self._bellman, self._loop = Bellman(), asyncio.get_running_loop()
        self._loop.add_reader(self._bellman.fault_fd(), self._take_blocked)
        return self._bellman

    def _take_blocked(self) -> None:
        if self._bellman is None:
            return
        for fd in self._bellman.take_blocked():
            self._on_blocked[fd]()

"""A process hung up: what it said before still counts, also when word of the hang-up overtook it.

    guest   Bye   ──▶ bus.sock ──▶ libzmq's thread ──▶ inbox ──▶ the host's loop
            close ──▶ attach.sock ─────────────────────────────▶ the host's loop

Two sockets keep no order between them. But when a send to the process fails because it is not connected any more,
libzmq's thread has read all that the process ever wrote, so what is in the inbox then has its last word. The bus
connection of a process that was killed ends with it: its sessions are ended as soon as libzmq's thread noticed. One
that keeps it open and says nothing is waited for ``GOODBYE_WAIT_NS``, and no longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vbnet.hostnode.sessions import Session, SessionBook

__all__ = ["GOODBYE_WAIT_NS", "end_after_goodbyes"]

GOODBYE_WAIT_NS: Final = 250_000_000
_FIRST_PAUSE_NS: Final = 1_000_000
_LONGEST_PAUSE_NS: Final = 32_000_000


def end_after_goodbyes(book: SessionBook, sessions: Sequence[Session], cause: str) -> None:
    """End the sessions of a process that is gone: each with ``bye`` if it said so, else with ``cause``.

    Nothing is read before the next turn of the event loop, as this may be called while a message is being handled.
    """
    for session in sessions:
        if not session.lost_by:
            session.lost_by = cause
    if sessions:
        asyncio.get_running_loop().call_soon(_Wait(book, sessions).look)


class _Wait:
    def __init__(self, book: SessionBook, sessions: Sequence[Session]) -> None:
        self._book = book
        self._sessions = sessions
        self._give_up_ns = book.clock.now_ns() + GOODBYE_WAIT_NS
        self._pause_ns = _FIRST_PAUSE_NS

    def look(self) -> None:
        """Take what came, and end those who have nothing more to say; look again at the others."""
        clock = self._book.clock
        for peer in {session.peer for session in self._sessions if not session.is_gone}:
            is_over = peer.take_last_words() or clock.now_ns() >= self._give_up_ns
            for session in self._sessions:
                if is_over and session.peer is peer:
                    self._book.end(session, session.lost_by, tell=False)
        if not all(session.is_gone for session in self._sessions):
            clock.call_later(self._pause_ns, self.look)
            self._pause_ns = min(2 * self._pause_ns, _LONGEST_PAUSE_NS)

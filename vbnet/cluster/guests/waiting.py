"""Waiting in a guest process: for its own work, or for the host node's end, whichever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from vbnet.cluster.launch import HOST_GONE
from vbnet.errors import PeerGone
from vbnet.guestnode import GuestSession


async def host_ended(session: GuestSession) -> None:
    """Return when the host node has ended."""
    try:
        async for _ in session.events():
            pass
    except PeerGone:
        return


async def with_host(session: GuestSession, work: Coroutine[Any, Any, Any] | None = None) -> Any:  # noqa: ANN401 -- the work's own
    """Do ``work`` (or wait forever) while the host node lives.

    Returns:
        What the work returns, or ``HOST_GONE`` when the host node ended first.
    """
    ending = asyncio.ensure_future(host_ended(session))
    working = None if work is None else asyncio.ensure_future(work)
    await asyncio.wait({ending} if working is None else {ending, working}, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if working is None:
        return HOST_GONE
    if working.done():
        return working.result()
    working.cancel()
    await asyncio.wait({working})
    return HOST_GONE

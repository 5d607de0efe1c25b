"""The network card of a guest that runs natively, taken into use each time it is there.

    guest.register(Card(driver, "eth0", user))    # the user takes it now, lets go of it when it leaves, takes it again

A card leaves when it is unplugged and when the guest is reset, as an operator does after a quarantine; the guest goes
on with the next of that name. Who writes what: native threads write the card's part of the guest's memory, so that part
is given to nobody else before they let go of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from vbnet.errors import UsageError
from vbnet.guestnode.driver import Driver
from vbnet.guestnode.proxy import ProxyDevice

if TYPE_CHECKING:
    from vbnet.guestnode.nic import Nic

__all__ = ["Card", "CardUser"]


class CardUser(Protocol):
    """Native code that has one card at a time. Both may wait for its threads, so neither runs on the event loop."""

    def take(self, nic: Nic) -> None:
        """Run this card from now on."""

    def let_go(self) -> None:
        """Use nothing of the card any more when this returns; harmless without one."""


class Card:
    """Drives the one card of a guest: a driver, which lets ``user`` have what it makes.

    Args:
        driver: of the card's model.
        name: of the card. Others are refused: a card that nobody serves would hold up who sends to it.
        user: who has it.
        on_here: called on the event loop each time the user has taken it.

    Attributes:
        is_here: whether the user has it.
    """

    def __init__(self, driver: Driver, name: str, user: CardUser, on_here: Callable[[], object] = lambda: None) -> None:
        self.abi_type = driver.abi_type
        self.is_here = False
        self._driver = driver
        self._name = name
        self._user = user
        self._on_here = on_here
        self._is_free = asyncio.Event()
        self._is_free.set()

    async def probe(self, device: ProxyDevice) -> _Taken:
        """Take the card into use, once the memory of the one before is free."""
        if device.name != self._name:
            raise UsageError(f"this guest has one network card, {self._name!r}, and does not use {device.name!r}")
        await self._is_free.wait()
        nic = cast("Nic", await self._driver.probe(device))  # only drivers of cards are given
        self._is_free.clear()
        try:
            await _to_its_end(self._user.take, nic)
        except BaseException:
            await self.remove(nic)
            raise
        self.is_here = True
        self._on_here()
        return _Taken(self, nic)

    async def remove(self, nic: Nic) -> None:
        """It left, or is not to be used after all."""
        self.is_here = False
        nic.abandon()  # a thread that waits for a register waits no more
        try:
            await _to_its_end(self._user.let_go)
        finally:
            await nic.remove()
            self._is_free.set()


class _Taken:
    """A card while its user has it."""

    def __init__(self, card: Card, nic: Nic) -> None:
        self._card = card
        self._nic = nic

    async def remove(self) -> None:
        """The card left, or the guest does."""
        await self._card.remove(self._nic)


async def _to_its_end(work: Callable[..., None], *arguments: object) -> None:
    """Do this in a thread, and wait for it even if cancelled meanwhile."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise

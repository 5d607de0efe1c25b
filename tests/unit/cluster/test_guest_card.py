"""The card of a native guest: taken each time it is there, and let go of before its memory is another's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vbnet.cluster.guests.card import Card
from vbnet.errors import UsageError
from vbnet.guestnode.proxy import ProxyDevice


class FakeNic:
    """A card that notes what becomes of it."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name, self._seen = name, seen

    def abandon(self) -> None:
        """Whoever waits for it waits no more."""
        self._seen.append(f"{self.name} abandoned")

    async def remove(self) -> None:
        """Its memory is free."""
        self._seen.append(f"{self.name} freed")


class FakeDriver:
    """Makes numbered cards."""

    abi_type = "card"

    def __init__(self, seen: list[str]) -> None:
        self._seen = seen
        self._count = 0

    async def probe(self, device: ProxyDevice) -> Any:
        """Make the next."""
        del device
        self._count += 1
        self._seen.append(f"{self._count} made")
        return FakeNic(str(self._count), self._seen)


class FakeUser:
    """Notes which card it has; refuses those in ``refused``."""

    def __init__(self, seen: list[str], refused: str = "") -> None:
        self._seen, self._refused = seen, refused

    def take(self, nic: Any) -> None:
        """Have it."""
        self._seen.append(f"{nic.name} taken")
        if nic.name == self._refused:
            raise UsageError("this card does not fit")

    def let_go(self) -> None:
        """Have none."""
        self._seen.append("let go")


def device(name: str = "eth0") -> ProxyDevice:
    """A device of this name, which nobody asks for anything."""
    carrier: Any = None
    return ProxyDevice(carrier, 1, "card", name)


async def test_next_card_is_made_when_the_one_before_is_free() -> None:
    """A guest that is reset sees the next before the last has been removed: their memory is the same."""
    seen: list[str] = []
    card = Card(FakeDriver(seen), "eth0", FakeUser(seen), lambda: seen.append("here"))
    first = await card.probe(device())
    assert card.is_here

    second = asyncio.ensure_future(card.probe(device()))
    await asyncio.sleep(0)
    await first.remove()
    await second

    expected = ["1 made", "1 taken", "here", "1 abandoned", "let go", "1 freed", "2 made", "2 taken", "here"]
    assert expected == seen


async def test_card_that_its_user_refuses_is_given_back() -> None:
    """And the next is tried all the same."""
    seen: list[str] = []
    card = Card(FakeDriver(seen), "eth0", FakeUser(seen, refused="1"))

    with pytest.raises(UsageError, match="does not fit"):
        await card.probe(device())
    assert not card.is_here
    await card.probe(device())

    assert ["1 made", "1 taken", "1 abandoned", "let go", "1 freed", "2 made", "2 taken"] == seen
    assert card.is_here


async def test_other_cards_are_left_alone() -> None:
    """Nobody would serve them, and whoever sends there would be held up."""
    seen: list[str] = []
    card = Card(FakeDriver(seen), "eth0", FakeUser(seen))

    with pytest.raises(UsageError, match="does not use 'eth1'"):
        await card.probe(device("eth1"))

    assert [] == seen

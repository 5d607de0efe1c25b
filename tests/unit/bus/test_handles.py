"""Handles: unguessable, never reused, bounded."""

import pytest

from vbnet.bus.handles import HandleTable
from vbnet.errors import NotFoundError, ResourceError


def table(capacity: int = 4) -> HandleTable[str]:
    """A table whose random half is always 0xABCD."""
    return HandleTable("thing", capacity, entropy=lambda: 0xABCD)


def test_a_handle_finds_what_was_entered() -> None:
    """The number stands for the thing."""
    things = table()

    handle = things.add("a")

    assert (handle, things.find(handle), len(things)) == (1 << 32 | 0xABCD, "a", 1)


@pytest.mark.parametrize("forged", [0, 1, 0xABCD, 1 << 32, (1 << 32 | 0xABCD) + 1, 2 << 32 | 0xABCD, 1 << 62])
def test_a_forged_handle_is_refused(forged: int) -> None:
    """Numbers near a real one, and any other, miss."""
    things = table()
    things.add("a")

    with pytest.raises(NotFoundError):
        things.find(forged)


def test_a_closed_handle_never_comes_back() -> None:
    """Even with the same random half the serial differs."""
    things = table()
    first = things.add("a")
    things.take(first)

    second = things.add("b")

    assert first != second
    with pytest.raises(NotFoundError):
        things.take(first)


def test_a_full_table_refuses_and_takes_again_after_a_close() -> None:
    """The quota is on what is open, not on what ever was."""
    things = table(capacity=1)
    first = things.add("a")

    with pytest.raises(ResourceError):
        things.add("b")
    things.take(first)

    assert things.find(things.add("c")) == "c"


def test_entries_may_be_closed_while_walking_them() -> None:
    """Ending a session walks its own table."""
    things = table()
    for name in "abc":
        things.add(name)

    for handle, _ in things:
        things.take(handle)

    assert len(things) == 0

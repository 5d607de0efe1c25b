"""Handles: the numbers by which a guest names things of the host.

A handle is ``serial << 32 | 32 random bits``: the serial never repeats within a table, so a handle that was closed
stays dead; the random half makes a neighbour's or a made-up handle miss. Tables belong to one session: a handle of
another session is as forged as any. Handles fit 63 bits and are never 0.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from vbnet.errors import NotFoundError, ResourceError

__all__ = ["HandleTable"]

T = TypeVar("T")

_MAX_SERIAL = 0x7FFF_FFFF


class HandleTable(Generic[T]):
    """Things one session holds, by unguessable number.

    Args:
        what: the noun for messages, for instance ``"device handle"``.
        capacity: most entries at once.
        entropy: gives 32 random bits; tests hand in their own.
    """

    def __init__(self, what: str, capacity: int, entropy: Callable[[], int] = lambda: secrets.randbits(32)) -> None:
        self._what = what
        self._capacity = capacity
        self._entropy = entropy
        self._entries: dict[int, T] = {}
        self._serial = 0

    def add(self, value: T) -> int:
        """Enter ``value`` and give its handle.

        Raises:
            ResourceError: the table is full (quota), or ran out of serials.
        """
        if len(self._entries) >= self._capacity or self._serial >= _MAX_SERIAL:
            raise ResourceError(f"no room for another {self._what}: close some first", limit=self._capacity)
        self._serial += 1
        handle = self._serial << 32 | self._entropy() & 0xFFFF_FFFF
        self._entries[handle] = value
        return handle

    def find(self, handle: int) -> T:
        """The thing behind ``handle``.

        Raises:
            NotFoundError: forged, closed, or of another session.
        """
        try:
            return self._entries[handle]
        except KeyError:
            raise NotFoundError(f"{handle:#x} is not a {self._what} of this session", handle=handle) from None

    def take(self, handle: int) -> T:
        """Remove and return the thing behind ``handle``; raises like ``find``."""
        value = self.find(handle)
        del self._entries[handle]
        return value

    def discard(self, handle: int) -> None:
        """Forget ``handle`` if it is here."""
        self._entries.pop(handle, None)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[int, T]]:
        return iter(list(self._entries.items()))

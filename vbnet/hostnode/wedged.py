"""Guests whose handlers do not return: found by what their own controllers say, told when it begins and ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from vbnet.bus.admin import WedgedLevel
from vbnet.hostnode.signals import SignalBook
from vbnet.units import SECOND_NS

__all__ = ["WEDGED_NS", "WedgeWatch", "wedged_levels"]

WEDGED_NS = SECOND_NS
"""How long a handler may run before its guest is shown as wedged."""


def wedged_levels(signals: SignalBook, guest: str) -> list[WedgedLevel]:
    """Levels of a guest whose handler has not returned for longer than a second."""
    now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return [
        WedgedLevel(
            vcpu=level["vcpu"],
            priority=level["priority"],
            vector=level["in_service"],
            since_s=round((now_ns - level["since_ns"]) / SECOND_NS, 3),
            pending=level["pending"],
        )
        for level in signals.levels(guest)
        if level["in_service"] is not None and now_ns - level["since_ns"] > WEDGED_NS
    ]


class WedgeWatch:
    """Tells of each handler that is wedged once, and once when it is not any more.

    Args:
        levels: the wedged levels of a guest.
        publish: tells of an event.
    """

    def __init__(self, levels: Callable[[str], list[WedgedLevel]], publish: Callable[..., None]) -> None:
        self._levels, self._publish = levels, publish
        self._known: set[tuple[str, int, int]] = set()

    def guests(self) -> set[str]:
        """Those with a wedged handler, at the last look."""
        return {guest for guest, _, _ in self._known}

    def look(self, guests: Iterable[str]) -> set[str]:
        """Look at these guests, all that have a controller; those that became wedged or are not any more."""
        before = self.guests()
        found: set[tuple[str, int, int]] = set()
        for guest in guests:
            for level in self._levels(guest):
                place = guest, level.vcpu, level.priority
                found.add(place)
                if place not in self._known:
                    self._publish(
                        "guest.wedged",
                        guest=guest,
                        vcpu=level.vcpu,
                        priority=level.priority,
                        vector=level.vector,
                        since_s=level.since_s,
                        pending=level.pending,
                    )
        for guest, vcpu, priority in sorted(self._known - found):
            self._publish("guest.unwedged", guest=guest, vcpu=vcpu, priority=priority)
        self._known = found
        return before ^ self.guests()

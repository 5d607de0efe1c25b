"""What both halves of timer know: the ABI type, its function, its regions. Little-endian throughout.

A driver opens the device, asks QUERY, lays a timer page out and shares it as region PAGE, whose doorbell words are
``waiting_for_ns`` and ``sleeps``; its kick is how the guest wakes the host. Region ``SIGNAL + p`` is a signal pair,
shared before or after the first timer of priority ``p`` is armed; its call is how the host wakes the guest.
LinkState says that the answer to QUERY is another one: a guest that hears of it keeps its timers itself after RELEASE,
and has the host keep them again by KEEP. ``docs/wire/timer.md`` has the bytes.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = [
    "ABI_TYPE",
    "KEEP",
    "LEAD_MAX_US",
    "LEAD_US",
    "PAGE",
    "PAGE_SIGNAL_OFFSET",
    "PRIORITIES",
    "QUERY",
    "QUERY_ANSWER",
    "RELEASE",
    "SIGNAL",
    "SLOTS_MAX",
    "SLOTS_MIN",
    "VERSION",
]

ABI_TYPE: Final = "timer"
VERSION: Final = 1

QUERY: Final = 0
"""Function: takes nothing, answers QUERY_ANSWER."""
QUERY_ANSWER: Final = struct.Struct("<IIQ")
"""Whether the host keeps timers (0 or 1), most slots of a page, longest lead in nanoseconds."""
KEEP: Final = 1
"""Function: the host keeps the timers of the page that was shared, from now on; takes and answers nothing."""
RELEASE: Final = 2
"""Function: when it has answered nothing, the host touches the page and its signals no more; takes nothing."""

PAGE: Final = 0
"""Region of the timer page."""
SIGNAL: Final = 1
"""Region of the signal of priority 0; that of priority ``p`` is ``SIGNAL + p``."""
PAGE_SIGNAL_OFFSET: Final = 0x80
"""Where the doorbell words lie in the region of the page."""

PRIORITIES: Final = 8
SLOTS_MIN: Final = 64
SLOTS_MAX: Final = 131072
LEAD_MAX_US: Final = 1000
LEAD_US: Final = 250
"""The longest lead that guests are granted if nobody says otherwise. They ask for what their wake-ups take and no more;
where a halted core takes long to wake, as in many virtual machines, one in a hundred takes longer than 200 µs for the
two wake-ups, the host's and the guest's."""

"""What both halves of a card know: ABI types, functions, regions. Little-endian throughout.

A driver opens the device, asks INFO, shows two fastcall slots, one for each half of it, and the line by which the card
interrupts; from then on the card hangs on its switch. Everything else is registers, which are functions as well: READ
and WRITE, and ACKNOWLEDGE and END of the emulated interrupt controller that the line leads to. The halves that speak
are native (``rust/core/src/nic``, ``rust/core/src/guest/card``); ``docs/wire/cards.md`` has the registers.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from vbnet._native import FASTCALL_SIGNAL_OFFSET, FASTCALL_SLOT_BYTES

__all__ = [
    "E1000_TYPE",
    "INFO",
    "LINE_BYTES",
    "LINE_SIGNAL_OFFSET",
    "RTL8139_TYPE",
    "SLOT_BYTES",
    "SLOT_SIGNAL_OFFSET",
    "VERSION",
    "Function",
    "Region",
]

E1000_TYPE: Final = "e1000"
RTL8139_TYPE: Final = "rtl8139"
VERSION: Final = 1

SLOT_BYTES: Final = FASTCALL_SLOT_BYTES
SLOT_SIGNAL_OFFSET: Final = FASTCALL_SIGNAL_OFFSET
LINE_BYTES: Final = 128
LINE_SIGNAL_OFFSET: Final = 0

INFO: Final = struct.Struct("<III")
"""Largest packet in bytes, interrupts a second that the driver should allow (0: any), µs awake for a register."""


class Function(enum.IntEnum):
    """Functions a driver calls; READ to END mostly by its slots."""

    INFO = 0
    READ = 1
    WRITE = 2
    ACKNOWLEDGE = 15
    END = 16


class Region(enum.IntEnum):
    """Regions a driver shares, each with a signal."""

    TRANSMIT_SLOT = 0
    RECEIVE_SLOT = 1
    LINE = 2

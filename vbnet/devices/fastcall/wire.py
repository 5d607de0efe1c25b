"""What both halves of fastcall know. The slots themselves are described in ``docs/wire/fastcall.md``.

``fastcall`` version 1: region n is slot n, SLOT_BYTES long, with its signal at SIGNAL_OFFSET. INFO gives how many slots
a guest may show and how long, in µs, it is worth spinning for an answer.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

__all__ = [
    "ABI_TYPE",
    "DATA_BYTES",
    "INFO",
    "SIGNAL_OFFSET",
    "SLOT_ALIGNMENT",
    "SLOT_BYTES",
    "UNSERVED",
    "VERSION",
    "Function",
]

ABI_TYPE: Final = "fastcall"
VERSION: Final = 1

SLOT_BYTES: Final = 0x600
SLOT_ALIGNMENT: Final = 128
SIGNAL_OFFSET: Final = 0x380
DATA_BYTES: Final = 368
UNSERVED: Final = 0x8000_0000
"""Status of a call that nobody here answers, to be made the ordinary way. 0 is done, all others are errno numbers."""

INFO: Final = struct.Struct("<II")
"""Slots a guest may show, µs to spin."""


class Function(enum.IntEnum):
    """Functions of ``fastcall``."""

    INFO = 0

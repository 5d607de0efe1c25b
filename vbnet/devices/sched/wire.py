"""What both halves of sched know: ABI type, function, region, classes and flags. Bytes: ``docs/wire/sched.md``."""

from __future__ import annotations

import enum
from typing import Final

__all__ = [
    "ABILITIES",
    "ABI_TYPE",
    "HEADER_BYTES",
    "PAGE_REGION",
    "RECORDS_MAX",
    "RECORD_BYTES",
    "SIGNAL_OFFSET",
    "VERSION",
    "Class",
    "Flag",
    "Function",
]

ABI_TYPE: Final = "sched"
VERSION: Final = 1

PAGE_REGION: Final = 0
HEADER_BYTES: Final = 0x300
RECORD_BYTES: Final = 0x100
RECORDS_MAX: Final = 256
SIGNAL_OFFSET: Final = 0x80

ABILITIES: Final = ("realtime", "deadline", "nice", "slice", "weight")
"""What a host may be able to do; bit *n* of ABILITIES's answer is the *n*-th."""


class Function(enum.IntEnum):
    """Functions of ``sched``."""

    ABILITIES = 0


class Class(enum.IntEnum):
    """What a thread asks to be, from the most patient to the most urgent."""

    IDLE = 0
    BATCH = 1
    NORMAL = 2
    INTERACTIVE = 3
    REALTIME = 4
    DEADLINE = 5


class Flag(enum.IntFlag):
    """How it is meant."""

    FIFO = 1
    IDLE_POLLS = 2

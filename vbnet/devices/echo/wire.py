"""What both halves of echo know: ABI types, function numbers, regions. Little-endian throughout.

``echo`` version 1: ECHO gives the data back; SHOUT gives it back in upper case (ASCII only); COUNT gives the number of
calls this opener made so far, u64, itself not counted; FAIL is refused as busy, for testing refusals.

``echo-cell`` version 1: share region 0, the cell, of up to 4096 bytes, with or without signal. REVERSE turns the
bytes of the cell around in place and gives their number, u32; with a signal the device also rings it. STORE writes
its data to the start of the cell.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

__all__ = [
    "CELL_BYTES",
    "CELL_REGION",
    "CELL_TYPE",
    "COUNT",
    "ECHO_TYPE",
    "LENGTH",
    "VERSION",
    "CellFunction",
    "EchoFunction",
]

ECHO_TYPE: Final = "echo"
CELL_TYPE: Final = "echo-cell"
VERSION: Final = 1

CELL_REGION: Final = 0
CELL_BYTES: Final = 4096

COUNT: Final = struct.Struct("<Q")
LENGTH: Final = struct.Struct("<I")


class EchoFunction(enum.IntEnum):
    """Functions of ``echo``."""

    ECHO = 0
    SHOUT = 1
    COUNT = 2
    FAIL = 3


class CellFunction(enum.IntEnum):
    """Functions of ``echo-cell``."""

    REVERSE = 0
    STORE = 1

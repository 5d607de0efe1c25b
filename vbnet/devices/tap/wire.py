"""What both halves of the tap device know: one function, its bytes, the range of an MTU.

``JOIN`` (1)   argument: ticket (u64, little-endian) under which the guest gave the TAP's descriptor; answer: MTU
(u32). ``LEAVE`` (2)  no argument; the port is removed. Closing the device does the same.
"""

from __future__ import annotations

import struct
from typing import Final

from vbnet.errors import UsageError

ABI_TYPE: Final = "kernel-ethernet"
VERSION: Final = 1

JOIN: Final = 1
LEAVE: Final = 2

MTU_MIN: Final = 68
MTU_MAX: Final = 65535

_TICKET = struct.Struct("<Q")
_MTU = struct.Struct("<I")


def encode_ticket(ticket: int) -> bytes:
    """Return the argument of ``JOIN``."""
    return _TICKET.pack(ticket)


def decode_ticket(data: bytes) -> int:
    """Return the ticket in the argument of ``JOIN``.

    Raises:
        UsageError: not exactly 8 bytes (the guest's mistake).
    """
    if len(data) != _TICKET.size:
        raise UsageError(f"JOIN takes {_TICKET.size} bytes, got {len(data)}", got=len(data), limit=_TICKET.size)
    ticket: int = _TICKET.unpack(data)[0]
    return ticket


def encode_mtu(mtu: int) -> bytes:
    """Return the answer to ``JOIN``."""
    return _MTU.pack(mtu)


def decode_mtu(data: bytes) -> int:
    """Return the MTU in the answer to ``JOIN``."""
    mtu: int = _MTU.unpack(data)[0]
    return mtu

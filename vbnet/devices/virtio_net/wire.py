"""What both halves of virtio-net know beside what all virtio devices do. Little-endian throughout.

Queue 0 is for frames to the guest, queue 1 for frames from it, and so on in pairs; behind the last pair, where there
are several, the control queue. ``docs/wire/virtio.md`` has the bytes. Source: virtio 1.2 §5.1.
"""

from __future__ import annotations

import struct
from typing import Final

from vbnet.devices.virtio.wire import Function

__all__ = ["ABI_TYPE", "INFO", "PAIRS_MAX", "RECEIVE", "TRANSMIT", "VERSION", "Function", "mtu_read"]

ABI_TYPE: Final = "virtio:1"
VERSION: Final = 1
PAIRS_MAX: Final = 8
RECEIVE: Final = 0
TRANSMIT: Final = 1
INFO: Final = struct.Struct("<IIII")
"""What INFO answers: number of the kind, queues, transport, bytes of the configuration."""

_MTU_AT: Final = 10
_CONFIG_AT: Final = {1: 0x100, 2: 0x3000}
"""Where a trapping transport has the configuration among its registers."""


def mtu_read(transport: int) -> tuple[Function, bytes]:
    """The call that answers a card's MTU, in two bytes or more: its function and data.

    Args:
        transport: as INFO says it.
    """
    if transport == 0:
        return Function.GET_CONFIG, struct.pack("<II", _MTU_AT, 2)
    return Function.TRAP_READ, struct.pack("<II", _CONFIG_AT[transport] + _MTU_AT, 2)

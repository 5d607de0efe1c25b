"""What both halves of the interrupt controller know: regions, functions and their data. Little-endian throughout.

Regions: the level of priority ``p`` of vCPU ``v`` is region ``8 v + p``; the outbox is region ``OUTBOX``. Each is one
level structure (``docs/wire/intc.md``) and carries its signal at ``LEVEL_SIGNAL_OFFSET``. The host rings a level's call
doorbell, the guest the outbox's kick doorbell.

A *line* is a signal of the host by its number; a guest learns the numbers of its own by BIND and CREATE. A *vector* is
the number under which the guest sees it pending, 0 to 4095, chosen by the guest. Names travel as UTF-8 behind the
fixed part.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

__all__ = [
    "ABI_TYPE",
    "BIND",
    "CONNECT",
    "CREATE",
    "DRIVE",
    "EVENTS",
    "EVENTS_NAME",
    "GRANT",
    "INTERRUPT",
    "LEVEL_BYTES",
    "LEVEL_SIGNAL_OFFSET",
    "LINE",
    "LINE_VALUE",
    "MODE",
    "OUTBOX",
    "PLACE",
    "PRIORITIES",
    "ROUTE",
    "SHARED",
    "TRAPPED",
    "VCPU",
    "VCPUS",
    "VCPUS_MAX",
    "VECTORS",
    "VERSION",
    "Function",
    "level_region",
]

ABI_TYPE: Final = "interrupt-controller"
VERSION: Final = 1

PRIORITIES: Final = 8
VECTORS: Final = 4096
VCPUS_MAX: Final = 64
LEVEL_BYTES: Final = 0x800
LEVEL_SIGNAL_OFFSET: Final = 0x180
OUTBOX: Final = 0x1000

VCPUS: Final = struct.Struct("<I")
VCPU: Final = struct.Struct("<I")
MODE: Final = struct.Struct("<I")
SHARED: Final = 0
TRAPPED: Final = 1
INTERRUPT: Final = struct.Struct("<II")
LINE: Final = struct.Struct("<Q")
PLACE: Final = struct.Struct("<I")
BIND: Final = struct.Struct("<QII")
CREATE: Final = struct.Struct("<III")
ROUTE: Final = struct.Struct("<QII")
EVENTS: Final = struct.Struct("<II")
EVENTS_NAME: Final = "bus-events"
"""The name of the signal that EVENTS makes."""
LINE_VALUE: Final = struct.Struct("<QI")
GRANT: Final = struct.Struct("<QI")
CONNECT: Final = struct.Struct("<I")
DRIVE: Final = struct.Struct("<QQ")


class Function(enum.IntEnum):
    """Functions of the interrupt controller; data and answer in brackets."""

    START = 0
    """[u32 vCPUs → u32 mode] Take the controller into use; the eight levels of each vCPU are shared already.

    Mode 0: signals are bits of the levels. Mode 1: the levels stay empty; priority 0's call doorbell is the vCPU's
    interrupt line, and signals come by ACKNOWLEDGE.
    """
    BIND = 1
    """[u64 signal handle, u32 vCPU, u32 vector → u64 line] Deliver a signal of one of my devices here."""
    UNBIND = 2
    """[u64 signal handle] Deliver it by its own eventfd again."""
    CREATE = 3
    """[u32 priority, u32 vCPU, u32 vector, name → u64 line] Make a signal that others may be granted."""
    DESTROY = 4
    """[u64 line] Remove a signal that CREATE made."""
    ROUTE = 5
    """[u64 line, u32 vCPU, u32 vector] Deliver a line of mine here from now on."""
    PRIORITY = 6
    """[u64 line, u32 priority] Change the priority of a line of mine."""
    MASK = 7
    """[u64 line, u32 0 or 1] Have the host keep its raises back, or let them through, the kept ones as one."""
    RAISE = 8
    """[u64 line] Raise a line of mine, by message."""
    GRANT = 9
    """[u64 line, u32 0 or 1, guest] Let another guest raise a line of mine, or no more."""
    CONNECT = 10
    """[u32 place, GUEST/NAME → u64 line] Let a number of my outbox raise a line that I was granted."""
    DISCONNECT = 11
    """[u32 place] And no more."""
    EXPORT = 12
    """[u64 line → u64 ticket] Lead a line of mine to a new eventfd, which is lent to me under the ticket."""
    DRIVE = 13
    """[u64 line, u64 ticket → u64 source] Let the eventfd or socket I gave under the ticket raise a line of mine."""
    UNDRIVE = 14
    """[u64 line, u64 source] And no more."""
    ACKNOWLEDGE = 15
    """[u32 vCPU → u32 priority, u32 vector; or nothing] Mode 1: take the most urgent request into service."""
    END = 16
    """[u32 vCPU → u8 whether another is requested] Mode 1: the interrupt in service has been handled."""
    EVENTS = 17
    """[u32 vCPU, u32 vector → u64 line] Raise a signal of the highest priority for each event of the bus. Once."""


def level_region(vcpu: int, priority: int) -> int:
    """The region of one level."""
    return vcpu * PRIORITIES + priority

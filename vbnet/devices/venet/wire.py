"""What both halves of venet know: the ABI type, functions, regions, capability groups. Little-endian throughout.

A driver opens the device, asks MACQUERY and MTUQUERY, negotiates with NEGCAP, shares regions RX and TX (each one ring,
its signal 0x180 bytes into it), and says LINKUP; from then on capabilities are locked. ``docs/wire/venet.md`` has the
bytes. Source: venet version 1 of vbus; MTUQUERY is ours, as the original learned the MTU out of band.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

__all__ = [
    "ABI_TYPE",
    "CAPABILITIES",
    "MAC_BYTES",
    "MTU",
    "MTU_MAX",
    "MTU_MIN",
    "NEGCAP",
    "NEGCAP_ANSWER",
    "RING_SIGNAL_OFFSET",
    "VERSION",
    "CapabilityGroup",
    "Function",
    "Region",
]

ABI_TYPE: Final = "virtual-ethernet"
VERSION: Final = 1

MTU_MIN: Final = 68
MTU_MAX: Final = 65535
MAC_BYTES: Final = 6
RING_SIGNAL_OFFSET: Final = 0x180
"""Where a ring's signal pair lies in the region of the ring."""

MTU: Final = struct.Struct("<I")
NEGCAP: Final = struct.Struct("<II")
"""Capability group, bits wanted."""
NEGCAP_ANSWER: Final = struct.Struct("<I")
"""Bits granted."""


class Function(enum.IntEnum):
    """Functions a driver calls."""

    LINKUP = 0
    LINKDOWN = 1
    MACQUERY = 2
    NEGCAP = 3
    FLUSHRX = 4
    PMTDQUERY = 5
    EVQQUERY = 6
    L4ROQUERY = 7
    MTUQUERY = 8


class Region(enum.IntEnum):
    """Regions a driver shares, named from its own side."""

    RX = 0
    TX = 1


class CapabilityGroup(enum.IntEnum):
    """Groups of capability bits; an unknown group answers 0."""

    SG = 0
    EVENTQ = 1
    L4RO = 2


CAPABILITIES: Final[dict[CapabilityGroup, int]] = dict.fromkeys(CapabilityGroup, 0)
"""Bits a host supports, by group: frames travel whole, without offloads."""

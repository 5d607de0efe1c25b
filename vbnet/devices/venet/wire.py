"""What both halves of venet know: the ABI type, functions, regions, capability groups. Little-endian throughout.

A driver opens the device, asks MACQUERY and MTUQUERY, negotiates with NEGCAP, shares regions RX and TX (each one ring,
its signal 0x180 bytes into it), POOL if it was granted PMTD and EVENTS if LINKSTATE, and says LINKUP; from then on
capabilities are locked. ``docs/wire/venet.md`` has the bytes. Source: venet version 1 of vbus; MTUQUERY is ours, as the
original learned the MTU out of band, and so are CSUM and USO, which it had without asking or not at all.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from vbnet.net.offload import REQUEST, REQUEST_LAYOUT, RequestFlag, RequestKind

__all__ = [
    "ABI_TYPE",
    "CAPABILITIES",
    "EVENTS_BYTES",
    "LINK",
    "MAC_BYTES",
    "MTU",
    "MTU_MAX",
    "MTU_MIN",
    "NEGCAP",
    "NEGCAP_ANSWER",
    "OFFLOADS",
    "REGION_ID",
    "REQUEST",
    "REQUEST_BYTES",
    "REQUEST_LAYOUT",
    "RINGS",
    "RING_SIGNAL_OFFSET",
    "VERSION",
    "Capability",
    "CapabilityGroup",
    "EventCapability",
    "Function",
    "Region",
    "RequestFlag",
    "RequestKind",
    "SlotFlag",
    "granted",
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
    POOL = 100
    EVENTS = 102


RINGS: Final = (Region.RX, Region.TX)
"""The regions that every driver shares."""


class CapabilityGroup(enum.IntEnum):
    """Groups of capability bits; an unknown group answers 0."""

    SG = 0
    EVENTQ = 1
    L4RO = 2


class Capability(enum.IntFlag):
    """Bits of the groups SG and L4RO."""

    SG = 1 << 0
    TSO4 = 1 << 1
    TSO6 = 1 << 2
    ECN = 1 << 3
    UFO = 1 << 4
    PMTD = 1 << 5
    CSUM = 1 << 6
    USO = 1 << 7


class EventCapability(enum.IntFlag):
    """Bits of the group EVENTQ."""

    LINKSTATE = 1 << 0
    TXC = 1 << 1


_BOTH: Final = Capability.SG | Capability.TSO4 | Capability.TSO6 | Capability.ECN | Capability.CSUM | Capability.USO
CAPABILITIES: Final[dict[CapabilityGroup, int]] = {
    CapabilityGroup.SG: _BOTH | Capability.PMTD,
    CapabilityGroup.EVENTQ: EventCapability.LINKSTATE,
    CapabilityGroup.L4RO: _BOTH,
}
"""Bits a host supports, by group."""

OFFLOADS: Final[dict[Capability, str]] = {
    Capability.CSUM: "checksum",
    Capability.TSO4: "tso4",
    Capability.TSO6: "tso6",
    Capability.ECN: "ecn",
    Capability.USO: "uso",
}
"""What ports call them."""


def granted(group: int, wanted: int) -> int:
    """Bits a host grants of those ``wanted``: what it supports, without what lacks its foundation.

    Segments need checksums, ECN needs segments of TCP, a pool needs frames in several pieces.
    """
    supported = {int(known): int(bits) for known, bits in CAPABILITIES.items()}
    if group == CapabilityGroup.EVENTQ:
        return wanted & supported[group]
    bits = Capability(wanted & supported.get(group, 0))
    if not bits & Capability.CSUM:
        bits &= ~(Capability.TSO4 | Capability.TSO6 | Capability.USO)
    if not bits & (Capability.TSO4 | Capability.TSO6):
        bits &= ~Capability.ECN
    if not bits & Capability.SG:
        bits &= ~Capability.PMTD
    return int(bits)


class SlotFlag(enum.IntFlag):
    """Flags of a slot: MORE needs SG, REQUEST CSUM, both of the group of its direction; POOLED PMTD."""

    MORE = 1 << 0
    REQUEST = 1 << 1
    POOLED = 1 << 2


REGION_ID: Final = struct.Struct("<I")
"""Answer of PMTDQUERY and EVQQUERY: the region to share."""
EVENTS_BYTES: Final = 0x400
"""Of the region of events: its words, and its signal as far in as that of a ring."""
LINK: Final = struct.Struct("<I")
"""The first word of that region: bit 0 is the carrier, the others count how often it was told, and wrap."""
REQUEST_BYTES: Final = 16
"""A request (``vbnet.net.offload``) in front of a frame; what is behind its fields is 0."""

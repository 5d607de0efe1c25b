"""What a sender leaves undone of a frame, as it is written beside the frame: the same for every model of network card.

A request is ``virtio_net_hdr`` without its last field: where the checksum goes, and how long a segment may be.

    CUT = REQUEST.pack(RequestFlag.NEEDS_CSUM, RequestKind.TCP4, header_bytes, segment_bytes, 34, 16)
    nic.send_pieces([headers, payload], CUT)

Source: virtio 1.2 §5.1.6. The names of ``OFFLOADS`` are what ports, ``nic.grant`` and drivers call them.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Collection
from typing import Final

from vbnet.errors import UsageError

__all__ = ["OFFLOADS", "REQUEST", "REQUEST_LAYOUT", "RequestFlag", "RequestKind", "offloads_named"]

OFFLOADS: Final = ("checksum", "tso4", "tso6", "ecn", "uso")
"""Checksums; segments of TCP over IPv4 and IPv6, also with CWR; datagrams of UDP sent together."""
REQUEST: Final = struct.Struct("<BBHHHH")
"""Flags, kind, bytes of headers, bytes of a segment, where the checksum begins, and where it belongs from there."""
REQUEST_LAYOUT: Final[dict[str, tuple[int, int]]] = {
    "flags": (0, 1),
    "kind": (1, 1),
    "header_bytes": (2, 2),
    "segment_bytes": (4, 2),
    "checksum_start": (6, 2),
    "checksum_offset": (8, 2),
}
"""Its fields: offset and size, bytes."""


class RequestFlag(enum.IntFlag):
    """What a request asks for beside segments."""

    NEEDS_CSUM = 1 << 0
    DATA_VALID = 1 << 1


class RequestKind(enum.IntEnum):
    """What a frame is to be cut into; ECN is added to the first two when CWR is set."""

    NONE = 0
    TCP4 = 1
    TCP6 = 4
    UDP = 5
    ECN = 0x80


def offloads_named(wanted: bool | Collection[str]) -> tuple[str, ...]:
    """Those of ``OFFLOADS`` that a driver is to ask for: all, none, or these."""
    if isinstance(wanted, bool):
        return OFFLOADS if wanted else ()
    unknown = sorted(set(wanted) - set(OFFLOADS))
    if unknown:
        raise UsageError(f"there is no offload {unknown[0]!r}; there are {', '.join(OFFLOADS)}")
    return tuple(wanted)

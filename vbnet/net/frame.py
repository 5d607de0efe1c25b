"""Ethernet frames as bytes: put together and taken apart."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from vbnet.errors import UsageError
from vbnet.net.mac import MacAddress

__all__ = ["ETHERTYPE_ARP", "ETHERTYPE_EXPERIMENTAL", "ETHERTYPE_IPV4", "HEADER_BYTES", "Frame", "build", "parse"]

HEADER_BYTES: Final = 14
ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_EXPERIMENTAL: Final = 0x88B5
"""Local experimental use (IEEE 802): what tests and tools of this project send."""

_HEADER: Final = struct.Struct("!6s6sH")


class Frame(NamedTuple):
    """A frame taken apart; ``payload`` as it was sent, padding included."""

    destination: MacAddress
    source: MacAddress
    ethertype: int
    payload: bytes


def build(
    destination: MacAddress, source: MacAddress, payload: bytes, *, ethertype: int = ETHERTYPE_EXPERIMENTAL
) -> bytes:
    """Put a frame together, without checksum and without padding.

    Raises:
        UsageError: the Ethertype is not 0x0600..0xffff.
    """
    if not 0x0600 <= ethertype <= 0xFFFF:  # noqa: PLR2004 - smaller numbers are lengths, not types
        raise UsageError(f"an Ethertype is 0x0600..0xffff; got {ethertype:#x}", got=ethertype)
    return _HEADER.pack(bytes(destination), bytes(source), ethertype) + payload


def parse(frame: bytes | memoryview) -> Frame:
    """Take a frame apart.

    Raises:
        UsageError: it is shorter than its header.
    """
    if len(frame) < HEADER_BYTES:
        raise UsageError(
            f"a frame has at least {HEADER_BYTES} bytes; got {len(frame)}", got=len(frame), limit=HEADER_BYTES
        )
    destination, source, ethertype = _HEADER.unpack_from(frame)
    return Frame(MacAddress(destination), MacAddress(source), ethertype, bytes(frame[HEADER_BYTES:]))

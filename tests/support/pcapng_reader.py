"""Reads pcapng files: a parser of its own, from the specification, none of vbnet's code.

It is strict: every block must be whole, padded, and closed by the length it began with. Source:
draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

SECTION, INTERFACE, STATISTICS, PACKET = 0x0A0D0D0A, 1, 5, 6
INBOUND, OUTBOUND = 1, 2


@dataclass(frozen=True)
class Packet:
    """One packet: its port's name, nanoseconds since 1970, ``INBOUND`` or ``OUTBOUND``, comment, bytes, true length."""

    port: str
    time_ns: int
    direction: int
    comment: str
    frame: bytes
    length: int


@dataclass
class Capture:
    """What is in a file: interfaces by name with their options, packets, and statistics by interface name."""

    interfaces: dict[str, dict[int, bytes]] = field(default_factory=dict)
    packets: list[Packet] = field(default_factory=list)
    statistics: dict[str, dict[int, int]] = field(default_factory=dict)


def read(path: Path) -> Capture:
    """Read a whole file.

    Raises:
        AssertionError: it breaks the format, or ends within a block.
    """
    return parse(path.read_bytes())


def parse(content: bytes) -> Capture:
    """Read the bytes of a whole file; raises AssertionError as ``read`` does."""
    found = Capture()
    at = 0
    while at < len(content):
        kind, length = struct.unpack_from("<II", content, at)
        assert length % 4 == 0
        assert length >= 12
        assert at + length <= len(content), "the file ends within a block"
        assert (length,) == struct.unpack_from("<I", content, at + length - 4)
        _block(found, kind, content[at + 8 : at + length - 4], is_first=at == 0)
        at += length
    return found


def _block(found: Capture, kind: int, body: bytes, *, is_first: bool) -> None:
    assert (kind == SECTION) == is_first
    names = list(found.interfaces)
    if kind == SECTION:
        assert struct.unpack_from("<IHH", body) == (0x1A2B3C4D, 1, 0)
        _options(body[16:])
    elif kind == INTERFACE:
        link, _, _snap = struct.unpack_from("<HHI", body)
        assert link == 1, "not Ethernet"
        options = _options(body[8:])
        assert options[9] == b"\x09", "not in nanoseconds"
        found.interfaces[options[2].decode()] = options
    elif kind == PACKET:
        interface, high, low, kept, length = struct.unpack_from("<IIIII", body)
        padded = kept + -kept % 4
        options = _options(body[20 + padded :])
        assert kept <= length
        found.packets.append(
            Packet(
                names[interface],
                high << 32 | low,
                int.from_bytes(options[2], "little") & 3,
                options.get(1, b"").decode(),
                body[20 : 20 + kept],
                length,
            )
        )
    else:
        assert kind == STATISTICS
        (interface,) = struct.unpack_from("<I", body)
        options = _options(body[12:])
        found.statistics[names[interface]] = {code: int.from_bytes(value, "little") for code, value in options.items()}


def _options(data: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    at = 0
    while True:
        code, length = struct.unpack_from("<HH", data, at)
        if code == 0:
            assert length == 0
            assert at + 4 == len(data)
            return options
        options[code] = data[at + 4 : at + 4 + length]
        at += 4 + length + -length % 4

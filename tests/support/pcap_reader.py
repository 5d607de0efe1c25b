"""Reads what tcpdump wrote, and checks every packet in it: a parser of its own, from the RFCs, none of vbnet's code.

Sources: pcap file format (draft-ietf-opsawg-pcap), RFC 791, 792, 793, 768, 826, 1071.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

ETHERTYPE_IPV4, ETHERTYPE_ARP = 0x0800, 0x0806
ICMP, TCP, UDP = 1, 6, 17


@dataclass(frozen=True)
class Packet:
    """One intact IPv4 packet: ``payload`` is what the sender's program handed to its kernel (ICMP: the data part)."""

    protocol: int
    source: str
    destination: str
    source_port: int
    destination_port: int
    payload: bytes
    frame_bytes: int
    sequence: int = 0


def read_frames(path: Path) -> list[bytes]:
    """Return the frames of a pcap file, none of them cut."""
    content = path.read_bytes()
    magic, _major, _minor, _zone, _figures, _snap, link = struct.unpack_from("<IHHiIII", content)
    assert magic in {0xA1B2C3D4, 0xA1B23C4D}
    assert link == 1, "not Ethernet"
    frames = []
    at = 24
    while at < len(content):
        _seconds, _fraction, captured, length = struct.unpack_from("<IIII", content, at)
        assert captured == length, "tcpdump cut a frame"
        frames.append(content[at + 16 : at + 16 + captured])
        assert len(frames[-1]) == captured, "the file ends within a frame"
        at += 16 + captured
    return frames


def internet_sum(data: bytes) -> int:
    """Return the Internet checksum over ``data``: 0 when a checksum inside it is right."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def check_frame(frame: bytes) -> Packet | None:
    """Check every length and checksum of a frame; return its IPv4 packet, or None for another EtherType.

    Raises:
        AssertionError: something in it is not intact.
    """
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    if ethertype == ETHERTYPE_ARP:
        assert struct.unpack_from("!HHBB", frame, 14) == (1, ETHERTYPE_IPV4, 6, 4)
        assert len(frame) >= 14 + 28
    return _check_ipv4(frame) if ethertype == ETHERTYPE_IPV4 else None


def _check_ipv4(frame: bytes) -> Packet:
    header_bytes = (frame[14] & 0x0F) * 4
    header = frame[14 : 14 + header_bytes]
    assert header[0] >> 4 == 4
    assert header_bytes >= 20
    assert internet_sum(header) == 0, "IPv4 header checksum"
    (total_bytes,) = struct.unpack_from("!H", header, 2)
    (fragment,) = struct.unpack_from("!H", header, 6)
    assert fragment & 0x3FFF == 0, "a fragment"
    assert total_bytes <= len(frame) - 14, "shorter than its IPv4 length"
    assert len(frame) - 14 == total_bytes or len(frame) == 60, "longer than its IPv4 length, and no padding"
    body = frame[14 + header_bytes : 14 + total_bytes]
    protocol = header[9]
    pseudo = header[12:20] + struct.pack("!BBH", 0, protocol, len(body))
    source, destination = (".".join(map(str, header[at : at + 4])) for at in (12, 16))
    source_port = destination_port = sequence = 0
    if protocol == ICMP:
        assert internet_sum(body) == 0, "ICMP checksum"
        offset = 8
    elif protocol == UDP:
        source_port, destination_port, udp_bytes, checksum = struct.unpack_from("!HHHH", body)
        assert udp_bytes == len(body), "UDP length"
        assert checksum != 0, "no UDP checksum"
        assert internet_sum(pseudo + body) == 0, "UDP checksum"
        offset = 8
    else:
        assert protocol == TCP
        assert internet_sum(pseudo + body) == 0, "TCP checksum"
        source_port, destination_port, sequence = struct.unpack_from("!HHI", body)
        offset = (body[12] >> 4) * 4
        assert 20 <= offset <= len(body), "TCP header length"
    return Packet(protocol, source, destination, source_port, destination_port, body[offset:], len(frame), sequence)


def stream(segments: list[Packet], source_port: int) -> bytes:
    """Put one connection's bytes from ``source_port`` together; what was sent twice must be the same twice."""
    sent = [segment for segment in segments if segment.source_port == source_port]
    first = sent[0].sequence + 1  # the SYN took one
    assert {(segment.destination, segment.destination_port) for segment in sent} == {
        (sent[0].destination, sent[0].destination_port)
    }
    whole = bytearray()
    for segment in sorted(sent, key=lambda segment: (segment.sequence - first + 1) % 2**32):
        at = (segment.sequence - first) % 2**32
        if not segment.payload:
            continue
        assert at <= len(whole), "bytes are missing"
        again = whole[at : at + len(segment.payload)]
        assert again == segment.payload[: len(again)], "sent twice, and different"
        whole += segment.payload[len(again) :]
    return bytes(whole)

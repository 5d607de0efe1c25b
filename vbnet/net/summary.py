"""One line about a frame, for people: who speaks to whom, and what about.

Frames come from guests, so nothing in them is believed: what does not fit its header is said to be cut short.
Sources: RFC 791, 792, 793, 768, 826, 8200, 4443; IEEE 802.1Q.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from vbnet.net.frame import ETHERTYPE_ARP, ETHERTYPE_IPV4, HEADER_BYTES
from vbnet.net.mac import MacAddress

__all__ = ["summarise"]

_ETHERTYPE_VLAN: Final = 0x8100
_ETHERTYPE_IPV6: Final = 0x86DD
_HOP_BY_HOP, _ICMP, _TCP, _UDP, _ICMP6 = 0, 1, 6, 17, 58
_TCP_FLAGS: Final = ((0x02, "S"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x20, "U"), (0x10, "."))
_ICMP_TYPES: Final = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}
_ICMP6_TYPES: Final = {
    1: "unreachable",
    2: "packet too big",
    3: "time exceeded",
    128: "echo request",
    129: "echo reply",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
    143: "multicast listener report",
}
_ECHOES: Final = {0, 8, 128, 129}


def summarise(frame: bytes, length_bytes: int) -> str:
    """Say what a frame is about.

    Args:
        frame: its bytes, as many as were kept.
        length_bytes: how many it had.
    """
    if len(frame) < HEADER_BYTES:
        return f"cut short, {length_bytes} bytes"
    destination, source, ethertype = struct.unpack_from("!6s6sH", frame)
    body = frame[HEADER_BYTES:]
    tag = ""
    if ethertype == _ETHERTYPE_VLAN and len(body) >= 4:  # noqa: PLR2004 - tag and type
        vlan, ethertype = struct.unpack_from("!HH", body)
        tag, body = f"vlan {vlan & 0xFFF}, ", body[4:]
    try:
        about = _about(ethertype, body)
    except (struct.error, ValueError, IndexError):
        about = ""
    if not about:
        about = f"{MacAddress(source)} > {MacAddress(destination)}, type {ethertype:#06x}"
    return f"{tag}{about}, {length_bytes} bytes"


def _about(ethertype: int, body: bytes) -> str:
    if ethertype == ETHERTYPE_ARP:
        return _arp(body)
    if ethertype == ETHERTYPE_IPV4:
        first, total, fragment, protocol = body[0], *struct.unpack_from("!H2xHxB", body, 2)
        header_bytes = (first & 0x0F) * 4
        source, destination = (str(ipaddress.IPv4Address(body[at : at + 4])) for at in (12, 16))
        if fragment & 0x1FFF:
            return f"IP {source} > {destination}: fragment of protocol {protocol}"
        return _transport("IP", source, destination, protocol, body[header_bytes:total])
    if ethertype == _ETHERTYPE_IPV6:
        payload_bytes, protocol = struct.unpack_from("!HB", body, 4)
        source, destination = (str(ipaddress.IPv6Address(body[at : at + 16])) for at in (8, 24))
        payload = body[40 : 40 + payload_bytes]
        if protocol == _HOP_BY_HOP:
            protocol, payload = payload[0], payload[8 * (payload[1] + 1) :]
        return _transport("IP6", source, destination, protocol, payload)
    return ""


def _arp(body: bytes) -> str:
    operation, sender_mac, sender, target = struct.unpack_from("!6xH6s4s6x4s", body)
    sender_ip, target_ip = ipaddress.IPv4Address(sender), ipaddress.IPv4Address(target)
    if operation == 1:
        return f"ARP who has {target_ip}, tell {sender_ip}"
    return f"ARP {sender_ip} is at {MacAddress(sender_mac)}"


def _transport(family: str, source: str, destination: str, protocol: int, body: bytes) -> str:
    plain = f"{family} {source} > {destination}: "
    if protocol in {_TCP, _UDP}:
        source_port, destination_port = struct.unpack_from("!HH", body)
        ports = f"{family} {source}.{source_port} > {destination}.{destination_port}: "
        if protocol == _UDP:
            return f"{ports}UDP, length {struct.unpack_from('!H', body, 4)[0] - 8}"
        sequence, acknowledged, offset, flags, window = struct.unpack_from("!IIBBH", body, 4)
        marks = "".join(mark for bit, mark in _TCP_FLAGS if flags & bit) or "none"
        acknowledges = f", ack {acknowledged}" if flags & 0x10 else ""
        data_bytes = max(0, len(body) - (offset >> 4) * 4)
        return f"{ports}TCP [{marks}], seq {sequence}{acknowledges}, win {window}, length {data_bytes}"
    if protocol in {_ICMP, _ICMP6}:
        kind = body[0]
        name = (_ICMP_TYPES if protocol == _ICMP else _ICMP6_TYPES).get(kind, f"type {kind}")
        if kind in _ECHOES:
            identifier, sequence = struct.unpack_from("!HH", body, 4)
            name += f", id {identifier}, seq {sequence}"
        return f"{plain}ICMP{6 if protocol == _ICMP6 else ''} {name}"
    return f"{plain}protocol {protocol}"

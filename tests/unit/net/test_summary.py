"""What one line says about a frame; bytes are laid down here by hand, from the RFCs."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbnet.net.summary import summarise

TO, FROM = bytes.fromhex("020000000002"), bytes.fromhex("020000000001")
ONE, TWO = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
LONG_ONE, LONG_TWO = bytes.fromhex("fe80" + "00" * 13 + "01"), bytes.fromhex("fe80" + "00" * 13 + "02")


def ethernet(ethertype: int, body: bytes) -> bytes:
    """A frame between the two stations."""
    return TO + FROM + struct.pack("!H", ethertype) + body


def ipv4(protocol: int, body: bytes, fragment: int = 0) -> bytes:
    """An IPv4 packet in a frame."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, fragment, 64, protocol, 0)
    return ethernet(0x0800, head + ONE + TWO + body)


def ipv6(protocol: int, body: bytes) -> bytes:
    """An IPv6 packet in a frame."""
    return ethernet(0x86DD, struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + LONG_ONE + LONG_TWO + body)


HOP_BY_HOP = struct.pack("!BB6x", 58, 0)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (
            ethernet(0x0806, struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + FROM + ONE + bytes(6) + TWO),
            "ARP who has 10.0.0.2, tell 10.0.0.1",
        ),
        (
            ethernet(0x0806, struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + FROM + ONE + TO + TWO),
            "ARP 10.0.0.1 is at 02:00:00:00:00:01",
        ),
        (ipv4(1, struct.pack("!BBHHH", 8, 0, 0, 7, 3)), "IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 7, seq 3"),
        (ipv4(1, struct.pack("!BBHHH", 3, 1, 0, 0, 0)), "IP 10.0.0.1 > 10.0.0.2: ICMP unreachable"),
        (
            ipv4(17, struct.pack("!HHHH", 1024, 53, 13, 0) + b"query"),
            "IP 10.0.0.1.1024 > 10.0.0.2.53: UDP, length 5",
        ),
        (
            ipv4(6, struct.pack("!HHIIBBHHH", 80, 4000, 5, 9, 0x50, 0x12, 100, 0, 0) + b"data"),
            "IP 10.0.0.1.80 > 10.0.0.2.4000: TCP [S.], seq 5, ack 9, win 100, length 4",
        ),
        (ipv4(17, bytes(8), fragment=100), "IP 10.0.0.1 > 10.0.0.2: fragment of protocol 17"),
        (ipv4(89, bytes(8)), "IP 10.0.0.1 > 10.0.0.2: protocol 89"),
        (ipv6(58, struct.pack("!BBHHH", 129, 0, 0, 1, 2)), "IP6 fe80::1 > fe80::2: ICMP6 echo reply, id 1, seq 2"),
        (
            ipv6(0, HOP_BY_HOP + struct.pack("!BBH", 143, 0, 0)),
            "IP6 fe80::1 > fe80::2: ICMP6 multicast listener report",
        ),
        (ethernet(0x88B5, bytes(50)), "02:00:00:00:00:01 > 02:00:00:00:00:02, type 0x88b5"),
        (
            ethernet(0x8100, struct.pack("!HH", 0x6005, 0x88B5)),
            "vlan 5, 02:00:00:00:00:01 > 02:00:00:00:00:02, type 0x88b5",
        ),
        (ipv4(17, b"")[:30], "02:00:00:00:00:01 > 02:00:00:00:00:02, type 0x0800"),
        (TO, "cut short"),
    ],
)
def test_a_frame_is_told_in_one_line(frame: bytes, expected: str) -> None:
    """Who speaks to whom and what about; what is cut short is told by what is left."""
    assert f"{expected}, 1500 bytes" == summarise(frame, 1500)


@given(st.sampled_from([0x0800, 0x0806, 0x86DD, 0x8100]), st.binary(max_size=80))
def test_no_frame_breaks_it(ethertype: int, body: bytes) -> None:
    """Whatever a guest sends, there is a line, and only one."""
    line = summarise(ethernet(ethertype, body), len(body) + 14)

    assert line.endswith(" bytes")
    assert "\n" not in line

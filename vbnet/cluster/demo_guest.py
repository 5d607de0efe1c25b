"""The python guest of `vbnet demo`: asks the stack guests for their addresses, frame by frame, and says who answered.

It speaks Ethernet and nothing above: it builds ARP requests byte by byte, to show that a guest is free to.
"""

from __future__ import annotations

import statistics
import struct
import time
from typing import Any

OWN_IP = bytes([10, 10, 0, 50])
PEERS = [bytes([10, 10, 0, last]) for last in (10, 11, 12)]
ROUNDS = 200
ANSWER_TIMEOUT_S = 1.0
_ARP = struct.Struct("!6s6sHHHBBH6s4s6s4s")


def main(guest: Any) -> int:  # noqa: ANN401 -- the guest of the kind that the lab gives
    """Ask each peer once, then one of them again and again; print what came back and how fast."""
    nic = guest.nic("eth0")
    own_mac = nic.mac.octets
    for peer in PEERS:
        answer = ask(nic, own_mac, peer)
        if answer is None:
            print(f"nobody answers for {dotted(peer)}", flush=True)  # noqa: T201 -- this is the guest's log
            return 1
        print(f"who has {dotted(peer)}? {answer[0]}", flush=True)  # noqa: T201
    times_us = sorted(answer[1] / 1000 for _ in range(ROUNDS) if (answer := ask(nic, own_mac, PEERS[0])) is not None)
    if times_us:
        median, worst = statistics.median(times_us), times_us[-1]
        said = f"{len(times_us)} of {ROUNDS} answers, round trip {median:.0f} us median, {worst:.0f} us worst"
        print(said, flush=True)  # noqa: T201
    return 0


def ask(nic: Any, own_mac: bytes, peer: bytes) -> tuple[str, int] | None:  # noqa: ANN401 -- a Nic of the guest's kind
    """Send one ARP request and wait for its answer.

    Returns:
        The peer's MAC and the nanoseconds it took, or None without an answer in time.
    """
    request = _ARP.pack(b"\xff" * 6, own_mac, 0x0806, 1, 0x0800, 6, 4, 1, own_mac, OWN_IP, bytes(6), peer).ljust(
        60, b"\0"
    )
    started_ns = time.perf_counter_ns()
    nic.send([request])
    deadline_ns = started_ns + int(ANSWER_TIMEOUT_S * 1e9)
    while (left_ns := deadline_ns - time.perf_counter_ns()) > 0:
        for frame in nic.recv(32, timeout=left_ns / 1e9):
            fields = _ARP.unpack_from(frame) if len(frame) >= _ARP.size else ()
            if fields and (fields[2], fields[7], fields[9]) == (0x0806, 2, peer):
                return fields[8].hex(":"), time.perf_counter_ns() - started_ns
    return None


def dotted(ip: bytes) -> str:
    """Return four bytes as an IPv4 address."""
    return ".".join(str(byte) for byte in ip)

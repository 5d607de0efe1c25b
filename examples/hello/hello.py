"""Two guests and a protocol of their own: a question as a broadcast, an answer to the one who asked, and thanks.

Bob waits for the thanks before he leaves: what a guest sends last is lost if it ends before the host has taken it.
"""

import os

from vbnet import Guest
from vbnet.guestnode import GuestSession

ETHERTYPE = bytes.fromhex("88b5")
BROADCAST = b"\xff" * 6
FRAME_MIN_BYTES = 60
WAIT_S = 10.0
PATIENCE_S = 2.0


def frame(to: bytes, sender: bytes, text: str) -> bytes:
    """Return an Ethernet frame with a line of text, padded to what Ethernet demands."""
    return (to + sender + ETHERTYPE + text.encode()).ljust(FRAME_MIN_BYTES, b"\0")


def said(received: bytes) -> str | None:
    """Return the text of a frame of our protocol, or None for any other frame."""
    return received[14:].rstrip(b"\0").decode() if received[12:14] == ETHERTYPE else None


def ask(guest: Guest) -> int:
    """A plain function: ask everybody, wait for one answer."""
    nic = guest.nic("eth0")
    nic.send([frame(BROADCAST, nic.mac.octets, os.environ["QUESTION"])])
    for received in nic.recv(1, WAIT_S):
        print(f"alice got: {said(received)}", flush=True)
        nic.send([frame(received[6:12], nic.mac.octets, "thanks")])
        return 0
    return 1


async def answer(guest: GuestSession) -> int:
    """An asynchronous function: wait for a question, answer whoever asked."""
    nic = await guest.nic("eth0")
    for received in await nic.recv_async(1, WAIT_S):
        print(f"bob got: {said(received)}", flush=True)
        await nic.send_async([frame(received[6:12], nic.mac.octets, "bob is here")])
        await nic.recv_async(1, PATIENCE_S)
        return 0
    return 1

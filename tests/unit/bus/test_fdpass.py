"""Descriptors over the attach socket: bytes, ownership, bounds."""

import os
import socket
from typing import Any

import pytest

from vbnet.bus import fdpass, messages
from vbnet.bus.fdpass import FdChannel
from vbnet.bus.messages import MessageFault
from vbnet.testing.lab import eventually, one_turn
from vbnet.testing.processes import count_fds, count_own_fds
from vbnet.testing.wire import pack

TOKEN = bytes(range(32))


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (fdpass.Attach(TOKEN, has_ram=True), [1, TOKEN, True]),
        (fdpass.Give(3, 1 << 63), [2, 3, 1 << 63]),
        (fdpass.Export("web/tick"), [3, "web/tick"]),
        (fdpass.Drive("alarm", keep=True), [4, "alarm", True]),
        (fdpass.Attached(3), [64, 3]),
        (fdpass.FdRefused("EPERM", "no", {}), [65, "EPERM", "no", {}]),
        (fdpass.SignalFds(3, 77), [66, 3, 77]),
        (fdpass.Given(3, 9), [67, 3, 9]),
        (fdpass.Lent(3, (1 << 64) - 1), [68, 3, (1 << 64) - 1]),
        (fdpass.Exported((1 << 63) - 1), [69, (1 << 63) - 1]),
        (fdpass.Driven(7), [70, 7]),
        (fdpass.DriveEnded(7), [71, 7]),
    ],
)
def test_packets_are_as_documented(body: messages.Body, fields: list[Any]) -> None:
    """Each packet has exactly the bytes the table gives it."""
    assert pack([1, 42, fields]) == fdpass.encode_packet(42, body)


@pytest.mark.parametrize(
    "data",
    [b"\xc1", pack([1, 2]), pack([2, 1, [1, TOKEN, True]]), pack([1, 1, [1, TOKEN[:31], True]]),
     pack([1, 1, [1, TOKEN + b"x", True]]), pack([1, 1, [1, TOKEN, 1]]), pack([1, 1, [3]]), pack([1, 1, [64, 1]]),
     pack([1, 1, [3, ""]]), pack([1, 1, [3, "x" * 257]]), pack([1, 1, [3, b"x"]]), pack([1, 1, [3, "x", True]]),
     pack([1, 1, [4, "x"]]), pack([1, 1, [4, "x", 1]]), pack([1, 1, [4, 7, True]]), pack([1, 1, [71, 1]])],
)  # fmt: skip
def test_a_malformed_packet_is_a_fault(data: bytes) -> None:
    """Wrong versions, tags, types and lengths are refused."""
    with pytest.raises(MessageFault):
        fdpass.decode_attach(data)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


async def test_packets_that_find_no_room_wait_with_their_descriptors() -> None:
    """A slow reader gets every packet, in order, with live descriptors, though the sender closed its own."""
    ours, theirs = pair()
    channel = FdChannel(ours, on_packet=lambda *_: None, on_closed=lambda _: None)
    count = 2000

    for index in range(count):
        fd = os.eventfd(index)
        channel.send(index.to_bytes(4, "little"), [fd])
        os.close(fd)
    got = []
    for _ in range(count):
        await eventually(lambda: _can_read(theirs))
        data, fds, _ = fdpass.receive_packet(theirs)
        got.append((int.from_bytes(data, "little"), os.read(fds[0], 8)) if data != b"\0\0\0\0" else (0, None))
        os.close(fds[0])

    assert [(index, index.to_bytes(8, "little") if index else None) for index in range(count)] == got
    channel.close()
    theirs.close()


async def test_a_peer_that_does_not_read_is_cut_off() -> None:
    """Waiting packets are bounded; one more and the channel hangs up, closing what waited."""
    ours, theirs = pair()
    reasons: list[str] = []
    before = count_own_fds()
    channel = FdChannel(ours, on_packet=lambda *_: None, on_closed=reasons.append, max_waiting=10)

    fd = os.eventfd(0)
    while channel.is_open:
        channel.send(b"x", [fd])
    os.close(fd)

    assert reasons == ["it does not read what it is sent"]
    theirs.close()
    await eventually(lambda: count_fds(os.getpid()) == before - 2)


async def test_a_hang_up_is_told_once() -> None:
    """The end of the peer reaches the owner."""
    ours, theirs = pair()
    reasons: list[str] = []
    channel = FdChannel(ours, on_packet=lambda *_: None, on_closed=reasons.append)

    theirs.close()
    await eventually(lambda: reasons)
    await one_turn()

    assert reasons == ["it hung up"]
    assert not channel.is_open


async def test_surplus_descriptors_are_known_and_can_be_closed() -> None:
    """More descriptors than anybody expects arrive marked as cut off, and none stays open unseen."""
    ours, theirs = pair()
    packets: list[tuple[bytes, int, bool]] = []

    def take(data: bytes, fds: list[int], is_cut: bool) -> None:
        packets.append((data, len(fds), is_cut))
        for fd in fds:
            os.close(fd)

    channel = FdChannel(ours, on_packet=take, on_closed=lambda _: None)
    before = count_own_fds()

    socket.send_fds(theirs, [b"many"], [theirs.fileno()] * 200)
    await eventually(lambda: packets)

    assert packets == [(b"many", 4, True)]
    assert before == count_fds(os.getpid())
    channel.close()
    theirs.close()


def _can_read(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False

"""Sockets of the bus: what arrived is heard, however the connection ends."""

import asyncio
import threading
from pathlib import Path

import pytest
import zmq

from vbnet.bus.transport import ConnectionWatch, ZmqPort, new_socket

LIMIT_MS = 10_000
ROUNDS = 100
"""How often what two threads do may come in one order or the other."""


def say_and_hang_up(endpoint: str, kind: int, said: bytes, is_bound: threading.Event) -> None:
    """Wait for somebody, say one thing and be gone at once, as a host node does that was told to end."""
    context = zmq.Context()
    with context.socket(kind) as socket:
        socket.setsockopt(zmq.RCVTIMEO, LIMIT_MS)
        socket.bind(endpoint)
        is_bound.set()
        head, *_ = socket.recv_multipart()
        socket.send_multipart([head, said] if kind == zmq.ROUTER else [said])
        socket.close(LIMIT_MS)
    context.term()


def greet(socket: "zmq.Socket[bytes]") -> None:
    """Let the other side know that we are there."""
    if socket.type == zmq.SUB:
        socket.setsockopt(zmq.SUBSCRIBE, b"")
    else:
        socket.send(b"hello")


async def hear_the_last_word(endpoint: str, kinds: tuple[int, int]) -> list[str]:
    """Connect to somebody who says one thing and hangs up, and tell in which order we heard of it."""
    heard: list[str] = []
    is_over = asyncio.Event()
    is_bound = threading.Event()
    server, client = kinds
    thread = threading.Thread(target=say_and_hang_up, args=(endpoint, server, b"goodbye", is_bound))
    thread.start()
    assert is_bound.wait(LIMIT_MS / 1000)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = new_socket(context, client, outbound=16)

    def lost(reason: str) -> None:
        port.take_last()
        heard.append(reason)
        is_over.set()

    watch = ConnectionWatch(socket, lost)
    port = ZmqPort(socket, parts=1, on_message=lambda parts, _surplus: heard.append(parts[0].decode()))
    socket.connect(endpoint)
    greet(socket)
    await asyncio.wait_for(is_over.wait(), LIMIT_MS / 1000)
    thread.join(LIMIT_MS / 1000)
    watch.close()
    port.close()
    context.term()
    return heard


@pytest.mark.parametrize("kinds", [(zmq.ROUTER, zmq.DEALER), (zmq.XPUB, zmq.SUB)], ids=["reply", "event"])
async def test_last_word_before_the_other_side_hung_up_is_heard(tmp_path: Path, kinds: tuple[int, int]) -> None:
    """Word of the end may overtake it, and must not throw it away."""
    for number in range(ROUNDS):
        heard = await hear_the_last_word(f"ipc://{tmp_path}/{number}", kinds)

        assert ["goodbye", "the host hung up"] == heard, f"round {number}"

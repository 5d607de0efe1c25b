"""ZeroMQ sockets on an asyncio loop, with bounds: the only module that calls ZeroMQ's send and receive.

A ``ZmqPort`` owns one socket and calls a plain function for each message; nothing waits inside. ZeroMQ's descriptor
is edge-triggered and hides behind both sending and receiving, so after every send the socket's own event word decides
whether there is something to drain (a missed edge would be a message that waits for the next one).

Bounds: a message longer than ``HARD_MESSAGE_BYTES`` makes libzmq drop that connection while it arrives; parts beyond
those expected are thrown away one by one and reported as a count; sending never blocks. ROUTER sockets are mandatory:
a peer that left is an answer, not a silent loss. Source: ZeroMQ guide and RFC 28; dangers in docs/wire/bus.md.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable

import zmq

from vbnet.bus.limits import HARD_MESSAGE_BYTES
from vbnet.errors import ResourceError, UsageError

__all__ = ["ConnectionWatch", "Delivery", "ZmqPort", "new_socket", "require_libzmq"]

_REQUIRED = (4, 3, 5)
_BATCH = 64
_LAST_BATCHES = 64
_RECONNECT_MS = 3_600_000
"""Longer than any client leaves a lost connection open. ``-1``, which means never, has libzmq throw away what arrived
before the other side hung up and was not read yet, such as the answer of a host node that was told to end."""


def require_libzmq(version: tuple[int, int, int] | None = None) -> None:
    """Refuse a libzmq with known holes.

    Args:
        version: the version found; None asks the library.

    Raises:
        ResourceError: older than 4.3.5.
    """
    found = zmq.zmq_version_info() if version is None else version
    if found < _REQUIRED:
        raise ResourceError(
            f"libzmq {'.'.join(map(str, found))} has known security holes; install pyzmq with libzmq 4.3.5 or newer",
            got=found,
            limit=_REQUIRED,
        )


def new_socket(context: zmq.Context[zmq.Socket[bytes]], kind: int, *, outbound: int) -> zmq.Socket[bytes]:
    """Make a socket with the bounds every vbnet socket has.

    Args:
        context: this node's own context.
        kind: ``zmq.ROUTER``, ``zmq.DEALER``, ``zmq.PUB`` or ``zmq.SUB``.
        outbound: messages that may wait for one peer.
    """
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, HARD_MESSAGE_BYTES)
    socket.setsockopt(zmq.SNDHWM, outbound)
    socket.setsockopt(zmq.RCVHWM, outbound)
    if kind == zmq.ROUTER:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if kind in {zmq.DEALER, zmq.SUB}:
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    return socket


class Delivery(enum.Enum):
    """What became of a message that was sent."""

    QUEUED = "queued"
    PEER_GONE = "peer gone"
    PEER_FULL = "peer full"


class ZmqPort:
    """One socket, drained on the running loop.

    Args:
        socket: becomes this port's; nobody else may touch it.
        parts: how many parts a lawful message has.
        on_message: called with exactly ``parts`` parts, or with the first few when there were fewer, and the number of
            surplus parts that were thrown away. It must not raise.
    """

    def __init__(
        self, socket: zmq.Socket[bytes], *, parts: int, on_message: Callable[[list[bytes], int], None]
    ) -> None:
        self._socket = socket
        self._parts = parts
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._is_drain_due = False
        self._fd = int(socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._drain)
        self._drain_soon()

    def send_nowait(self, *parts: bytes) -> Delivery:
        """Queue one message; never blocks. Says what became of it."""
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            return Delivery.PEER_FULL
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return Delivery.PEER_GONE
            raise UsageError(f"cannot send: {error}") from error
        finally:
            if not self._socket.closed and int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                self._drain_soon()
        return Delivery.QUEUED

    def close(self, linger_ms: int = 0) -> None:
        """Close the socket; what is queued may still leave during ``linger_ms``."""
        if self._socket.closed:
            return
        self._loop.remove_reader(self._fd)
        self._socket.close(linger_ms)

    def _drain_soon(self) -> None:
        if not self._is_drain_due:
            self._is_drain_due = True
            self._loop.call_soon(self._drain)

    def take_last(self) -> bool:
        """Take what came before the other side hung up, a few batches at most: word of the end may overtake it.

        Returns:
            Whether that was all.
        """
        return any(not self._take_batch() for _ in range(_LAST_BATCHES))

    def _drain(self) -> None:
        """Take at most one batch, then let the rest of the process have its turn."""
        self._is_drain_due = False
        if self._take_batch():
            self._drain_soon()

    def _take_batch(self) -> bool:
        """Take what is there, one batch at most; whether more may be."""
        for _ in range(_BATCH):
            if self._socket.closed:
                return False
            try:
                first = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return False
            parts, surplus = [first], 0
            while self._socket.getsockopt(zmq.RCVMORE):
                part = self._socket.recv(zmq.NOBLOCK)
                if len(parts) < self._parts:
                    parts.append(part)
                else:
                    surplus += 1
            self._on_message(parts, surplus)
        return True


class ConnectionWatch:
    """Tells when a connection of a socket is lost or is never let in; a server's socket does not know whose.

    Args:
        socket: a socket that has not been connected or bound yet, or was bound just now.
        on_lost: called each time, with the reason.
    """

    def __init__(self, socket: zmq.Socket[bytes], on_lost: Callable[[str], None]) -> None:
        self._watched = socket
        self._on_lost = on_lost
        monitor = socket.get_monitor_socket(sum(_LOST))
        self._port = ZmqPort(monitor, parts=2, on_message=self._happened)

    def close(self) -> None:
        """Watch no more; call before closing the watched socket."""
        if not self._watched.closed:
            self._watched.monitor(None, 0)
        self._port.close()

    def _happened(self, parts: list[bytes], _surplus: int) -> None:
        event = int.from_bytes(parts[0][:2], "little")
        self._on_lost(_LOST.get(event, "hung up"))


_LOST: dict[int, str] = {
    int(zmq.EVENT_DISCONNECTED): "the host hung up",
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "the host does not know our key; have it allowed there",
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "the host refused the handshake; are its key and ours right?",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "the host speaks another protocol",
}

"""A client's connection to a host node: one DEALER, requests with deadlines, and certainty about its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import zmq

from vbnet.bus.keys import KeyPair, TcpAddress, secure_client
from vbnet.bus.limits import MAX_MESSAGE_BYTES
from vbnet.bus.rundir import RunDir
from vbnet.bus.transport import ConnectionWatch, Delivery, ZmqPort, new_socket, require_libzmq
from vbnet.clock import Clock, Timer
from vbnet.errors import (
    ClosedError,
    DeadlineError,
    NotFoundError,
    NotPermittedError,
    PeerGone,
    ResourceError,
    TooLargeError,
    VbnetError,
)
from vbnet.units import seconds_to_ns

__all__ = ["Address", "Link", "Requests", "Secrets", "resolve_address"]

T = TypeVar("T")
Address = RunDir | Path | str | None
"""A host node: its run directory (object or path), ``tcp://HOST:PORT``, or None for this user's default one."""

_OUTBOUND = 16384


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a client needs for tcp: its own key pair and the host's public key."""

    keys: KeyPair
    server_public: str


def resolve_address(address: Address) -> RunDir | TcpAddress:
    """Find out what an address means.

    Raises:
        UsageError: a tcp address that is none.
    """
    if address is None:
        return RunDir.for_node()
    if isinstance(address, RunDir):
        return address
    if isinstance(address, str) and address.startswith("tcp:"):
        return TcpAddress.parse(address)
    return RunDir(Path(address))


class Requests(Generic[T]):
    """Requests under way: each ends by its reply, its deadline, or the end of the connection.

    Args:
        clock: for deadlines.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seq = 0
        self._pending: dict[int, tuple[asyncio.Future[T], Timer]] = {}
        self._failure: VbnetError | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def begin(self, what: str, deadline_s: float) -> tuple[int, asyncio.Future[T]]:
        """Start one: gives the number its reply will carry, and what to await.

        Raises:
            PeerGone: the connection ended before. ClosedError: it was closed here.
        """
        if self._failure is not None:
            raise self._failure
        self._seq = self._seq % 0xFFFF_FFFF + 1
        seq = self._seq
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def late() -> None:
            error = DeadlineError(f"no answer to {what} within {deadline_s} s", request=what, deadline_s=deadline_s)
            self.refuse(seq, error)

        self._pending[seq] = (future, self._clock.call_later(seconds_to_ns(deadline_s), late))
        return seq, future

    def answer(self, seq: int, value: T) -> bool:
        """End one well; False when it is not under way (late, given up, or never asked)."""
        entry = self._pending.pop(seq, None)
        if entry is None:
            return False
        entry[1].cancel()
        if entry[0].done():
            return False
        entry[0].set_result(value)
        return True

    def refuse(self, seq: int, error: VbnetError) -> bool:
        """End one badly; False when it is not under way."""
        entry = self._pending.pop(seq, None)
        if entry is None:
            return False
        entry[1].cancel()
        if not entry[0].done():
            entry[0].set_exception(error)
        return True

    def fail_all(self, error: VbnetError) -> None:
        """End all, and every later one, with ``error``."""
        if self._failure is None:
            self._failure = error
        for seq in list(self._pending):
            self.refuse(seq, error)


class Link:
    """One DEALER to one service of one host node.

    Args:
        address: from ``resolve_address``.
        service: 0 for guests, 1 for operators (the port above, for tcp).
        secrets: needed for tcp.
        on_message: called with each message's bytes.
        on_lost: called once, with an error that says why, when the connection ends or is never let in.

    Raises:
        NotFoundError: no host node runs there. NotPermittedError: tcp without keys, or a run directory open to others.
        ResourceError: libzmq is too old, or the machine refused.
    """

    def __init__(
        self,
        address: RunDir | TcpAddress,
        service: int,
        *,
        secrets: Secrets | None,
        on_message: Callable[[bytes], None],
        on_lost: Callable[[VbnetError], None],
    ) -> None:
        require_libzmq()
        self._where, endpoint = _endpoint(address, service, secrets)
        self._on_message = on_message
        self._on_lost = on_lost
        self._is_over = False
        self._loss: PeerGone | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = new_socket(self._context, zmq.DEALER, outbound=_OUTBOUND)
        if secrets is not None:
            secure_client(socket, secrets.keys, secrets.server_public)
        self._watch = ConnectionWatch(socket, self._lost)
        self._port = ZmqPort(socket, parts=1, on_message=self._received)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ResourceError(f"cannot connect to {endpoint}: {error}", errno=error.errno or 0) from error

    def send(self, data: bytes) -> None:
        """Send without waiting.

        Raises:
            ClosedError: closed here. PeerGone: the host ended, or left thousands of messages unread.
            TooLargeError: the host would not look at it, and so could not say what it refuses.
        """
        if self._is_over:
            raise ClosedError(f"the connection to {self._where} is closed")
        if self._loss is not None:
            raise self._loss
        if len(data) > MAX_MESSAGE_BYTES:
            raise TooLargeError(
                f"a message of {len(data)} bytes was not sent; the host takes {MAX_MESSAGE_BYTES}",
                got=len(data),
                limit=MAX_MESSAGE_BYTES,
            )
        if self._port.send_nowait(data) is not Delivery.QUEUED:
            raise PeerGone(f"{self._where}: the host takes no more messages", where=self._where, limit=_OUTBOUND)

    def close(self, linger_ms: int = 0) -> None:
        """Hang up; what was sent may still leave during ``linger_ms``."""
        self._is_over = True
        self._watch.close()
        self._port.close(linger_ms)
        self._context.term()

    def _received(self, parts: list[bytes], surplus: int) -> None:
        if not surplus:
            self._on_message(parts[0])

    def _lost(self, reason: str) -> None:
        if self._is_over or self._loss is not None:
            return
        self._port.take_last()
        self._port.close()
        self._loss = PeerGone(f"{self._where}: {reason}", where=self._where, reason=reason)
        if not self._is_over:
            self._on_lost(self._loss)


def _endpoint(address: RunDir | TcpAddress, service: int, secrets: Secrets | None) -> tuple[str, str]:
    if isinstance(address, TcpAddress):
        if secrets is None:
            raise NotPermittedError(
                "tcp works only with keys: run 'vbnet keys make' here and 'vbnet keys allow' on the host",
                address=address.endpoint(0),
            )
        return address.endpoint(0), address.endpoint(service)
    address.check()
    path = address.admin_socket if service else address.bus_socket
    if not path.exists():
        raise NotFoundError(f"no host node runs in {address.path}", path=str(address.path))
    return str(address.path), address.endpoint(service)

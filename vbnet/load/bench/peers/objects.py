"""What Python programs use to hand ``bytes`` to another process, one object a call: pyzmq, iceoryx2, Unix sockets.

Each peer is a pushing class and a pulling class, run on the two cores in processes of their own. The puller counts what
arrives, one rate a window; the pusher pushes until its time is up, with a deadline on every wait.
"""

from __future__ import annotations

import ctypes
import importlib.util
import socket
import struct
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import zmq

from vbnet.errors import PeerGone
from vbnet.load.bench.machine import Cores
from vbnet.load.bench.pace import Pace
from vbnet.load.bench.side import Side

__all__ = ["PEERS", "ObjectPair", "ObjectPeer", "why_not_installed"]

_CALLS_A_LOOK: Final = 64
_WAIT_SECONDS: Final = 0.2
_EMPTY_LIMIT: Final = 25
"""Waits without an object before the pusher is taken for lost."""
_CALL_SECONDS: Final = 30.0
_ICEORYX_BUFFER: Final = 256


def _pull(receive: Callable[[], bool], windows: Sequence[float]) -> list[float]:
    """Count what ``receive`` gets (``False``: nothing came in a while): ``warm_up, window`` seconds, ``count``."""
    warm_up_seconds, window_seconds, count = windows
    rates: list[float] = []
    begun = time.perf_counter()
    end = begun + warm_up_seconds
    is_warm = False
    received = empty = 0
    while len(rates) < count:
        for _ in range(_CALLS_A_LOOK):
            if receive():
                received += 1
                continue
            empty += 1
            if empty > _EMPTY_LIMIT:
                raise PeerGone("nothing arrives from the pushing side")
            break
        now = time.perf_counter()
        if now >= end:
            if is_warm:
                rates.append(received / (now - begun))
            is_warm = True
            begun, end, received = now, now + window_seconds, 0
    return rates


def _push(send: Callable[[], object], seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(_CALLS_A_LOOK):
            send()


class ZmqPush:
    """Pushes through a ZeroMQ PUSH socket over ``ipc``."""

    def __init__(self, address: str, frame_bytes: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.set(zmq.SNDTIMEO, int(_WAIT_SECONDS * 1000))
        self._socket.set(zmq.LINGER, 0)
        self._socket.connect(address)
        self._content = bytes(frame_bytes)

    def push(self, seconds: float) -> None:
        """Push for so many seconds."""
        send, content = self._socket.send, self._content

        def one() -> None:
            try:
                send(content)
            except zmq.Again:
                return

        _push(one, seconds)

    def close(self) -> None:
        """Let go of the socket; what is queued is dropped."""
        self._context.destroy(linger=0)


class ZmqPull:
    """Pulls from a ZeroMQ PULL socket over ``ipc``."""

    def __init__(self, address: str, frame_bytes: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.set(zmq.RCVTIMEO, int(_WAIT_SECONDS * 1000))
        self._socket.bind(address)
        self._frame_bytes = frame_bytes

    def pull(self, windows: Sequence[float]) -> list[float]:
        """Objects a second, one sample a window."""
        receive = self._socket.recv

        def one() -> bool:
            try:
                return len(receive()) == self._frame_bytes
            except zmq.Again:
                return False

        return _pull(one, windows)

    def close(self) -> None:
        """Let go of the socket."""
        self._context.destroy(linger=0)


class SocketPush:
    """Pushes through one end of a Unix socket pair (SOCK_SEQPACKET)."""

    def __init__(self, fd: int, frame_bytes: int) -> None:
        self._socket = _timed(fd, socket.SO_SNDTIMEO)
        self._content = bytes(frame_bytes)

    def push(self, seconds: float) -> None:
        """Push for so many seconds."""
        send, content = self._socket.send, self._content

        def one() -> None:
            try:
                send(content)
            except BlockingIOError:
                return

        _push(one, seconds)


class SocketPull:
    """Pulls from the other end."""

    def __init__(self, fd: int, frame_bytes: int) -> None:
        self._socket = _timed(fd, socket.SO_RCVTIMEO)
        self._frame_bytes = frame_bytes

    def pull(self, windows: Sequence[float]) -> list[float]:
        """Objects a second, one sample a window."""
        receive, frame_bytes = self._socket.recv, self._frame_bytes

        def one() -> bool:
            try:
                return len(receive(frame_bytes)) == frame_bytes
            except BlockingIOError:
                return False

        return _pull(one, windows)


def _timed(fd: int, option: int) -> socket.socket:
    """Wrap a blocking socket whose waits end: by the kernel's clock, since Python's costs a poll a call."""
    found = socket.socket(fileno=fd)
    seconds = int(_WAIT_SECONDS)
    found.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, int((_WAIT_SECONDS - seconds) * 1_000_000)))
    return found


def _iceoryx_service(name: str, frame_bytes: int) -> tuple[Any, Any, type[ctypes.Structure]]:
    """Open the service both sides share: fixed frames, nothing overwritten, the oldest first."""
    import iceoryx2  # noqa: PLC0415 - a peer that need not be installed

    frame_type = type("Frame", (ctypes.Structure,), {"_fields_": [("content", ctypes.c_uint8 * frame_bytes)]})
    iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
    node = iceoryx2.NodeBuilder.new().create(iceoryx2.ServiceType.Ipc)
    service = (
        node.service_builder(iceoryx2.ServiceName.new(name))
        .publish_subscribe(frame_type)
        .enable_safe_overflow(False)  # noqa: FBT003 - the peer's own signature
        .subscriber_max_buffer_size(_ICEORYX_BUFFER)
        .open_or_create()
    )
    return node, service, frame_type


class IceoryxPush:
    """Publishes through iceoryx2; each object is copied into a loaned sample."""

    def __init__(self, name: str, frame_bytes: int) -> None:
        import iceoryx2  # noqa: PLC0415 - a peer that need not be installed

        self._node, service, _frame_type = _iceoryx_service(name, frame_bytes)
        self._publisher = (
            service.publisher_builder().backpressure_strategy(iceoryx2.BackpressureStrategy.DiscardData).create()
        )
        self._content = bytes(frame_bytes)

    def push(self, seconds: float) -> None:
        """Push for so many seconds."""
        loan, copy, content, size = self._publisher.loan_uninit, ctypes.memmove, self._content, len(self._content)

        def one() -> None:
            sample = loan()
            copy(sample.payload_ptr, content, size)
            sample.assume_init().send()

        _push(one, seconds)


class IceoryxPull:
    """Subscribes through iceoryx2; each sample is copied into a ``bytes`` object."""

    def __init__(self, name: str, frame_bytes: int) -> None:
        self._node, service, _frame_type = _iceoryx_service(name, frame_bytes)
        self._subscriber = service.subscriber_builder().create()
        self._frame_bytes = frame_bytes

    def pull(self, windows: Sequence[float]) -> list[float]:
        """Objects a second, one sample a window."""
        receive, copy, size = self._subscriber.receive, ctypes.string_at, self._frame_bytes

        def one() -> bool:
            sample = receive()
            if sample is None:
                deadline = time.perf_counter() + _WAIT_SECONDS
                while (sample := receive()) is None:
                    if time.perf_counter() > deadline:
                        return False
            return len(copy(sample.payload_ptr, size)) == size

        return _pull(one, windows)


@dataclass(frozen=True, slots=True)
class ObjectPair:
    """A pusher and a puller, up and joined."""

    pusher: Side
    puller: Side

    @property
    def pids(self) -> Sequence[int]:
        """Both processes."""
        return (self.pusher.pid, self.puller.pid)

    def objects_per_second(self, pace: Pace) -> list[float]:
        """Objects a second that arrived, one sample a window."""
        windows = (pace.warm_up_seconds, pace.window_seconds, pace.windows)
        total = pace.warm_up_seconds + pace.window_seconds * (pace.windows + 1)
        self.puller.begin("pull", windows=windows)
        self.pusher.begin("push", seconds=total)
        rates: list[float] = self.puller.finish(_CALL_SECONDS)
        self.pusher.finish(_CALL_SECONDS)
        return rates


@dataclass(frozen=True, slots=True)
class ObjectPeer:
    """A way to hand objects over.

    Args:
        label: as printed.
        module: what must be importable.
        package: what to install when it is not.
        up: starts a pair for frames of a size.
    """

    label: str
    module: str
    package: str
    up: Callable[[Cores, int], AbstractContextManager[ObjectPair]]


@contextmanager
def _pair(
    cores: Cores, kind: str, push: dict[str, Any], pull: dict[str, Any], fds: Sequence[int] = ()
) -> Iterator[ObjectPair]:
    with ExitStack() as stack:
        puller = stack.enter_context(Side(f"{__name__}:{kind}Pull", cores.far, pull, fds))
        pusher = stack.enter_context(Side(f"{__name__}:{kind}Push", cores.near, push, fds))
        yield ObjectPair(pusher, puller)


@contextmanager
def _zmq(cores: Cores, frame_bytes: int) -> Iterator[ObjectPair]:
    with tempfile.TemporaryDirectory(prefix="vbnet-bench-") as folder:
        params = {"address": f"ipc://{Path(folder) / 'objects.sock'}", "frame_bytes": frame_bytes}
        with _pair(cores, "Zmq", params, params) as pair:
            yield pair


@contextmanager
def _socket(cores: Cores, frame_bytes: int) -> Iterator[ObjectPair]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        push, pull = ({"fd": end.fileno(), "frame_bytes": frame_bytes} for end in (near, far))
        with _pair(cores, "Socket", push, pull, (near.fileno(), far.fileno())) as pair:
            yield pair


@contextmanager
def _iceoryx(cores: Cores, frame_bytes: int) -> Iterator[ObjectPair]:
    params = {"name": f"vbnet-bench-{uuid.uuid4().hex}", "frame_bytes": frame_bytes}
    with _pair(cores, "Iceoryx", params, params) as pair:
        yield pair


PEERS: Final = (
    ObjectPeer("pyzmq ipc PUSH/PULL", "zmq", "pyzmq", _zmq),
    ObjectPeer("iceoryx2 publish/subscribe, copied", "iceoryx2", "iceoryx2", _iceoryx),
    ObjectPeer("AF_UNIX SOCK_SEQPACKET", "socket", "python", _socket),
)


def why_not_installed(peer: ObjectPeer) -> str | None:
    """Tell what to install to have this peer; ``None``: it is there."""
    if importlib.util.find_spec(peer.module) is None:
        return f"{peer.label} is not installed (PyPI: {peer.package})"
    return None

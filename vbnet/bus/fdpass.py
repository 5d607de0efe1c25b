"""Descriptors change hands here: a Unix SEQPACKET socket beside ZeroMQ, which cannot carry them.

Each packet is the MessagePack array ``[version, seq, body]`` with zero to two descriptors attached (SCM_RIGHTS). The
receiver owns what it got: everything that was not expected is closed at once. The kernel vouches for the peer's pid
and uid (SO_PEERCRED), a pidfd tells of its death, and the hang-up of this socket is the earliest sign that a process
is gone. Byte tables: docs/wire/attach.md.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from vbnet.bus.messages import I63, PROTOCOL_VERSION, U16, U32, U64, Body, MessageFault, Name, SignalText
from vbnet.bus.rundir import RunDir
from vbnet.errors import DeadlineError, NotFoundError

__all__ = [
    "FILE_NAME_BYTES",
    "Attach",
    "AttachBody",
    "AttachReply",
    "Attached",
    "Capture",
    "Captured",
    "Drive",
    "DriveEnded",
    "Driven",
    "Export",
    "Exported",
    "FdChannel",
    "FdListener",
    "FdRefused",
    "Give",
    "Given",
    "Insert",
    "Inserted",
    "Lent",
    "PeerIdentity",
    "SignalFds",
    "connect_fds",
    "decode_attach",
    "decode_attach_reply",
    "encode_packet",
    "receive_packet",
]

MAX_PACKET_BYTES: Final = 4096
MAX_FDS: Final = 4
TOKEN_BYTES: Final = 32
PROGRAM_BYTES: Final = 448 * 8
"""Longest filter of a capture: as many instructions of 8 bytes as fit into a packet with the rest."""
FILE_NAME_BYTES: Final = 1024
"""Longest name of a file that is put into a device, in characters."""
_BATCH: Final = 32
_SO_PEERPIDFD: Final = 77
_ACCEPT_PAUSE_S: Final = 0.5


class Attach(Body, tag=1, frozen=True):
    """I am the process that got this token. With ``has_ram`` one descriptor follows: the session's memory."""

    token: Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]
    has_ram: bool


class Give(Body, tag=2, frozen=True):
    """One descriptor for a device to take by this ticket."""

    sid: U32
    ticket: U64


class Export(Body, tag=3, frozen=True):
    """An operator's: lead this signal to a new eventfd, and hand me that."""

    signal: SignalText


class Drive(Body, tag=4, frozen=True):
    """An operator's: let the eventfd that follows raise this signal; with ``keep`` also when this connection ended."""

    signal: SignalText
    keep: bool


class Capture(Body, tag=5, frozen=True):
    """An operator's: show me what passes a port, in a ring of so many bytes.

    ``program`` are the instructions of a filter, none = everything. With ``trace_frames`` that many frames that come
    out of the guest are followed instead.
    """

    port: Name
    program: Annotated[bytes, Meta(max_length=PROGRAM_BYTES)]
    snap_bytes: U32
    ring_bytes: U32
    trace_frames: U32


class Insert(Body, tag=6, frozen=True):
    """An operator's: put the open file that follows into a device, as a disk into a drive; ``name`` is for people."""

    device: Name
    name: Annotated[str, Meta(max_length=FILE_NAME_BYTES)]
    is_read_only: bool


class Attached(Body, tag=64, frozen=True):
    """The session is bound to this process, and its memory is mapped."""

    sid: U32


class FdRefused(Body, tag=65, frozen=True):
    """The packet with this seq changed nothing; its descriptors were closed."""

    code: str
    message: str
    detail: dict[str, Any]


class SignalFds(Body, tag=66, frozen=True):
    """Two eventfds follow: kick (guest to host), then call (host to guest), of this signal handle. seq is 0."""

    sid: U32
    signal: I63


class Given(Body, tag=67, frozen=True):
    """The descriptor waits for a device to take it."""

    sid: U32
    ticket: U64


class Lent(Body, tag=68, frozen=True):
    """One descriptor of a device follows, for this guest to take by ``ticket``. seq is 0."""

    sid: U32
    ticket: U64


class Exported(Body, tag=69, frozen=True):
    """One eventfd follows, to which the signal of this number leads now."""

    signal: I63


class Driven(Body, tag=70, frozen=True):
    """The eventfd raises the signal from now on; ``source`` is the number of this drive."""

    source: I63


class DriveEnded(Body, tag=71, frozen=True):
    """That drive is over, for its signal was destroyed. seq is 0."""

    source: I63


class Captured(Body, tag=72, frozen=True):
    """Two descriptors follow: the capture's ring, then the eventfd that wakes its reader."""

    capture: I63


class Inserted(Body, tag=73, frozen=True):
    """The device has the file now."""


AttachBody = Attach | Give | Export | Drive | Capture | Insert
AttachReply = Attached | FdRefused | SignalFds | Given | Lent | Exported | Driven | DriveEnded | Captured | Inserted


class _Packet(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    version: U16
    seq: U32
    body: msgspec.Raw


_encoder = msgspec.msgpack.Encoder()
_packet_decoder = msgspec.msgpack.Decoder(_Packet)
_attach_decoder: msgspec.msgpack.Decoder[AttachBody] = msgspec.msgpack.Decoder(AttachBody)
_reply_decoder: msgspec.msgpack.Decoder[AttachReply] = msgspec.msgpack.Decoder(AttachReply)
_BodyT = TypeVar("_BodyT")


def encode_packet(seq: int, body: Body) -> bytes:
    """Turn a packet into its bytes."""
    return _encoder.encode((PROTOCOL_VERSION, seq, body))


def decode_attach(data: bytes) -> tuple[int, AttachBody]:
    """Read a packet from a guest's or operator's process.

    Raises:
        MessageFault: malformed, or of another version (the sender's fault).
    """
    return _decode(data, _attach_decoder)


def decode_attach_reply(data: bytes) -> tuple[int, AttachReply]:
    """Read a packet from the host.

    Raises:
        MessageFault: malformed, or of another version (the host's fault).
    """
    return _decode(data, _reply_decoder)


def _decode(data: bytes, decoder: msgspec.msgpack.Decoder[_BodyT]) -> tuple[int, _BodyT]:
    seq = 0
    try:
        packet = _packet_decoder.decode(data)
        seq = packet.seq
        if packet.version != PROTOCOL_VERSION:
            raise MessageFault(
                f"attach version {packet.version} is not spoken here, only {PROTOCOL_VERSION}",
                seq=seq,
                rule="version == 1",
            )
        return seq, decoder.decode(packet.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageFault(f"malformed packet: {error}", seq=seq, rule="[version, seq, body]") from error


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who the kernel says is on the other end."""

    pid: int
    uid: int

    @classmethod
    def of(cls, sock: socket.socket) -> PeerIdentity:
        """Ask the kernel (SO_PEERCRED): the process that connected."""
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _gid = struct.unpack("3i", raw)
        return cls(pid, uid)


def receive_packet(sock: socket.socket) -> tuple[bytes, list[int], bool]:
    """Take one packet: its bytes, its descriptors (close-on-exec, now the caller's), and whether it was cut off.

    Empty bytes mean that the peer hung up. Raises what ``recvmsg`` raises.
    """
    data, ancillary, flags, _address = sock.recvmsg(
        MAX_PACKET_BYTES, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    )
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return data, list(fds), bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))


def connect_fds(run_dir: RunDir, path: Path, deadline_s: float) -> socket.socket:
    """Connect this process to the attach or operate socket of a host node; the socket is the caller's.

    Args:
        run_dir: of the host node.
        path: of the socket, ``run_dir.attach_socket`` for guests, ``run_dir.operate_socket`` for operators.
        deadline_s: how long the host may take to let us in.

    Raises:
        DeadlineError: it lets nobody in. NotFoundError: none runs there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(deadline_s)
    try:
        sock.connect(str(path))
    except TimeoutError:
        sock.close()
        raise DeadlineError(f"the host node in {run_dir.path} lets nobody in", deadline_s=deadline_s) from None
    except OSError as error:
        sock.close()
        raise NotFoundError(f"no host node runs in {run_dir.path}", path=str(run_dir.path)) from error
    return sock


class FdChannel:
    """One end of an attach connection on the running loop.

    Args:
        sock: connected SEQPACKET socket; becomes this channel's.
        on_packet: called with the bytes, the descriptors (to be kept or closed by it) and whether it was cut off.
        on_closed: called once when the peer hung up or was cut off, never from inside ``close``.
        max_waiting: packets waiting for a peer that does not read; one more and it is cut off.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_packet: Callable[[bytes, list[int], bool], None],
        on_closed: Callable[[str], None],
        max_waiting: int = 16384,
    ) -> None:
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._sock = sock
        self._on_packet = on_packet
        self._on_closed = on_closed
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._read)

    @property
    def is_open(self) -> bool:
        """Whether packets can still be sent."""
        return self._sock.fileno() >= 0

    @property
    def waiting_packets(self) -> int:
        """Packets that found no room yet, because the peer does not read them."""
        return len(self._waiting)

    def pidfd(self, pid: int) -> int:
        """A descriptor that becomes readable when the peer's process ends; the caller's to close.

        Raises:
            ProcessLookupError: it has ended already.
        """
        try:
            return self._sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError:
            return os.pidfd_open(pid)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send now or as soon as there is room; descriptors are duplicated if they must wait. Never blocks."""
        if not self.is_open:
            return
        if self._waiting or not self._try_send(data, fds):
            if not self.is_open:
                return
            if len(self._waiting) >= self._max_waiting:
                self._hang_up("it does not read what it is sent")
                return
            if not self._waiting:
                self._loop.add_writer(self._sock.fileno(), self._flush)
            self._waiting.append((data, [os.dup(fd) for fd in fds]))

    def close(self) -> None:
        """Hang up; descriptors still waiting are closed. ``on_closed`` is not called."""
        if not self.is_open:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        while self._waiting:
            _close_all(self._waiting.popleft()[1])

    def _try_send(self, data: bytes, fds: Sequence[int]) -> bool:
        try:
            socket.send_fds(self._sock, [data], list(fds), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            self._hang_up(f"sending failed: {error.strerror}")
            return False
        return True

    def _flush(self) -> None:
        while self._waiting:
            data, fds = self._waiting[0]
            if not self._try_send(data, fds):
                return
            self._waiting.popleft()
            _close_all(fds)
        self._loop.remove_writer(self._sock.fileno())

    def _read(self) -> None:
        for _ in range(_BATCH):
            if not self.is_open:
                return
            try:
                data, fds, is_cut = receive_packet(self._sock)
            except BlockingIOError:
                return
            except OSError as error:
                self._hang_up(f"receiving failed: {error.strerror}")
                return
            if not data:
                _close_all(fds)
                self._hang_up("it hung up")
                return
            self._on_packet(data, fds, is_cut)

    def _hang_up(self, reason: str) -> None:
        if self.is_open:
            self.close()
            self._on_closed(reason)


class FdListener:
    """The host's end: accepts guests' and operators' processes at a path in the run directory.

    Args:
        path: of the socket; must not exist.
        on_connect: called with each new connection, which becomes its own.
    """

    def __init__(self, path: Path, on_connect: Callable[[socket.socket], None]) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._on_connect = on_connect
        self._loop = asyncio.get_running_loop()
        try:
            self._sock.bind(str(path))
            path.chmod(0o600)
            self._sock.listen(1024)
        except OSError:
            self._sock.close()
            raise
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more; connections made are not touched."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _accept(self) -> None:
        for _ in range(_BATCH):
            try:
                connection, _address = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                # Out of descriptors: the peer stays in the backlog; look again a little later, not in a loop.
                self._loop.remove_reader(self._sock.fileno())
                self._loop.call_later(_ACCEPT_PAUSE_S, self._resume)
                return
            self._on_connect(connection)

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock.fileno(), self._accept)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)

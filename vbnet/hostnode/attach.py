"""The host's attach desk: identities are checked and descriptors taken and given here.

The kernel says who connected; the token says which session; both must agree with what was said in Hello. The end of
the process is seen twice, by the hang-up of its socket and by its pidfd, because a child may have inherited the one
and pids are reused; whichever comes first ends all its sessions.

Operators come here too, by a socket of their own, for ZeroMQ carries no descriptors: they take eventfds to which
signals lead, hand over eventfds that raise signals, and take captures. A sandbox that leaves a guest only the guests'
sockets keeps all of that from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vbnet.bus import fdpass
from vbnet.bus.descriptors import is_eventfd
from vbnet.bus.fdpass import FdChannel, FdListener, PeerIdentity
from vbnet.errors import (
    NotFoundError,
    NotPermittedError,
    PeerFault,
    ResourceError,
    UsageError,
    VbnetError,
    did_you_mean,
    refusal_name,
)
from vbnet.hostnode import metrics
from vbnet.hostnode.device import SignalEnds
from vbnet.hostnode.goodbyes import end_after_goodbyes

if TYPE_CHECKING:
    from vbnet.hostnode.sessions import Session, SessionBook
    from vbnet.sharedmem import Ram

__all__ = ["AttachDesk", "AttachPeer"]

_MAX_FAULTS = 64
_ENDED_ITSELF = {"hung-up", "exited"}
"""Causes behind which a goodbye may be under way; the others are decisions of the host."""


class AttachPeer:
    """One connected process.

    Args:
        sock: its connection; becomes this object's.
        identity: who the kernel says it is.
        desk: where its packets go.
        is_operators: it came by the operate socket.
    """

    def __init__(
        self, sock: socket.socket, identity: PeerIdentity, desk: AttachDesk, *, is_operators: bool = False
    ) -> None:
        self.identity = identity
        self.sessions: dict[int, Session] = {}
        self.is_operators = is_operators
        self.drives: dict[int, int] = {}
        """Of the eventfds that end with this connection: which source drives which line."""
        self.captures: dict[int, int] = {}
        """Captures and traces that end with this connection, and the bytes of each one's ring."""
        self._desk = desk
        self._faults = 0
        self._loop = asyncio.get_running_loop()
        self._channel = FdChannel(
            sock, on_packet=self._packet, on_closed=self._hung_up, max_waiting=desk.book.limits.outbound_messages
        )
        self._pidfd = -1
        try:
            self._pidfd = self._channel.pidfd(identity.pid)
        except OSError:
            self._loop.call_soon(self._exited)
        else:
            self._loop.add_reader(self._pidfd, self._exited)

    def send_signal(self, sid: int, signal: int, ends: SignalEnds) -> None:
        """Hand the guest its ends of a signal."""
        packet = fdpass.encode_packet(0, fdpass.SignalFds(sid, signal))
        self._channel.send(packet, (ends.kick_fd, ends.call_fd))

    def lend(self, sid: int, ticket: int, fd: int) -> None:
        """Hand the guest a descriptor, which stays the caller's.

        Raises:
            ResourceError: the process does not read what it is sent, or this one has no room for a copy.
        """
        self.check_reads()
        self._send(fdpass.encode_packet(0, fdpass.Lent(sid, ticket)), [fd])

    def check_reads(self) -> None:
        """Raise ResourceError when the process does not read what it is sent: then it gets no descriptor."""
        limit = self._desk.book.limits.lends_waiting
        if self._channel.waiting_packets >= limit:
            raise ResourceError(
                "no descriptor is lent to a process that does not read what it is sent",
                got=self._channel.waiting_packets,
                limit=limit,
            )

    def drive_ended(self, source: int) -> None:
        """Tell an operator that a signal it drives is gone."""
        if self.drives.pop(source, None) is not None:
            self._channel.send(fdpass.encode_packet(0, fdpass.DriveEnded(source)))

    def hang_up(self) -> None:
        """Send the process away: everything it still holds ends."""
        self._desk.lost(self, "sent-away")

    def close(self) -> None:
        """Hang up; its sessions are not touched."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._channel.close()

    def _hung_up(self, reason: str) -> None:
        self._desk.lost(self, "not-reading" if "read" in reason else "hung-up")

    def _exited(self) -> None:
        self._desk.lost(self, "exited")

    def _packet(self, data: bytes, fds: list[int], is_cut: bool) -> None:
        surplus = len(fds)
        seq = 0
        try:
            with _closed_after(fds):
                seq, body = fdpass.decode_attach(data)
                _check_fds(body, fds, is_cut=is_cut)
                reply, given = self._desk.handle(self, body, fds)
            with _closed_after(given):
                self._send(fdpass.encode_packet(seq, reply), given)
        except VbnetError as error:
            self._refuse(seq or getattr(error, "seq", 0), error, surplus)
        except Exception as error:  # no packet may stop the host
            self._desk.book.services.log.exception("attach_failed")
            self._refuse(seq, error, surplus)

    def _send(self, data: bytes, fds: list[int]) -> None:
        try:
            self._channel.send(data, fds)
        except OSError as error:
            raise ResourceError(f"no descriptor to send: {error.strerror}", errno=error.errno or 0) from error

    def _refuse(self, seq: int, error: Exception, surplus: int) -> None:
        book = self._desk.book
        code = refusal_name(error)
        book.tally.add(metrics.REFUSED, code)
        names = [session.name for session in self.sessions.values()]
        book.services.refused("attach.refused", names[0] if names else f"process {self.identity.pid}", error)
        if surplus:
            book.tally.add(metrics.SURPLUS_FDS, count=surplus)
        self._faults += 1
        if self._faults > _MAX_FAULTS:
            self._desk.lost(self, "too-many-faults")
            return
        self._channel.send(fdpass.encode_packet(seq, fdpass.FdRefused(code, str(error), {})))


class AttachDesk:
    """Listens on the attach socket, and on the operate socket.

    Args:
        path: of the guests' socket.
        operate_path: of the operators' socket.
        book: the sessions.
        open_ram: checks and maps a guest's memory, given a descriptor (which it duplicates) and the most bytes allowed.
    """

    def __init__(self, path: Path, operate_path: Path, book: SessionBook, open_ram: Callable[[int, int], Ram]) -> None:
        self.book = book
        self._open_ram = open_ram
        self._peers: set[AttachPeer] = set()
        self._kept_drives: set[int] = set()
        self._listeners = [FdListener(path, self._guests_process)]
        try:
            self._listeners.append(FdListener(operate_path, self._operators_process))
        except BaseException:
            self._listeners.pop().close()
            raise

    def __len__(self) -> int:
        return len(self._peers)

    def close(self) -> None:
        """Hang up on everyone: this is how guests learn that the host is gone."""
        for listener in self._listeners:
            listener.close()
        for peer in list(self._peers):
            peer.close()
        self._peers.clear()

    def lost(self, peer: AttachPeer, cause: str) -> None:
        """A process is gone, or no longer wanted: end all its sessions and drives."""
        if peer not in self._peers:
            return
        self._peers.discard(peer)
        peer.close()
        for source, line in peer.drives.items():
            with contextlib.suppress(NotFoundError):
                self.book.services.signals.undrive(line, source)
        peer.drives.clear()
        self._count_drives()
        for capture in peer.captures:
            with contextlib.suppress(VbnetError):  # the fabric may be closed before its captures
                self.book.services.need_fabric().watch_remove(capture)
        peer.captures.clear()
        sessions = list(peer.sessions.values())
        if not peer.is_operators:  # that an operator hangs up says nothing about the guests in its process
            pid = peer.identity.pid
            if not any(other.identity.pid == pid and not other.is_operators for other in self._peers):
                sessions += self.book.take_unattached(pid)
        if cause in _ENDED_ITSELF:
            end_after_goodbyes(self.book, sessions, cause)
        else:
            for session in sessions:
                self.book.end(session, cause, tell=False)

    def handle(self, peer: AttachPeer, body: fdpass.AttachBody, fds: list[int]) -> tuple[fdpass.AttachReply, list[int]]:
        """Do what a packet asks; takes out of ``fds`` what it keeps.

        Gives the reply, and the descriptors to send with it, which are to be closed then.

        Raises:
            VbnetError: refused.
        """
        if isinstance(body, fdpass.Attach):
            return self._attach(peer, body, fds), []
        if isinstance(body, fdpass.Export):
            return self._export(peer, body)
        if isinstance(body, fdpass.Drive):
            return self._drive(peer, body, fds[0]), []
        if isinstance(body, fdpass.Capture):
            return self._capture(peer, body)
        if isinstance(body, fdpass.Insert):
            _check_operators(peer)
            self.book.plugboard.insert(body.device, fds[0], body.name, is_read_only=body.is_read_only)
            return fdpass.Inserted(), []
        session = peer.sessions.get(body.sid)
        if session is None:
            raise NotPermittedError(f"session {body.sid} is not attached to this process", sid=body.sid)
        session.accept_gift(body.ticket, fds[0])
        fds.pop()
        return fdpass.Given(body.sid, body.ticket), []

    def _export(self, peer: AttachPeer, body: fdpass.Export) -> tuple[fdpass.Exported, list[int]]:
        _check_operators(peer)
        peer.check_reads()
        signals = self.book.services.signals
        line = signals.find(body.signal)
        return fdpass.Exported(line), [signals.export(line)]

    def _drive(self, peer: AttachPeer, body: fdpass.Drive, fd: int) -> fdpass.Driven:
        _check_operators(peer)
        signals, limits = self.book.services.signals, self.book.limits
        line = signals.find(body.signal)
        if not is_eventfd(fd):
            raise UsageError("a signal is driven by an eventfd; the descriptor that came is none, and was closed")
        if not body.keep and len(peer.drives) >= limits.drives_per_connection:
            raise ResourceError(
                f"this connection drives signals by {len(peer.drives)} eventfds already; end some, or make another",
                got=len(peer.drives),
                limit=limits.drives_per_connection,
            )
        if (drives := self._count_drives()) >= limits.drives:
            raise ResourceError(
                f"operators drive signals by {drives} eventfds already, and no more are taken",
                got=drives,
                limit=limits.drives,
            )
        if body.keep:
            source = signals.drive(line, fd, on_gone=self._kept_drive_ended)
            self._kept_drives.add(source)
        else:
            source = signals.drive(line, fd, on_gone=lambda source: self._drive_ended(peer, source))
            peer.drives[source] = line
        self._count_drives()
        return fdpass.Driven(source)

    def _capture(self, peer: AttachPeer, body: fdpass.Capture) -> tuple[fdpass.Captured, list[int]]:
        _check_operators(peer)
        peer.check_reads()
        limits, fabric = self.book.limits, self.book.services.need_fabric()
        ports = [str(port["name"]) for port in fabric.ports()]
        if body.port not in ports:
            fix = did_you_mean(body.port, ports, otherwise="`vbnet port list` shows all")
            raise NotFoundError(f"there is no port {body.port!r}; {fix}", port=body.port)
        if len(peer.captures) >= limits.captures_per_connection:
            raise ResourceError(
                f"this connection has {len(peer.captures)} captures already",
                got=len(peer.captures),
                limit=limits.captures_per_connection,
            )
        used = sum(sum(other.captures.values()) for other in self._peers)
        if used + body.ring_bytes > limits.capture_bytes:
            raise ResourceError(
                f"captures have {used} bytes already, and {body.ring_bytes} more would exceed "
                f"{limits.capture_bytes}; ask for a smaller ring, or end a capture",
                got=used + body.ring_bytes,
                limit=limits.capture_bytes,
            )
        capture, ring, bell = fabric.watch_add(
            body.port,
            body.program,
            snap_bytes=body.snap_bytes,
            ring_bytes=body.ring_bytes,
            trace_frames=body.trace_frames or None,
        )
        peer.captures[capture] = body.ring_bytes
        return fdpass.Captured(capture), [ring, bell]

    def _drive_ended(self, peer: AttachPeer, source: int) -> None:
        peer.drive_ended(source)
        self._count_drives()

    def _kept_drive_ended(self, source: int) -> None:
        self._kept_drives.discard(source)
        self._count_drives()

    def _count_drives(self) -> int:
        count = len(self._kept_drives) + sum(len(peer.drives) for peer in self._peers)
        self.book.tally.set(metrics.DRIVES, count)
        return count

    def _attach(self, peer: AttachPeer, body: fdpass.Attach, fds: list[int]) -> fdpass.Attached:
        if peer.is_operators:
            raise NotPermittedError("this is the operators' socket; a guest attaches at attach.sock")
        session = self.book.spend_token(body.token)
        try:
            if peer.identity.pid != session.pid:
                raise NotPermittedError(
                    f"hello came from process {session.pid}, attach from {peer.identity.pid}",
                    got=peer.identity.pid,
                    limit=session.pid,
                )
            if peer.sessions.get(session.sid) is not None:
                raise NotPermittedError(f"this process has a session {session.sid} attached", sid=session.sid)
            if body.has_ram:
                session.ram = self._map(session, fds[0])
        except VbnetError as error:
            self.book.end(session, f"attach-{refusal_name(error)}")
            raise
        session.uid = peer.identity.uid
        session.attached = peer
        session.is_joined = True
        session.show_state()
        peer.sessions[session.sid] = session
        return fdpass.Attached(session.sid)

    def _map(self, session: Session, fd: int) -> Ram:
        try:
            return self._open_ram(fd, self.book.limits.ram_bytes)
        except PeerFault as fault:
            session.report(fault, "memory")
            raise

    def _guests_process(self, sock: socket.socket) -> None:
        self._connected(sock, is_operators=False)

    def _operators_process(self, sock: socket.socket) -> None:
        self._connected(sock, is_operators=True)

    def _connected(self, sock: socket.socket, *, is_operators: bool) -> None:
        identity = PeerIdentity.of(sock)
        is_ours = identity.uid in {0, os.geteuid()}
        if is_ours and len(self._peers) >= self.book.limits.channels:
            self._make_room()
        if not is_ours or len(self._peers) >= self.book.limits.channels:
            self.book.tally.add(metrics.REFUSED, "EPERM")
            sock.close()
            return
        self._peers.add(AttachPeer(sock, identity, self, is_operators=is_operators))

    def _make_room(self) -> None:
        """Send away an operator that holds nothing, if there is one: it can come again when it wants something."""
        holders = (peer for peer in self._peers if peer.is_operators)
        idle = next((peer for peer in holders if not peer.drives and not peer.captures), None)
        if idle is not None:
            self.lost(idle, "sent-away")


def _check_operators(peer: AttachPeer) -> None:
    """Raise NotPermittedError for what came by the guests' socket."""
    if not peer.is_operators:
        raise NotPermittedError(
            "this is the guests' socket; operators have operate.sock, and guests export and drive their signals "
            "through their interrupt controller"
        )


@contextlib.contextmanager
def _closed_after(fds: list[int]) -> Iterator[None]:
    """Close, in the end, what is then in ``fds``."""
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


def _check_fds(body: fdpass.AttachBody, fds: list[int], *, is_cut: bool) -> None:
    """Raise PeerFault unless exactly the descriptors that belong to a packet came with it."""
    has_none = isinstance(body, fdpass.Export | fdpass.Capture) or (
        isinstance(body, fdpass.Attach) and not body.has_ram
    )
    expected = 0 if has_none else 1
    if is_cut or len(fds) != expected:
        came = f"more than {len(fds)}" if is_cut else str(len(fds))
        raise PeerFault(
            f"{came} descriptors came, {expected} belong to this packet; all were closed",
            rule="descriptors",
            got=len(fds),
            limit=expected,
        )

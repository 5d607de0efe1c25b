"""What guests hold on the host, and how it is all let go of.

A *peer* is one ZeroMQ connection (a guest process); a *session* is one guest in it. A session owns its handles,
signals, eventfds, gifts and the mapping of its memory; ``SessionBook.end`` frees them in one stroke, whatever the
reason, and that is the only way out. The order on the way out: connections close (devices let go), then descriptors,
then memory, then the bus hears of it.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import os
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vbnet.bus import messages
from vbnet.bus.handles import HandleTable
from vbnet.bus.limits import RAM_HEADER_BYTES, SIGNAL_BYTES, Limits
from vbnet.bus.model import Slot
from vbnet.bus.rundir import RunDir
from vbnet.bus.transport import Delivery, ZmqPort
from vbnet.clock import Clock
from vbnet.errors import (
    ExistsError,
    NotFoundError,
    NotPermittedError,
    PeerFault,
    PeerGone,
    ResourceError,
    TooLargeError,
    UnsupportedError,
    UsageError,
    did_you_mean,
)
from vbnet.hostnode import metrics
from vbnet.hostnode.bells import Bells
from vbnet.hostnode.device import Connection, HostServices, Interface, Opener, SharedRegion, SignalEnds
from vbnet.hostnode.metrics import Tally
from vbnet.hostnode.plugboard import Plugboard, contained
from vbnet.hostnode.signals import SignalBook
from vbnet.units import SECOND_NS, seconds_to_ns

if TYPE_CHECKING:
    from vbnet.hostnode.attach import AttachPeer
    from vbnet.sharedmem import Ram

__all__ = ["Peer", "RefusalBudget", "Session", "SessionBook", "SessionState"]

_BLOCKED = "doorbell_blocked"


class RefusalBudget:
    """How many refusals a peer still gets; a token bucket."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._tokens = float(limits.refusals_burst)
        self._last_ns = clock.now_ns()

    def spend(self) -> bool:
        """Take one; False when there is none left."""
        now = self._clock.now_ns()
        grown = (now - self._last_ns) / SECOND_NS * self._limits.refusals_per_second
        self._tokens = min(self._limits.refusals_burst, self._tokens + grown)
        self._last_ns = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Peer:
    """One guest process as ZeroMQ shows it.

    Args:
        port: the ROUTER it is connected to.
        routing_id: its name there.
        is_remote: whether it came over tcp.
        on_lost: called soon after sending to it failed, with the reason.
    """

    def __init__(
        self,
        port: ZmqPort,
        routing_id: bytes,
        *,
        is_remote: bool,
        budget: RefusalBudget,
        on_lost: Callable[[Peer, str], None],
    ) -> None:
        self._port = port
        self._routing_id = routing_id
        self._on_lost = on_lost
        self._is_lost = False
        self.is_remote = is_remote
        self.budget = budget
        self.sessions: dict[int, Session] = {}
        self.last_heard_ns = 0
        self.is_stuck = False

    @property
    def routing_id(self) -> bytes:
        """Its name on the ROUTER."""
        return self._routing_id

    def send(self, data: bytes) -> None:
        """Send without waiting; a peer that left or does not read is reported to ``on_lost``."""
        if self._is_lost:
            return
        delivery = self._port.send_nowait(self._routing_id, data)
        if delivery is not Delivery.QUEUED:
            self._is_lost = True
            reason = "hung up" if delivery is Delivery.PEER_GONE else "does not read"
            self._on_lost(self, reason)

    def take_last_words(self) -> bool:
        """Take what it sent; whether that was all, as its connection is gone. Not while a message is handled."""
        is_gone = self._port.send_nowait(self._routing_id, messages.PROBE) is Delivery.PEER_GONE
        return self._port.take_last() and is_gone


class SessionState(enum.StrEnum):
    """How far a session has come."""

    JOINING = "joining"
    JOINED = "joined"
    READY = "ready"
    STUCK = "stuck"
    GONE = "gone"


@dataclass(slots=True)
class _Region:
    region: SharedRegion
    signal: int = 0


@dataclass(slots=True)
class _Caller:
    """How the guest is called for one signal: by a line, made when somebody needs it first."""

    opener: Opener
    name: str
    device: str
    priority: int
    line: int | None = None


@dataclass(slots=True)
class _Open:
    slot: Slot[Interface]
    opener: Opener
    connection: Connection
    regions: dict[int, _Region] = field(default_factory=dict)


class Session:
    """One guest: who it is and what it holds."""

    def __init__(self, peer: Peer, sid: int, hello: messages.Hello, bus: str, host: SessionBook) -> None:
        self.peer = peer
        self.sid = sid
        self.name = hello.name
        self.bus = bus
        self.pid = hello.pid
        self.uid = -1
        self.kind = hello.kind
        self.since_ns = host.clock.now_ns()
        self.ram: Ram | None = None
        self.attached: AttachPeer | None = None
        self.is_joined = peer.is_remote
        self.is_ready = False
        self.is_gone = False
        self.lost_by = ""
        """Why its process is known to be gone, while a goodbye may still be under way; "": it is there."""
        self.is_wedged = False
        self.faults = 0
        self._host = host
        limits = host.limits
        self.row = host.tally.guests.enter(
            hello.name, handles_limit=limits.handles_per_session, memory_limit=limits.ram_bytes
        )
        self._handles: HandleTable[_Open] = HandleTable("device handle", limits.handles_per_session)
        self._signals: HandleTable[tuple[SignalEnds, Opener]] = HandleTable("signal handle", limits.regions_per_session)
        self._open_signals: set[SignalEnds] = set()
        self._callers: dict[SignalEnds, _Caller] = {}
        self._is_silenced = False
        self._gifts: dict[int, int] = {}
        self._lends = itertools.count(1)
        self._region_count = 0
        self._shared_bytes = 0

    def __repr__(self) -> str:
        return f"<guest {self.name} on {self.bus}>"

    @property
    def is_remote(self) -> bool:
        """Whether it came from another machine."""
        return self.peer.is_remote

    @property
    def state(self) -> SessionState:
        """How far it has come."""
        if self.is_gone:
            return SessionState.GONE
        if self.peer.is_stuck:
            return SessionState.STUCK
        if self.is_ready:
            return SessionState.READY
        return SessionState.JOINED if self.is_joined else SessionState.JOINING

    def show_state(self) -> None:
        """Let the guest's counters show how it is, after that changed."""
        state = "wedged" if self.is_wedged and self.state is SessionState.READY else _SHOWN[self.state]
        self.row.set("state", metrics.GUEST_STATES.index(state))
        self.row.set("memory", 0 if self.ram is None else self.ram.size)

    def post(self, body: messages.Event) -> None:
        """Send an event."""
        self._host.tally.add(metrics.EVENTS, type(body).__name__)
        self.reply(0, body)
        self._host.services.signals.event_posted(self.name)

    def reply(self, seq: int, body: messages.HostBody) -> None:
        """Send the reply to request ``seq``."""
        self.peer.send(messages.encode(self.sid, seq, body))

    def open_devices(self) -> list[Slot[Interface]]:
        """What it has open."""
        return [entry.slot for _, entry in self._handles]

    # ---- verbs -----------------------------------------------------------------------------------------------------

    def open(self, dev_id: int, version: int) -> int:
        """Connect to a device on its own bus; gives the handle.

        Raises:
            NotFoundError: no such device on its bus. UsageError: not this ABI version.
            UnsupportedError: it needs memory, and this guest is on another machine.
            BusyError: exclusive and open. ResourceError: too many handles.
        """
        plugboard = self._host.plugboard
        slot = plugboard.model.find_slot(self.bus, dev_id)
        interface = slot.interface
        if version not in interface.versions:
            spoken = ", ".join(map(str, interface.versions))
            raise UsageError(
                f"{interface.abi_type} {slot.device!r} speaks version {spoken}, not {version}",
                got=version,
                versions=list(interface.versions),
            )
        if interface.needs_memory:
            self._need_same_machine()
        plugboard.check_open(slot)
        if len(self._handles) >= self._host.limits.handles_per_session:
            raise ResourceError("too many devices open; close some", limit=self._host.limits.handles_per_session)
        opener = _SessionOpener(self, dev_id)
        with contained(self._host.services, self._host.tally, slot.device, "connect"):
            connection = interface.connect(opener, version)
        handle = self._handles.add(_Open(slot, opener, connection))
        self.row.set("handles", len(self._handles))
        plugboard.opened(slot, self, handle)
        fastcalls = self._host.services.fastcalls
        if connection.fast is not None and fastcalls is not None and not self.is_remote:
            try:
                fastcalls.offer(self.name, handle, connection.fast, slot.device)
            except BaseException:
                self.close(handle)
                raise
        return handle

    def close(self, handle: int) -> None:
        """End a connection; each region's ShmClose goes out before this returns."""
        entry = self._handles.take(handle)
        self.row.set("handles", len(self._handles))
        self._host.plugboard.closed(entry.slot, self, handle)
        if self._host.services.fastcalls is not None:
            self._host.services.fastcalls.withdraw(self.name, handle)
        with contained(self._host.services, self._host.tally, entry.slot.device, "close", swallow=True):
            entry.connection.close()
        for region in entry.regions.values():
            self._drop_region(region)

    def call(self, handle: int, function: int, data: bytes, flags: int) -> bytes:
        """Run a function of an open device."""
        entry = self._handles.find(handle)
        if flags:
            raise UsageError(f"call flags must be 0, got {flags:#x}", got=flags)
        limit = self._host.limits.call_bytes
        if len(data) > limit:
            raise TooLargeError(f"call data of {len(data)} bytes, at most {limit}", got=len(data), limit=limit)
        self._host.plugboard.called(entry.slot)
        with contained(self._host.services, self._host.tally, entry.slot.device, "call"):
            answer = bytes(entry.connection.call(function, data))
            if len(answer) > limit:
                raise ValueError(f"answer of {len(answer)} bytes, at most {limit}")
        return answer

    def shm(self, verb: messages.Shm) -> int:
        """Show a region to an open device; gives the signal handle, 0 without signal.

        Raises:
            UnsupportedError: from another machine. UsageError: out of bounds. ExistsError: the id is in use.
            ResourceError: over the quota.
        """
        entry = self._handles.find(verb.handle)
        ram = self._check_region(entry, verb)
        ends, signal_offset = None, None
        if verb.signal_offset >= 0:
            ends, signal_offset = _new_signal(), verb.signal_offset
            self._open_signals.add(ends)
            name = f"{entry.slot.interface.name}/{verb.id}"
            self._callers[ends] = _Caller(entry.opener, name, entry.slot.device, verb.priority)
        region = SharedRegion(
            verb.id,
            ram,
            verb.offset,
            verb.length,
            verb.flags,
            verb.priority,
            verb.cookie,
            signal_offset,
            ends,
        )
        try:
            with contained(self._host.services, self._host.tally, entry.slot.device, "shm"):
                entry.connection.shm(region)
        except BaseException:
            self._close_signal(ends)
            raise
        signal = self._signals.add((ends, entry.opener)) if ends is not None else 0
        entry.regions[verb.id] = _Region(region, signal)
        self._region_count += 1
        self._shared_bytes += verb.length
        if ends is not None and self.attached is not None:
            self.attached.send_signal(self.sid, signal, ends)
        return signal

    def kick(self, signal: int) -> None:
        """Kick a signal by message.

        Raises:
            NotFoundError: no such signal. PeerFault: one of its doorbells blocked. ResourceError: nobody can ring.
        """
        ends, _ = self._signals.find(signal)
        if self._is_silenced:
            raise PeerFault("this guest made a doorbell block; none of its own is rung any more", rule=_BLOCKED)
        self.ring(ends, ends.kick_fd)

    def ring(self, ends: SignalEnds, fd: int) -> None:
        """Have one doorbell of a signal rung, unless any of this session blocked or the signal is closed.

        Args:
            ends: the signal.
            fd: one of its descriptors.

        Raises:
            ResourceError: nobody can ring.
        """
        if ends in self._open_signals and not self._is_silenced:
            self._host.bells.ring(fd, self)

    def doorbell_blocked(self, fd: int) -> None:
        """Ring this guest no more: each of its doorbells that blocks would hold up the rings of others."""
        if self._is_silenced:  # the bells and the signals may each have met one
            return
        self._is_silenced = True
        for caller in self._callers.values():
            self._end_line(caller)
        fault = PeerFault("a guest made its doorbell block", rule=_BLOCKED)
        opener = next((opener for _, (ends, opener) in self._signals if fd in (ends.kick_fd, ends.call_fd)), None)
        if opener is None:
            self.report(fault, self.bus)
        else:
            opener.fault(fault)

    def call_guest(self, ends: SignalEnds) -> None:
        """Wake the guest for a signal, unless it is closed or any doorbell of this session blocked.

        Raises:
            ResourceError: nobody can ring.
        """
        if ends in self._open_signals and not self._is_silenced:
            self._host.services.signals.raise_soon(self.line(ends))

    def line(self, ends: SignalEnds) -> int:
        """The line that calls the guest for a signal; made when somebody asks first.

        Raises:
            NotFoundError: the signal is closed, or not rung any more. ResourceError: no room for it.
        """
        caller = self._callers.get(ends)
        if caller is None or self._is_silenced:
            raise NotFoundError("this signal is closed")
        if caller.line is None:
            signals = self._host.services.signals
            number = _named_line(signals, self.name, caller, lambda: self.doorbell_blocked(ends.call_fd))
            signals.route_to_fd(number, ends.call_fd)
            caller.line = number
        return caller.line

    def signal_of(self, handle: int) -> SignalEnds:
        """The signal with this handle; raises NotFoundError."""
        return self._signals.find(handle)[0]

    def reset(self) -> None:
        """Close everything it opened; it stays attached and hears nothing until it is ready again."""
        self._host.plugboard.model.deafen(self.bus, self)
        self.is_ready = False
        self.close_everything()

    # ---- descriptors and memory --------------------------------------------------------------------------------------

    def accept_gift(self, ticket: int, fd: int) -> None:
        """Keep a descriptor for a device; becomes the session's.

        Raises:
            ExistsError: the ticket is in use. ResourceError: too many wait.
        """
        if ticket in self._gifts:
            raise ExistsError(f"a descriptor waits under ticket {ticket} already", ticket=ticket)
        if len(self._gifts) >= self._host.limits.gifts_per_session:
            raise ResourceError("too many descriptors wait for devices", limit=self._host.limits.gifts_per_session)
        self._gifts[ticket] = fd

    def take_gift(self, ticket: int) -> int:
        """Hand a descriptor on; becomes the caller's."""
        try:
            return self._gifts.pop(ticket)
        except KeyError:
            raise NotFoundError(f"nothing was given under ticket {ticket}", ticket=ticket) from None

    def lend(self, fd: int) -> int:
        """Hand a descriptor to the guest; gives the ticket it takes it by.

        Raises:
            UnsupportedError: from another machine. PeerGone: the guest ended. ResourceError: it does not read.
        """
        if self.is_gone:
            raise PeerGone(f"guest {self.name!r} has ended", guest=self.name)
        if self.attached is None:
            raise UnsupportedError("descriptors cannot be lent to another machine", guest=self.name)
        ticket = next(self._lends)
        try:
            self.attached.lend(self.sid, ticket, fd)
        except ResourceError:
            self._host.tally.add(metrics.LENDS_REFUSED)
            raise
        self._host.tally.add(metrics.LENDS)
        return ticket

    def close_everything(self) -> None:
        """Close every handle, and every gift nobody took."""
        for handle, _ in self._handles:
            self.close(handle)
        for fd in self._gifts.values():
            os.close(fd)
        self._gifts.clear()

    def count_fault(self) -> None:
        """Take note of a rule this guest broke, of which others tell."""
        self.faults += 1
        self._host.tally.add(metrics.FAULTS)
        self.row.add("faults")

    def report(self, fault: PeerFault, device: str) -> None:
        """Take note of a rule this guest broke, and tell of it."""
        self.count_fault()
        self._host.services.log.warning("guest_fault", guest=self.name, device=device, fault=str(fault))
        self._host.services.publish(
            "guest.fault",
            guest=self.name,
            device=device,
            **{"rule": "", **_event_fields(fault)},
            text=str(fault),
        )

    def announce_link(self, dev_id: int, *, is_up: bool) -> None:
        """Let operators know of a carrier that changed."""
        self._host.services.publish("link.changed", guest=self.name, bus=self.bus, dev_id=dev_id, is_up=is_up)

    def _check_region(self, entry: _Open, verb: messages.Shm) -> Ram:
        limits = self._host.limits
        self._need_same_machine()
        if self.ram is None:
            raise UsageError("this guest joined without memory; join with ram_bytes", guest=self.name)
        if verb.id in entry.regions:
            raise ExistsError(f"region {verb.id} of this device is shared already", region=verb.id)
        if verb.offset < RAM_HEADER_BYTES:
            raise UsageError(
                f"region at {verb.offset} reaches into the memory's header",
                rule=f"offset >= {RAM_HEADER_BYTES}",
                got=verb.offset,
                limit=RAM_HEADER_BYTES,
            )
        if verb.offset + verb.length > self.ram.size:
            raise UsageError(
                f"region {verb.offset}+{verb.length} ends behind the memory of {self.ram.size} bytes",
                rule="offset + length <= size",
                got=verb.offset + verb.length,
                limit=self.ram.size,
            )
        if verb.signal_offset >= 0 and (verb.signal_offset % 4 or verb.signal_offset + SIGNAL_BYTES > verb.length):
            raise UsageError(
                f"signal at {verb.signal_offset} does not fit a region of {verb.length} bytes",
                rule=f"offset % 4 == 0 and offset + {SIGNAL_BYTES} <= length",
                got=verb.signal_offset,
                limit=verb.length,
            )
        if self._region_count >= limits.regions_per_session:
            raise ResourceError("too many shared regions; close some", limit=limits.regions_per_session)
        if self._shared_bytes + verb.length > limits.shared_bytes_per_session:
            raise ResourceError(
                f"{verb.length} more shared bytes are over the quota",
                got=self._shared_bytes + verb.length,
                limit=limits.shared_bytes_per_session,
            )
        return self.ram

    def _need_same_machine(self) -> None:
        if self.is_remote:
            raise UnsupportedError(
                "shared memory needs the same machine as the host node; from here only list and call work",
                guest=self.name,
            )

    def _drop_region(self, entry: _Region) -> None:
        self._region_count -= 1
        self._shared_bytes -= entry.region.length
        if entry.signal:
            self._signals.discard(entry.signal)
        self._close_signal(entry.region.signal)
        if not self.is_gone:
            self.post(messages.ShmClose(entry.region.cookie))

    def _close_signal(self, ends: SignalEnds | None) -> None:
        if ends is None:
            return
        self._open_signals.discard(ends)
        caller = self._callers.pop(ends, None)
        if caller is not None:
            self._end_line(caller)
        for fd in (ends.kick_fd, ends.call_fd):
            self._host.bells.forget(fd)
            os.close(fd)

    def _end_line(self, caller: _Caller) -> None:
        if caller.line is not None:
            self._host.services.signals.destroy(caller.line)
            caller.line = None


class _SessionOpener(Opener):
    """A session, as one device sees it."""

    def __init__(self, session: Session, dev_id: int) -> None:
        self._session = session
        self.guest = session.name
        self.bus = session.bus
        self.pid = session.pid
        self.uid = session.uid
        self.dev_id = dev_id
        self.is_remote = session.is_remote
        self.ram = session.ram

    def take_fd(self, ticket: int) -> int:
        return self._session.take_gift(ticket)

    def lend_fd(self, fd: int) -> int:
        return self._session.lend(fd)

    def link_state(self, *, is_up: bool) -> None:
        if self._session.is_ready and not self._session.is_gone:
            self._session.post(messages.LinkState(self.dev_id, is_up))
        self._session.announce_link(self.dev_id, is_up=is_up)

    def ring(self, signal: SignalEnds) -> None:
        self._session.call_guest(signal)

    def line(self, signal: SignalEnds) -> int:
        return self._session.line(signal)

    def signal_of(self, handle: int) -> SignalEnds:
        return self._session.signal_of(handle)

    def fault(self, fault: PeerFault) -> None:
        self._session.report(fault, f"{self.bus}/{self.dev_id}")


class SessionBook:
    """Every session of this host.

    Args:
        services: lent to devices; its clock and log are used here too.
        plugboard: buses and devices.
        limits: bounds of a session.
        tally: counts.
        bells: rings guests' doorbells.
        run_dir: of this host, with the attach socket, told to guests, and files of theirs.
    """

    def __init__(
        self,
        services: HostServices,
        plugboard: Plugboard,
        limits: Limits,
        tally: Tally,
        bells: Bells,
        *,
        run_dir: RunDir,
    ) -> None:
        self.services = services
        self.clock = services.clock
        self.plugboard = plugboard
        self.limits = limits
        self.tally = tally
        self.bells = bells
        self._run_dir = run_dir
        self._attach_path = str(run_dir.attach_socket)
        self._sessions: dict[str, Session] = {}
        self._tokens: dict[bytes, tuple[Session, int]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def all(self) -> list[Session]:
        """Every session, oldest first."""
        return list(self._sessions.values())

    def find(self, name: str) -> Session:
        """The session of the guest ``name``; raises NotFoundError."""
        try:
            return self._sessions[name]
        except KeyError:
            fix = did_you_mean(name, self._sessions, otherwise="`vbnet guest list` shows all")
            raise NotFoundError(f"there is no guest {name!r}; {fix}", guest=name) from None

    def welcome(self, peer: Peer, sid: int, hello: messages.Hello) -> messages.Welcome:
        """Open a session.

        Raises:
            ExistsError: sid or name is taken. NotFoundError: no such bus. PeerFault: other versions.
            ResourceError: too many sessions.
        """
        self._check_hello(peer, sid, hello)
        bus = hello.bus
        if bus is None:
            bus = _private_bus_name(hello)
            self.plugboard.create_bus(bus, is_private=True)
        session = Session(peer, sid, hello, bus, self)
        self.plugboard.model.join(bus, session)
        self.plugboard.joined(bus, 1)
        session.show_state()
        peer.sessions[sid] = session
        self._sessions[session.name] = session
        self.tally.add(metrics.SESSIONS)
        self.tally.set(metrics.GUESTS, len(self._sessions))
        self.services.publish(
            "guest.joined",
            guest=session.name,
            bus=bus,
            pid=session.pid,
            kind=session.kind,
            is_remote=session.is_remote,
        )
        heartbeat_ms = round(self.limits.heartbeat_s * 1000)
        if peer.is_remote:
            return messages.Welcome(b"", "", heartbeat_ms, bus)
        token = secrets.token_bytes(32)
        self._tokens[token] = (session, self.clock.now_ns() + seconds_to_ns(self.limits.token_lifetime_s))
        return messages.Welcome(token, self._attach_path, heartbeat_ms, bus)

    def spend_token(self, token: bytes) -> Session:
        """Whose token this is; it is worth nothing afterwards.

        Raises:
            NotPermittedError: forged, spent, expired, or its session ended.
        """
        session, expires_ns = self._tokens.pop(token, (None, 0))
        if session is None or session.is_gone:
            raise NotPermittedError("this token was never given, or was used, or its session ended")
        if expires_ns <= self.clock.now_ns():
            self.end(session, "attach-late")
            raise NotPermittedError(f"this token was older than {self.limits.token_lifetime_s} s; say hello again")
        return session

    def ready(self, session: Session) -> list[messages.DevAdd]:
        """Let a session hear of devices; gives what it must be told first.

        Raises:
            ExistsError: it is ready already.
        """
        slots = self.plugboard.model.ready(session.bus, session)
        session.is_ready = True
        session.show_state()
        self.services.publish("guest.ready", guest=session.name, bus=session.bus, pid=session.pid)
        return [messages.DevAdd(slot.dev_id, slot.interface.abi_type, slot.interface.name) for slot in slots]

    def end(self, session: Session, cause: str, *, tell: bool = True) -> None:
        """End a session and free all it held; harmless when it ended before.

        Args:
            session: whose time has come.
            cause: a word for the event, the counter and the guest.
            tell: whether the guest's process may still be there to be told.
        """
        if session.is_gone:
            return
        session.is_gone = True
        session.peer.sessions.pop(session.sid, None)
        del self._sessions[session.name]
        if session.attached is not None:
            session.attached.sessions.pop(session.sid, None)
        session.close_everything()
        self.bells.forget_owner(session)
        if session.ram is not None:
            session.ram.close()
            session.ram = None
        self.tally.guests.leave(session.name)
        with contextlib.suppress(OSError):  # a folder that somebody took away has no file either
            self._run_dir.program_counters(session.name).unlink(missing_ok=True)
        self.plugboard.model.leave(session.bus, session)
        self.plugboard.joined(session.bus, -1)
        if self.plugboard.model.is_private(session.bus):
            self.plugboard.clear_bus(session.bus)
        self.tally.add(metrics.ENDED, cause)
        self.tally.set(metrics.GUESTS, len(self._sessions))
        if tell:
            session.reply(0, messages.Refused("EPIPE", f"the host ended this session: {cause}", {"cause": cause}))
        self.services.log.info("guest_gone", guest=session.name, bus=session.bus, pid=session.pid, cause=cause)
        self.services.publish("guest.gone", guest=session.name, bus=session.bus, pid=session.pid, cause=cause)

    def take_unattached(self, pid: int) -> list[Session]:
        """The sessions that said hello for a process which is gone, and so can never attach; their tokens end."""
        found = [(token, session) for token, (session, _) in self._tokens.items() if session.pid == pid]
        for token, _ in found:
            del self._tokens[token]
        return [session for _, session in found]

    def expire_tokens(self) -> None:
        """End the sessions that did not attach in time."""
        now = self.clock.now_ns()
        for token, (session, expires_ns) in list(self._tokens.items()):
            if session.is_gone or expires_ns <= now:
                del self._tokens[token]
                self.end(session, "attach-late")

    def _check_hello(self, peer: Peer, sid: int, hello: messages.Hello) -> None:
        if sid in peer.sessions:
            raise ExistsError(f"session {sid} said hello already; negotiate to reset it", sid=sid)
        if hello.protocol != messages.PROTOCOL_VERSION or hello.abi != messages.ABI_VERSION:
            raise PeerFault(
                f"this host speaks protocol {messages.PROTOCOL_VERSION} with memory layout {messages.ABI_VERSION}, "
                f"the guest {hello.protocol} with {hello.abi}; update the older side",
                rule="same versions",
                got=[hello.protocol, hello.abi],
                limit=[messages.PROTOCOL_VERSION, messages.ABI_VERSION],
            )
        twin = self._sessions.get(hello.name)
        if twin is not None and twin.lost_by:  # what is left of it must not keep its successor out
            self.end(twin, twin.lost_by, tell=False)
        elif twin is not None:
            raise ExistsError(f"a guest named {hello.name!r} is here already", guest=hello.name)
        if len(peer.sessions) >= self.limits.sessions_per_connection:
            raise ResourceError(
                "too many guests in one process; start another", limit=self.limits.sessions_per_connection
            )
        if hello.bus is not None:
            self.plugboard.model.slots(hello.bus)


_SHOWN: Final = {
    SessionState.JOINING: "starting",
    SessionState.JOINED: "joined",
    SessionState.READY: "ready",
    SessionState.STUCK: "stuck",
    SessionState.GONE: "ended",
}


def _private_bus_name(hello: messages.Hello) -> str:
    """``<comm>-<pid>-<uuid>``: who and which, without a second one ever."""
    try:
        comm = Path(f"/proc/{hello.pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        comm = ""
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in comm[:16]).lstrip("._-")
    return f"{clean or 'guest'}-{hello.pid}-{uuid.uuid4()}"


def _new_signal() -> SignalEnds:
    try:
        kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            return SignalEnds(kick, os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except OSError:
            os.close(kick)
            raise
    except OSError as error:
        raise ResourceError(f"no eventfd for the signal: {error.strerror}", errno=error.errno or 0) from error


def _named_line(signals: SignalBook, guest: str, caller: _Caller, on_blocked: Callable[[], None]) -> int:
    """A line under the caller's name; a device that a guest opened twice has two of them, told apart by a number."""
    for twin in itertools.count(1):
        name = caller.name if twin == 1 else f"{caller.name}~{twin}"
        with contextlib.suppress(ExistsError):
            return signals.create(guest, name, caller.priority, device=caller.device, on_blocked=on_blocked)
    raise AssertionError  # counting never ends


def _event_fields(fault: PeerFault) -> dict[str, object]:
    """A fault's fields for an event, none of which may hide the event's own."""
    return {
        f"fault_{name}" if name in {"guest", "device", "text"} else name: value
        for name, value in messages.plain_fields(fault.fields).items()
    }

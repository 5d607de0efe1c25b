"""What guests may ask, and how they are answered: the host's end of the bus sockets.

Each message is answered, or refused by name, or dropped and counted; none can stop the host or hurt another guest.
What a guest that joined asks, and waits for, is always answered, well or not: a refusal costs no more than an answer.
Refusals that nobody asked for have an allowance, which strangers (processes without a session) share, so garbage from
new connections costs nothing to remember.
"""

from __future__ import annotations

from collections.abc import Callable

from vbnet.bus import messages
from vbnet.bus.messages import Envelope, GuestBody, MessageFault
from vbnet.bus.transport import ZmqPort
from vbnet.errors import (
    NotFoundError,
    NotPermittedError,
    PeerFault,
    TooLargeError,
    UsageError,
    VbnetError,
    refusal_name,
)
from vbnet.hostnode import metrics
from vbnet.hostnode.sessions import Peer, RefusalBudget, Session, SessionBook
from vbnet.units import seconds_to_ns

__all__ = ["BusDesk"]

_STRANGER = "a stranger"
_PROBE_DELAY_NS = 100_000_000
_TOLD = (messages.Alive, messages.Bye, messages.Signal)
"""What has no answer when all is well."""
Result = int | bytes | tuple[messages.Listed, ...] | None


class BusDesk:
    """Answers guests on one ROUTER socket.

    Args:
        book: the sessions of this host.
        is_remote: whether those who connect here are on other machines.
        later: runs a function at the next turn of the event loop.
    """

    def __init__(self, book: SessionBook, *, is_remote: bool, later: Callable[[Callable[[], None]], object]) -> None:
        self._book = book
        self._is_remote = is_remote
        self._later = later
        self._peers: dict[bytes, Peer] = {}
        self._port: ZmqPort | None = None
        self._is_probe_due = False
        self._strangers = RefusalBudget(book.limits, book.clock)

    def serve(self, port: ZmqPort) -> None:
        """Answer through this port from now on."""
        self._port = port

    def close(self, linger_ms: int) -> None:
        """Stop answering."""
        if self._port is not None:
            self._port.close(linger_ms)

    def __len__(self) -> int:
        return len(self._peers)

    def receive(self, parts: list[bytes], surplus: int) -> None:
        """Take one message off the socket."""
        routing_id = parts[0]
        peer = self._peers.get(routing_id)
        if peer is not None:
            peer.last_heard_ns = self._book.clock.now_ns()
            if peer.is_stuck:
                self._recovered(peer)
        if parts[1:] == [messages.ALIVE]:
            return
        if peer is None:
            peer = self._stranger(routing_id)
        sid = seq = 0
        is_awaited = False
        try:
            data = self._whole(parts, surplus)
            envelope = messages.decode_envelope(data)
            sid, seq = envelope.sid, envelope.seq
            body = messages.decode_guest_body(envelope)
            is_awaited = self._is_awaited(peer, sid, body)
            self._handle(peer, envelope, body)
        except MessageFault as fault:
            self._refuse(peer, fault.sid or sid, fault.seq or seq, fault)
        except VbnetError as error:
            self._refuse(peer, sid, seq, error, is_awaited=is_awaited)
        except Exception as error:  # no message may stop the host
            self._book.services.log.exception("request_failed")
            self._refuse(peer, sid, seq, error, is_awaited=is_awaited)

    def probe_soon(self) -> None:
        """Somebody hung up, the socket does not say who: ask everyone a moment later, and so find out."""
        if not self._is_probe_due:
            self._is_probe_due = True
            self._book.clock.call_later(_PROBE_DELAY_NS, self._probe)

    def _probe(self) -> None:
        self._is_probe_due = False
        for peer in list(self._peers.values()):
            peer.send(messages.PROBE)

    def watch(self) -> None:
        """Find out who was not heard for too long; called once a heartbeat."""
        limits = self._book.limits
        silence_ns = seconds_to_ns(limits.heartbeat_s * limits.heartbeat_misses)
        oldest = self._book.clock.now_ns() - silence_ns
        for peer in list(self._peers.values()):
            if not peer.sessions:
                del self._peers[peer.routing_id]
            elif peer.last_heard_ns < oldest:
                self._silent(peer)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _whole(self, parts: list[bytes], surplus: int) -> bytes:
        if len(parts) != 2 or surplus:  # noqa: PLR2004 - who it is from, and the message
            raise MessageFault(f"{len(parts) + surplus - 1} parts, a message has one", rule="parts == 1")
        limit = self._book.limits.message_bytes
        if len(parts[1]) > limit:
            raise TooLargeError(f"message of {len(parts[1])} bytes, at most {limit}", got=len(parts[1]), limit=limit)
        return parts[1]

    def _is_awaited(self, peer: Peer, sid: int, body: GuestBody) -> bool:
        session = peer.sessions.get(sid)
        return session is not None and session.is_joined and not isinstance(body, _TOLD)

    def _handle(self, peer: Peer, envelope: Envelope, body: GuestBody) -> None:
        sid, seq = envelope.sid, envelope.seq
        self._book.tally.add(metrics.REQUESTS, type(body).__name__)
        if isinstance(body, messages.Hello):
            if sid == 0:
                raise UsageError("session 0 is the process itself; choose another sid", sid=0)
            welcome = self._book.welcome(peer, sid, body)
            if peer.budget is self._strangers:
                peer.budget = RefusalBudget(self._book.limits, self._book.clock)
            self._peers[peer.routing_id] = peer
            peer.last_heard_ns = self._book.clock.now_ns()
            peer.send(messages.encode(sid, seq, welcome))
            return
        session = peer.sessions.get(sid)
        if session is None:
            if isinstance(body, messages.Bye):
                return
            raise NotFoundError(f"there is no session {sid} on this connection; say hello first", sid=sid)
        session.row.add("requests")
        if isinstance(body, messages.Bye):
            self._book.end(session, "bye", tell=False)
        elif isinstance(body, messages.Signal):
            session.kick(body.signal)
        elif isinstance(body, messages.Ready):
            self._ready(session, seq)
        else:
            session.reply(seq, messages.Answer(self._answer(session, body)))

    def _ready(self, session: Session, seq: int) -> None:
        """Every device present, then the answer, which so ends the replay; what is plugged later follows by itself."""
        self._need_joined(session)
        for event in self._book.ready(session):
            session.post(event)
        session.reply(seq, messages.Answer(None))

    def _answer(self, session: Session, body: GuestBody) -> Result:
        self._need_joined(session)
        match body:
            case messages.Call():
                return session.call(body.handle, body.function, body.data, body.flags)
            case messages.Open():
                return session.open(body.dev_id, body.version)
            case messages.Close():
                session.close(body.handle)
                return None
            case messages.Shm():
                return session.shm(body)
            case messages.List():
                slots = self._book.plugboard.model.slots(session.bus)
                return tuple(
                    messages.Listed(slot.dev_id, slot.interface.abi_type, slot.interface.name) for slot in slots
                )
            case messages.Negotiate():
                self._negotiate(session, body)
                return None
            case _:
                raise UsageError(f"{type(body).__name__} belongs to session 0", sid=session.sid)

    def _negotiate(self, session: Session, body: messages.Negotiate) -> None:
        if body.magic != messages.NEGOTIATE_MAGIC:
            raise UsageError(f"magic {body.magic:#x} is not {messages.NEGOTIATE_MAGIC:#x}", got=body.magic)
        if body.version != messages.PROTOCOL_VERSION:
            raise PeerFault(
                f"this host speaks protocol {messages.PROTOCOL_VERSION}, not {body.version}",
                rule="version",
                got=body.version,
                limit=messages.PROTOCOL_VERSION,
            )
        session.reset()

    def _need_joined(self, session: Session) -> None:
        if not session.is_joined:
            raise NotPermittedError("present the token on the attach socket first", guest=session.name)

    def _refuse(self, peer: Peer, sid: int, seq: int, error: Exception, *, is_awaited: bool = False) -> None:
        code = refusal_name(error)
        tally = self._book.tally
        tally.add(metrics.REFUSED, code)
        session = peer.sessions.get(sid)
        self._book.services.refused("bus.refused", session.name if session is not None else _STRANGER, error)
        if not is_awaited and not peer.budget.spend():
            tally.add(metrics.SILENCED)
            return
        message = str(error) if isinstance(error, VbnetError) else "a bug of the host; see its log"
        fields = error.fields if isinstance(error, VbnetError) else {}
        peer.send(messages.encode(sid, seq, messages.Refused(code, message, messages.plain_fields(fields))))

    def _stranger(self, routing_id: bytes) -> Peer:
        assert self._port is not None  # noqa: S101 - a message came through it
        return Peer(
            self._port,
            routing_id,
            is_remote=self._is_remote,
            budget=self._strangers,
            on_lost=self._lost,
        )

    def _lost(self, peer: Peer, reason: str) -> None:
        self._later(lambda: self._forget(peer, reason.replace(" ", "-")))

    def _forget(self, peer: Peer, cause: str) -> None:
        """A process cannot be reached: end its sessions, and let it know through its attach socket if it lives."""
        if self._port is not None:
            self._port.take_last()  # a goodbye may have come before
        if self._peers.get(peer.routing_id) is peer:
            del self._peers[peer.routing_id]
        for session in list(peer.sessions.values()):
            attached = session.attached
            self._book.end(session, cause, tell=False)
            if attached is not None and not attached.sessions:
                attached.hang_up()

    def _silent(self, peer: Peer) -> None:
        if not peer.is_stuck:
            peer.is_stuck = True
            for session in peer.sessions.values():
                session.show_state()
                self._book.services.publish("guest.stuck", guest=session.name, bus=session.bus, pid=session.pid)
        peer.send(messages.PROBE)

    def _recovered(self, peer: Peer) -> None:
        peer.is_stuck = False
        for session in peer.sessions.values():
            session.show_state()
            self._book.services.publish("guest.recovered", guest=session.name, bus=session.bus, pid=session.pid)

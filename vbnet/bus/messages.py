"""What travels on the bus: typed, versioned messages and their bytes.

A message is the MessagePack array ``[version, sid, seq, body]``; a body is the array ``[tag, field…]``. A request
carries a ``seq`` that its sender chose, and the reply repeats it; events carry ``seq`` 0. ``sid`` names the session
on this connection; 0 is the process as a whole. The envelope is decoded before the body, so that a message with a
wrong version or an unknown body can still be refused by name. The byte tables are in docs/wire/bus.md.

Everything is validated by type, range and length while it is decoded: a decoder either gives a whole, lawful message or
raises ``MessageFault``; extra or missing fields are a fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from vbnet.bus.limits import MAX_PRIORITY, NAME_BYTES
from vbnet.errors import PeerFault

__all__ = [
    "ABI_VERSION",
    "ALIVE",
    "NEGOTIATE_MAGIC",
    "PROBE",
    "PROTOCOL_VERSION",
    "Alive",
    "Answer",
    "Bye",
    "Call",
    "Close",
    "DevAdd",
    "DevDrop",
    "Envelope",
    "Event",
    "GuestBody",
    "Hello",
    "HostBody",
    "LinkState",
    "List",
    "Listed",
    "MessageFault",
    "Name",
    "Negotiate",
    "Open",
    "Probe",
    "Ready",
    "Refused",
    "Request",
    "Shm",
    "ShmClose",
    "Signal",
    "SignalText",
    "Welcome",
    "decode_envelope",
    "decode_guest_body",
    "decode_host_body",
    "encode",
    "plain_fields",
]

PROTOCOL_VERSION: Final = 1
"""Version of these messages; both sides must speak the same one."""

ABI_VERSION: Final = 1
"""Version of the memory layouts (ring, signal, RAM head) that the guest was built with."""

NEGOTIATE_MAGIC: Final = 0xBF53EEF5

U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
U64 = Annotated[int, Meta(ge=0)]  # MessagePack has nothing larger
I63 = Annotated[int, Meta(ge=0, le=0x7FFF_FFFF_FFFF_FFFF)]
SignalText = Annotated[
    str, Meta(min_length=1, max_length=256, description="1 to 256 characters: a number, GUEST/NAME, or NAME")
]
"""What names a signal to the host: a number, ``GUEST/NAME``, or an operator's ``NAME``."""
Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=NAME_BYTES,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*\Z",
        description=f"1 to {NAME_BYTES} letters, digits and . _ : @ -, the first a letter or digit",
    ),
]
Word = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-z][a-z0-9_:.-]*\Z")]


class MessageFault(PeerFault):
    """The bytes are not a lawful message. ``sid`` and ``seq`` are what could still be read, else 0."""

    def __init__(self, message: str, /, sid: int = 0, seq: int = 0, **fields: object) -> None:
        super().__init__(message, sid=sid, seq=seq, **fields)
        self.sid = sid
        self.seq = seq


class Envelope(Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """What surrounds every body."""

    version: U16
    sid: U32
    seq: U32
    body: msgspec.Raw


class Body(Struct, array_like=True, forbid_unknown_fields=True, frozen=True, tag_field="tag"):
    """Base of all bodies: an array that starts with its tag."""


# ---- guest process → host ------------------------------------------------------------------------------------------


class Hello(Body, tag=1, frozen=True):
    """Ask for a session. ``bus`` None asks for a private bus; ``pid`` is checked against the attach socket."""

    name: Name
    bus: Name | None
    pid: U32
    kind: Word
    protocol: U16
    abi: U16


class Ready(Body, tag=2, frozen=True):
    """The guest can take events now: every device present as DevAdd, then the answer, then live events."""


class Open(Body, tag=3, frozen=True):
    """Connect to a device with this version of the device's ABI; answered with a handle."""

    dev_id: I63
    version: U32


class Close(Body, tag=4, frozen=True):
    """End a connection; answered after the ShmClose of each of its regions."""

    handle: I63


class Call(Body, tag=5, frozen=True):
    """Run a device's function; answered with its bytes. ``flags`` must be 0."""

    handle: I63
    function: U32
    data: bytes
    flags: U32


class Shm(Body, tag=6, frozen=True):
    """Show a region of the guest's own memory to the device; answered with a signal handle, 0 without signal.

    ``signal_offset`` is relative to the region, -1 for no signal. ``cookie`` is the guest's own and comes back in
    ShmClose.
    """

    handle: I63
    id: U32
    offset: I63
    length: Annotated[int, Meta(ge=1, le=0x7FFF_FFFF_FFFF_FFFF)]
    flags: U32
    signal_offset: Annotated[int, Meta(ge=-1, le=0x7FFF_FFFF_FFFF_FFFF)]
    priority: Annotated[int, Meta(ge=0, le=MAX_PRIORITY)]
    cookie: U64


class Signal(Body, tag=7, frozen=True):
    """Kick by message instead of eventfd: slow, never answered unless refused."""

    signal: I63


class Negotiate(Body, tag=8, frozen=True):
    """Reset this session: everything it opened is closed, no events until the next Ready."""

    magic: U32
    version: U16


class Alive(Body, tag=9, frozen=True):
    """The process is alive; sid 0, never answered."""


class Bye(Body, tag=10, frozen=True):
    """The session ends on purpose; never answered."""


class List(Body, tag=11, frozen=True):
    """Which devices are on my bus now? Answered with a list of Listed."""


GuestBody = Hello | Ready | Open | Close | Call | Shm | Signal | Negotiate | Alive | Bye | List
Request = Hello | Ready | Open | Close | Call | Shm | Negotiate | List

# ---- host → guest process ------------------------------------------------------------------------------------------


class Listed(Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One device on the bus: an array of three, no tag."""

    dev_id: I63
    type: Word
    name: Name


class Welcome(Body, tag=64, frozen=True):
    """The session exists. An empty ``attach_path`` and token: another machine, no shared memory."""

    token: bytes
    attach_path: str
    heartbeat_ms: U32
    bus: Name


class Answer(Body, tag=65, frozen=True):
    """The request with this seq was done."""

    result: int | bytes | tuple[Listed, ...] | None


class Refused(Body, tag=66, frozen=True):
    """The request with this seq was not done, and changed nothing. ``code`` is an errno name."""

    code: str
    message: str
    detail: dict[str, Any]


class DevAdd(Body, tag=67, frozen=True):
    """A device is on the bus."""

    dev_id: I63
    type: Word
    name: Name


class DevDrop(Body, tag=68, frozen=True):
    """A device left the bus; its dev-id never comes back."""

    dev_id: I63


class ShmClose(Body, tag=69, frozen=True):
    """The host no longer touches the region of this cookie: the last word about it."""

    cookie: U64


class LinkState(Body, tag=70, frozen=True):
    """The carrier of a device went up or down."""

    dev_id: I63
    is_up: bool


class Probe(Body, tag=71, frozen=True):
    """Are you alive? Sent with sid 0 to a process that was not heard for some time; answer with Alive."""


HostBody = Welcome | Answer | Refused | DevAdd | DevDrop | ShmClose | LinkState | Probe
Event = DevAdd | DevDrop | ShmClose | LinkState

_encoder = msgspec.msgpack.Encoder()
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
_guest_decoder: msgspec.msgpack.Decoder[GuestBody] = msgspec.msgpack.Decoder(GuestBody)
_host_decoder: msgspec.msgpack.Decoder[HostBody] = msgspec.msgpack.Decoder(HostBody)


def encode(sid: int, seq: int, body: Body) -> bytes:
    """Turn a message into its bytes."""
    return _encoder.encode((PROTOCOL_VERSION, sid, seq, body))


ALIVE: Final = encode(0, 0, Alive())
PROBE: Final = encode(0, 0, Probe())


def plain_fields(fields: Mapping[str, object]) -> dict[str, Any]:
    """An error's fields as values any language has: what is neither number, text nor list of these becomes text."""
    return {name: _plain(value) for name, value in fields.items()}


def _plain(value: object) -> object:
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value)


def decode_envelope(data: bytes) -> Envelope:
    """Read the outside of a message.

    Raises:
        MessageFault: the bytes are no envelope, or of another protocol version (the peer's fault).
    """
    try:
        envelope = _envelope_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageFault(f"not a message: {error}; it was dropped", rule="[version, sid, seq, body]") from error
    if envelope.version != PROTOCOL_VERSION:
        raise MessageFault(
            f"protocol version {envelope.version} is not spoken here, only {PROTOCOL_VERSION}; update the older side",
            sid=envelope.sid,
            seq=envelope.seq,
            rule="version == 1",
            got=envelope.version,
            limit=PROTOCOL_VERSION,
        )
    return envelope


def decode_guest_body(envelope: Envelope) -> GuestBody:
    """Read the body of a message from a guest process.

    Raises:
        MessageFault: unknown tag, wrong type, length, range or number of fields (the guest's fault).
    """
    try:
        return _guest_decoder.decode(envelope.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageFault(f"malformed body: {error}", sid=envelope.sid, seq=envelope.seq, rule="body") from error


def decode_host_body(envelope: Envelope) -> HostBody:
    """Read the body of a message from the host.

    Raises:
        MessageFault: as for ``decode_guest_body``, with the host at fault.
    """
    try:
        return _host_decoder.decode(envelope.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageFault(f"malformed body: {error}", sid=envelope.sid, seq=envelope.seq, rule="body") from error

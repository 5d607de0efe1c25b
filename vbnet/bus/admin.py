"""What operators say to a host node, and what they are answered: typed and versioned.

A request is the MessagePack array ``[version, seq, verb]``, the verb a map like ``{"verb": "bus.create", "name":
"lan"}``; a reply is ``[version, seq, body]`` with the body ``[0, result]`` or ``[1, code, message, detail]``. Results
are plain maps and lists, so that a program in any language can be an operator. Events go out separately, as two
parts: the topic, and a JSON object.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta, Struct

from vbnet.bus.limits import MAX_ADMIN_VERBS, MAX_PRIORITY
from vbnet.bus.messages import PROTOCOL_VERSION, U16, U32, MessageFault, Name, SignalText
from vbnet.errors import UsageError

__all__ = [
    "AdminFailure",
    "AdminReply",
    "AdminResult",
    "BusInfo",
    "ClassInfo",
    "DeviceInfo",
    "GuestInfo",
    "NodeInfo",
    "PlugInfo",
    "Verb",
    "WedgedLevel",
    "check_verb",
    "decode_reply",
    "decode_request",
    "encode_reply",
    "encode_request",
]

Text = Annotated[str, Meta(max_length=4096)]
Priority = Annotated[int, Meta(ge=0, le=MAX_PRIORITY)]
Port = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]


class _Verb(Struct, tag_field="verb", frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all verbs: a map that names its verb."""


class NodeInfoVerb(_Verb, tag="node.info", frozen=True):
    """Who is this host node, and how is it?"""


class NodeShutdown(_Verb, tag="node.shutdown", frozen=True):
    """Answer, then end."""


class BusCreate(_Verb, tag="bus.create", frozen=True):
    """Make an empty bus."""

    name: Name


class BusList(_Verb, tag="bus.list", frozen=True):
    """All buses."""


class BusDelete(_Verb, tag="bus.delete", frozen=True):
    """Remove a bus without devices and guests; with ``force`` unplug and reset first."""

    name: Name
    force: bool = False


class DeviceCreate(_Verb, tag="device.create", frozen=True):
    """Make a device; with ``type`` also set its type, then its attributes in order. All or nothing."""

    name: Name
    type: str | None = None
    attributes: dict[str, Text] = {}


class DeviceSet(_Verb, tag="device.set", frozen=True):
    """Set one attribute; ``type`` once, before any other."""

    name: Name
    attribute: str
    value: Text


class DeviceGet(_Verb, tag="device.get", frozen=True):
    """One device."""

    name: Name


class DeviceList(_Verb, tag="device.list", frozen=True):
    """All devices."""


class DevicePlug(_Verb, tag="device.plug", frozen=True):
    """Put a device on a bus; answered with its new dev-ids."""

    name: Name
    bus: Name


class DeviceUnplug(_Verb, tag="device.unplug", frozen=True):
    """Take a device off a bus."""

    name: Name
    bus: Name


class DeviceDelete(_Verb, tag="device.delete", frozen=True):
    """Remove a device; with ``force`` unplug it everywhere first."""

    name: Name
    force: bool = False


class ClassList(_Verb, tag="class.list", frozen=True):
    """All device classes."""


class GuestList(_Verb, tag="guest.list", frozen=True):
    """All guests."""


class GuestReset(_Verb, tag="guest.reset", frozen=True):
    """Close all a guest has open and show it its devices anew."""

    name: Name


class SwitchCreate(_Verb, tag="switch.create", frozen=True):
    """Make a switch."""

    name: Name
    ageing_s: Annotated[float, Meta(ge=1, le=86400 * 365)] = 300.0


class SwitchList(_Verb, tag="switch.list", frozen=True):
    """Names of all switches."""


class SwitchDelete(_Verb, tag="switch.delete", frozen=True):
    """Remove a switch without ports."""

    name: Name


class SwitchMacs(_Verb, tag="switch.macs", frozen=True):
    """What a switch learned."""

    name: Name


class PortList(_Verb, tag="port.list", frozen=True):
    """All ports."""


class PortAdd(_Verb, tag="port.add", frozen=True):
    """Join a TAP of the host to a switch, by the TAP's name; answered with the port's id.

    With ``offloads`` its kernel leaves checksums and segments to the switch, and takes them from it.
    """

    switch: Name
    tap: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=15,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z",
            description="1 to 15 letters, digits and . _ -, the first a letter or digit",
        ),
    ]
    mtu: Annotated[int, Meta(ge=68, le=65535)] = 1500
    offloads: bool = True


class PortListen(_Verb, tag="port.listen", frozen=True):
    """Listen for front ends of vhost-user, whose network card is a port of a switch; answered with the port's id.

    Without ``socket`` it is in the host node's run directory. ``port.list`` has its path as the port's ``device``. With
    ``connect`` the front end listens there, and the port connects, again and again whenever nobody is there. With
    ``front_end`` the port is the front end, and the other end is the back end.
    """

    switch: Name
    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=63,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z",
            description="1 to 63 letters, digits and . _ -, the first a letter or digit",
        ),
    ]
    socket: (
        Annotated[
            str,
            Meta(
                min_length=2,
                max_length=107,
                pattern=r"^/[^\x00]*\Z",
                description="an absolute path of at most 107 characters",
            ),
        ]
        | None
    ) = None
    mac: (
        Annotated[
            str,
            Meta(
                pattern=r"^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}\Z",
                description="six bytes in hexadecimal, such as 02:00:00:00:00:22",
            ),
        ]
        | None
    ) = None
    mtu: Annotated[int, Meta(ge=68, le=65535)] = 1500
    connect: bool = False
    front_end: bool = False


class PortSet(_Verb, tag="port.set", frozen=True):
    """Change an attribute of a TAP's port, or of one for front ends, while it runs."""

    id: Port
    attribute: str
    value: Text


class PortRemove(_Verb, tag="port.remove", frozen=True):
    """Take a port off its switch."""

    id: Port


class SignalList(_Verb, tag="signal.list", frozen=True):
    """All signals, with routes and counts."""


class SignalCreate(_Verb, tag="signal.create", frozen=True):
    """Make a signal of the operator's, which leads nowhere yet; answered with its number."""

    name: SignalText
    priority: Priority = 0


class SignalRoute(_Verb, tag="signal.route", frozen=True):
    """Lead a signal elsewhere.

    Where ``like`` leads; or to ``vcpu`` and ``vector`` of ``guest``, each as it is if not given; or with ``nowhere``
    nowhere, where its raises are kept as one.
    """

    signal: SignalText
    like: SignalText | None = None
    guest: Name | None = None
    vcpu: U32 | None = None
    vector: U32 | None = None
    nowhere: bool = False


class SignalSet(_Verb, tag="signal.set", frozen=True):
    """Change a signal's priority, or mask or unmask it; what is None stays."""

    signal: SignalText
    priority: Priority | None = None
    is_masked: bool | None = None


class SignalRaise(_Verb, tag="signal.raise", frozen=True):
    """Raise a signal."""

    signal: SignalText


class SignalGrant(_Verb, tag="signal.grant", frozen=True):
    """Let a guest raise a signal; with ``revoke`` no more."""

    signal: SignalText
    guest: Name
    revoke: bool = False


class SignalDestroy(_Verb, tag="signal.destroy", frozen=True):
    """Remove a signal that an operator or a guest named; those of devices go with their device."""

    signal: SignalText


class EventTopics(_Verb, tag="event.topics", frozen=True):
    """Which events are there, and where?"""


class EventPublish(_Verb, tag="event.publish", frozen=True):
    """Publish what a lab's supervisor saw: a topic of ``BY_LABS``, and its fields."""

    topic: Name
    fields: dict[str, Text | int | float | bool | list[Text] | None]


class Apply(_Verb, tag="apply", frozen=True):
    """Many verbs in order; the first that is refused stops it, the ones before stay done."""

    verbs: Annotated[list[msgspec.Raw], Meta(max_length=MAX_ADMIN_VERBS)]


Verb = (
    NodeInfoVerb
    | NodeShutdown
    | BusCreate
    | BusList
    | BusDelete
    | DeviceCreate
    | DeviceSet
    | DeviceGet
    | DeviceList
    | DevicePlug
    | DeviceUnplug
    | DeviceDelete
    | ClassList
    | GuestList
    | GuestReset
    | SwitchCreate
    | SwitchList
    | SwitchDelete
    | SwitchMacs
    | PortList
    | PortAdd
    | PortListen
    | PortSet
    | PortRemove
    | SignalList
    | SignalCreate
    | SignalRoute
    | SignalSet
    | SignalRaise
    | SignalGrant
    | SignalDestroy
    | EventTopics
    | EventPublish
    | Apply
)

# ---- results -------------------------------------------------------------------------------------------------------


class NodeInfo(Struct, frozen=True):
    """A host node. ``counters`` are by their Prometheus names; ``events`` is where to subscribe."""

    name: str
    pid: int
    vbnet: str
    protocol: int
    abi: int
    libzmq: str
    started_at: str
    uptime_s: float
    buses: int
    devices: int
    guests: int
    endpoints: list[str]
    events: str
    counters: dict[str, int]


class BusInfo(Struct, frozen=True):
    """A bus: names of the devices and guests on it."""

    name: str
    is_private: bool
    devices: list[str]
    guests: list[str]


class PlugInfo(Struct, frozen=True):
    """One interface on one bus."""

    bus: str
    dev_id: int
    interface: str
    abi_type: str
    open_count: int


class DeviceInfo(Struct, frozen=True):
    """A device; ``type`` is None until it is set."""

    name: str
    type: str | None
    attributes: dict[str, str]
    plugs: list[PlugInfo]


class ClassInfo(Struct, frozen=True):
    """A device class."""

    name: str
    kind: str
    abi_types: list[str]


class WedgedLevel(Struct, frozen=True):
    """A handler that has not returned for too long, by what its guest's controller says."""

    vcpu: int
    priority: int
    vector: int
    since_s: float
    pending: int


class GuestInfo(Struct, frozen=True):
    """A guest: ``state`` is joining, joined, ready, stuck or wedged; ``devices`` is what it has open, by dev-id.

    ``quarantined`` has a line for each device of its own on whose ports it broke a rule, and which is served no more.
    """

    name: str
    bus: str
    pid: int
    uid: int
    kind: str
    state: str
    is_remote: bool
    age_s: float
    faults: int
    ram_bytes: int
    devices: list[int]
    wedged: list[WedgedLevel] = []
    quarantined: list[str] = []


# ---- bytes ---------------------------------------------------------------------------------------------------------


class _Request(Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    version: U16
    seq: U32
    verb: msgspec.Raw


class AdminResult(Struct, array_like=True, forbid_unknown_fields=True, frozen=True, tag=0):
    """It was done."""

    result: msgspec.Raw


class AdminFailure(Struct, array_like=True, forbid_unknown_fields=True, frozen=True, tag=1):
    """It was refused and changed nothing (except the verbs of an ``apply`` before ``detail["index"]``)."""

    code: str
    message: str
    detail: dict[str, Any]


class AdminReply(Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """What surrounds a reply."""

    version: U16
    seq: U32
    body: AdminResult | AdminFailure


_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(_Request)
_verb_decoder: msgspec.msgpack.Decoder[Verb] = msgspec.msgpack.Decoder(Verb)
_reply_decoder = msgspec.msgpack.Decoder(AdminReply)


def encode_request(seq: int, verb: Struct) -> bytes:
    """Turn a request into its bytes."""
    return _encoder.encode((PROTOCOL_VERSION, seq, verb))


def decode_request(data: bytes) -> tuple[int, msgspec.Raw]:
    """Read the outside of a request: its seq, and the verb's bytes.

    Raises:
        MessageFault: no request, or of another version.
    """
    try:
        request = _request_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageFault(f"not a request: {error}", rule="[version, seq, verb]") from error
    if request.version != PROTOCOL_VERSION:
        raise MessageFault(
            f"protocol version {request.version} is not spoken here, only {PROTOCOL_VERSION}",
            seq=request.seq,
            rule="version == 1",
        )
    return request.seq, request.verb


def decode_verb(data: msgspec.Raw | bytes) -> Verb:
    """Read a verb.

    Raises:
        MessageFault: unknown verb, or its arguments do not fit.
    """
    try:
        return _verb_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageFault(f"malformed verb: {error}", rule="verb") from error


def check_verb(verb: Struct) -> None:
    """Say what a host would refuse of a verb's arguments, in words: for whoever made the verb, before it is sent.

    Raises:
        UsageError: an argument is none that the verb may have.
    """
    for field in msgspec.structs.fields(verb):
        value = getattr(verb, field.name)
        try:
            msgspec.convert(value, field.type)
        except msgspec.ValidationError as error:
            allowed = _description(field.type)
            what = f"{field.name}: {error}" if allowed is None else f"{field.name} {value!r} cannot be: {allowed}"
            raise UsageError(what, argument=field.name, limit=allowed) from error


def _description(kind: object) -> str | None:
    """What an annotation says about its values in words, also one of several that may be."""
    for part in get_args(kind):
        found = part.description if isinstance(part, Meta) else _description(part)
        if found is not None:
            return str(found)
    return None


def encode_reply(seq: int, body: AdminResult | AdminFailure) -> bytes:
    """Turn a reply into its bytes."""
    return _encoder.encode((PROTOCOL_VERSION, seq, body))


def encode_value(value: object) -> msgspec.Raw:
    """Turn a result into the bytes that go inside a reply."""
    return msgspec.Raw(_encoder.encode(value))


def decode_reply(data: bytes) -> AdminReply:
    """Read a reply.

    Raises:
        MessageFault: no reply, or of another version (the host's fault).
    """
    try:
        reply = _reply_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageFault(f"not a reply: {error}", rule="[version, seq, body]") from error
    if reply.version != PROTOCOL_VERSION:
        raise MessageFault(f"protocol version {reply.version} is not spoken here", seq=reply.seq, rule="version == 1")
    return reply

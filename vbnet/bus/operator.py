"""The operator's client: everything a host node lets an administrator do, as methods.

``Operator`` is for asyncio programs, ``SyncOperator`` for plain ones; both have the same methods, named like the
verbs. Every call ends within its deadline; what the host refuses is raised as the class of ``vbnet.errors`` it stands
for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from types import NoneType
from typing import Any, Self, TypeVar

import msgspec
import zmq

from vbnet.bus import admin
from vbnet.bus.admin import BusInfo, ClassInfo, DeviceInfo, GuestInfo, NodeInfo
from vbnet.bus.closing import Closing
from vbnet.bus.handover import Handover
from vbnet.bus.keys import TcpAddress, secure_client
from vbnet.bus.limits import MAX_ADMIN_VERBS, MAX_MESSAGE_BYTES, REQUEST_DEADLINE_S
from vbnet.bus.link import Address, Link, Requests, Secrets, resolve_address
from vbnet.bus.loopthread import LoopThread
from vbnet.bus.messages import MessageFault
from vbnet.bus.rundir import RunDir
from vbnet.bus.transport import ConnectionWatch, ZmqPort, new_socket
from vbnet.clock import Clock, MonotonicClock
from vbnet.errors import ClosedError, PeerGone, UnsupportedError, VbnetError, error_from_refusal

__all__ = ["EventStream", "Operator", "SyncOperator"]

T = TypeVar("T")
_EVENT_BACKLOG = 4096
_ENVELOPE_BYTES = 256


class EventStream:
    """Events of a host node, as they happen; an async iterator of plain dicts with ``topic``, ``seq`` and ``time``.

    Nothing that happened before it was made is seen. ``missed`` counts events lost because this side was too slow.
    Raises PeerGone from the iteration when the host ends.
    """

    def __init__(self, address: RunDir | TcpAddress, topics: Sequence[str], secrets: Secrets | None) -> None:
        self.missed = 0
        self._last_seq = 0
        self._waiting: deque[dict[str, Any]] = deque()
        self._arrived = asyncio.Event()
        self._end: VbnetError | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = new_socket(self._context, zmq.SUB, outbound=_EVENT_BACKLOG)
        if secrets is not None:
            secure_client(socket, secrets.keys, secrets.server_public)
        self._topics = tuple(topics)
        self._is_all = "" in self._topics
        for topic in topics:
            socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._watch = ConnectionWatch(socket, self._lost)
        self._port = ZmqPort(socket, parts=2, on_message=self._received)
        socket.connect(address.endpoint(2))

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        return self

    async def __anext__(self) -> dict[str, Any]:
        while not self._waiting:
            if isinstance(self._end, ClosedError):
                raise StopAsyncIteration
            if self._end is not None:
                raise self._end
            await self.arrived()
        return self._waiting.popleft()

    async def arrived(self) -> None:
        """Wait until there is an event, which stays, or the stream has ended. Without a deadline of its own."""
        while not self._waiting and self._end is None:
            self._arrived.clear()
            await self._arrived.wait()

    def close(self) -> None:
        """Listen no more; the iteration ends."""
        if self._end is None or not isinstance(self._end, ClosedError):
            self._end = ClosedError("the event stream is closed")
            self._arrived.set()
            self._watch.close()
            self._port.close()
            self._context.term()

    def _received(self, parts: list[bytes], _surplus: int) -> None:
        try:
            event = msgspec.json.decode(parts[-1], type=dict[str, Any])
            seq = int(event["seq"])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            self.missed += 1
            return
        if self._is_all and self._last_seq:
            self.missed += max(0, seq - self._last_seq - 1)
        self._last_seq = seq
        if len(self._waiting) >= _EVENT_BACKLOG:
            self._waiting.popleft()
            self.missed += 1
        self._waiting.append(event)
        self._arrived.set()

    def _lost(self, reason: str) -> None:
        if self._end is None:
            self._port.take_last()
            self._port.close()
            self._end = PeerGone(f"no more events: {reason}", reason=reason)
            self._arrived.set()


class Operator:
    """An administrator's connection to one host node; also an async context manager.

    Make one with ``connect``. All methods raise PeerGone when the host ended, DeadlineError when it did not answer in
    time, and what the host refuses: NotFoundError, ExistsError, BusyError, UsageError and so on.
    """

    def __init__(
        self, address: RunDir | TcpAddress, *, secrets: Secrets | None, deadline_s: float, clock: Clock
    ) -> None:
        self._address = address
        self._secrets = secrets
        self._deadline_s = deadline_s
        self._requests: Requests[msgspec.Raw] = Requests(clock)
        self._streams: list[EventStream] = []
        self._local = Handover(address, clock, deadline_s) if isinstance(address, RunDir) else None
        self._link = Link(address, 1, secrets=secrets, on_message=self._received, on_lost=self._requests.fail_all)

    @classmethod
    async def connect(
        cls,
        address: Address = None,
        *,
        secrets: Secrets | None = None,
        deadline_s: float = REQUEST_DEADLINE_S,
        clock: Clock | None = None,
    ) -> Operator:
        """Connect to a host node.

        Args:
            address: its run directory, ``tcp://HOST:PORT`` (the guests' port), or None for this user's default node.
            secrets: keys, for tcp.
            deadline_s: how long each request may take.
            clock: for deadlines.

        Raises:
            NotFoundError: no host node runs there. NotPermittedError: not private, or tcp without keys.
        """
        return cls(resolve_address(address), secrets=secrets, deadline_s=deadline_s, clock=clock or MonotonicClock())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up, and end every event stream made here."""
        self._requests.fail_all(ClosedError("this operator is closed"))
        for stream in self._streams:
            stream.close()
        if self._local is not None:
            self._local.close()
        self._link.close()

    async def node_info(self) -> NodeInfo:
        """Who the host node is and how it is."""
        return await self._ask(admin.NodeInfoVerb(), NodeInfo)

    async def node_shutdown(self) -> None:
        """Have the host node end."""
        await self._ask(admin.NodeShutdown(), NoneType)

    async def bus_create(self, name: str) -> None:
        """Make an empty bus."""
        await self._ask(admin.BusCreate(name), NoneType)

    async def bus_list(self) -> list[BusInfo]:
        """All buses."""
        return await self._ask(admin.BusList(), list[BusInfo])

    async def bus_delete(self, name: str, *, force: bool = False) -> None:
        """Remove a bus; ``force`` ends the guests on it and unplugs its devices first."""
        await self._ask(admin.BusDelete(name, force), NoneType)

    async def device_create(
        self,
        name: str,
        type: str | None = None,  # noqa: A002 - the word of the wire
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Make a device, with ``type`` also typed, and with its attributes set; all or nothing."""
        await self._ask(admin.DeviceCreate(name, type, dict(attributes or {})), NoneType)

    async def device_set(self, name: str, attribute: str, value: str) -> None:
        """Set an attribute; ``type`` once, before any other."""
        await self._ask(admin.DeviceSet(name, attribute, value), NoneType)

    async def device_get(self, name: str) -> DeviceInfo:
        """One device."""
        return await self._ask(admin.DeviceGet(name), DeviceInfo)

    async def device_list(self) -> list[DeviceInfo]:
        """All devices."""
        return await self._ask(admin.DeviceList(), list[DeviceInfo])

    async def device_plug(self, name: str, bus: str) -> list[int]:
        """Put a device on a bus; gives its new dev-ids."""
        return await self._ask(admin.DevicePlug(name, bus), list[int])

    async def device_unplug(self, name: str, bus: str) -> None:
        """Take a device off a bus."""
        await self._ask(admin.DeviceUnplug(name, bus), NoneType)

    async def device_delete(self, name: str, *, force: bool = False) -> None:
        """Remove a device; ``force`` unplugs it everywhere first."""
        await self._ask(admin.DeviceDelete(name, force), NoneType)

    async def class_list(self) -> list[ClassInfo]:
        """All device classes."""
        return await self._ask(admin.ClassList(), list[ClassInfo])

    async def guest_list(self) -> list[GuestInfo]:
        """All guests."""
        return await self._ask(admin.GuestList(), list[GuestInfo])

    async def guest_reset(self, name: str) -> None:
        """Close all a guest has open and show it its devices anew."""
        await self._ask(admin.GuestReset(name), NoneType)

    async def switch_create(self, name: str, *, ageing_s: float = 300.0) -> None:
        """Make a learning switch."""
        await self._ask(admin.SwitchCreate(name, ageing_s), NoneType)

    async def switch_list(self) -> list[str]:
        """Names of all switches."""
        return await self._ask(admin.SwitchList(), list[str])

    async def switch_delete(self, name: str) -> None:
        """Remove a switch without ports."""
        await self._ask(admin.SwitchDelete(name), NoneType)

    async def switch_macs(self, name: str) -> list[dict[str, Any]]:
        """What a switch learned."""
        return await self._ask(admin.SwitchMacs(name), list[dict[str, Any]])

    async def port_list(self) -> list[dict[str, Any]]:
        """All ports of all switches."""
        return await self._ask(admin.PortList(), list[dict[str, Any]])

    async def port_add(self, switch: str, tap: str, *, mtu: int = 1500, offloads: bool = True) -> int:
        """Join a TAP of the host's machine to a switch; gives the port's id.

        With ``offloads`` its kernel leaves checksums and segments to the switch, and takes them from it.
        """
        return await self._ask(admin.PortAdd(switch, tap, mtu, offloads), int)

    async def port_listen(
        self,
        switch: str,
        name: str,
        *,
        socket: str | None = None,
        mac: str | None = None,
        mtu: int = 1500,
        connect: bool = False,
        front_end: bool = False,
    ) -> int:
        """Listen for front ends of vhost-user, whose network card is a port; gives the port's id.

        Args:
            switch: name of the switch.
            name: of the port.
            socket: absolute path on the host's machine; None: in the run directory, as ``port_list`` tells.
            mac: of the card; None: the front end chooses.
            mtu: largest packet, bytes.
            connect: the other end listens on ``socket``, which must be given; the port connects, as often as it takes.
            front_end: the port is the front end of a back end at the other end, which may have no ``mac``.
        """
        return await self._ask(admin.PortListen(switch, name, socket, mac, mtu, connect, front_end), int)

    async def port_set(self, port: int, attribute: str, value: str) -> None:
        """Change ``hold``, ``budget``, ``burstthresh`` or ``enabled`` of a TAP's port, or of one for front ends."""
        await self._ask(admin.PortSet(port, attribute, value), NoneType)

    async def port_remove(self, port: int) -> None:
        """Take a port off its switch."""
        await self._ask(admin.PortRemove(port), NoneType)

    async def signal_list(self) -> list[dict[str, Any]]:
        """All signals: ``id``, ``name``, ``guest``, ``device``, ``priority``, ``route`` and where to, and counts."""
        return await self._ask(admin.SignalList(), list[dict[str, Any]])

    async def signal_create(self, name: str, priority: int = 0) -> int:
        """Make a signal that leads nowhere yet; gives its number."""
        return await self._ask(admin.SignalCreate(name, priority), int)

    async def signal_route(
        self,
        signal: str,
        *,
        like: str | None = None,
        guest: str | None = None,
        vcpu: int | None = None,
        vector: int | None = None,
        nowhere: bool = False,
    ) -> None:
        """Lead a signal where ``like`` leads, to a guest's vCPU and vector (what is not given stays), or nowhere."""
        await self._ask(admin.SignalRoute(signal, like, guest, vcpu, vector, nowhere), NoneType)

    async def signal_set(self, signal: str, *, priority: int | None = None, is_masked: bool | None = None) -> None:
        """Change a signal's priority, or mask or unmask it."""
        await self._ask(admin.SignalSet(signal, priority, is_masked), NoneType)

    async def signal_raise(self, signal: str) -> None:
        """Raise a signal."""
        await self._ask(admin.SignalRaise(signal), NoneType)

    async def signal_grant(self, signal: str, guest: str, *, revoke: bool = False) -> None:
        """Let a guest raise a signal, or no more."""
        await self._ask(admin.SignalGrant(signal, guest, revoke), NoneType)

    async def signal_destroy(self, signal: str) -> None:
        """Remove a signal that somebody named."""
        await self._ask(admin.SignalDestroy(signal), NoneType)

    async def signal_export(self, signal: str) -> int:
        """Lead a signal to a new eventfd, and give that: any process that has it sees the raises from now on.

        The descriptor is non-blocking and the caller's, to hand on and to close. That it was closed everywhere does
        not change where the signal leads; ``signal_route`` does.

        Raises:
            UnsupportedError: the host node is reached over tcp, which carries no descriptors.
            ResourceError: no descriptor is left, here or there.
        """
        return await self._handover().export(signal)

    async def signal_drive(self, signal: str, fd: int, *, keep: bool = False) -> int:
        """Let an eventfd raise a signal: each write to it is a raise, and several may become one.

        It goes on until the signal is destroyed, the host ends or, without ``keep``, this operator is closed or its
        process ended. The host never reads the eventfd: write small numbers, for it blocks at 2^64 - 1.

        Args:
            signal: any signal, also a guest's or a device's.
            fd: the eventfd; it stays the caller's, who may close it.
            keep: go on when this operator is gone.

        Returns:
            The number of this drive, for ``signal_drive_ended``.

        Raises:
            UsageError: the descriptor is no eventfd. ResourceError: too many eventfds drive signals.
            UnsupportedError: the host node is reached over tcp, which carries no descriptors.
        """
        return await self._handover().drive(signal, fd, keep=keep)

    async def device_insert(self, device: str, fd: int, name: str, *, is_read_only: bool = False) -> None:
        """Put an open file into a device, as a disk into a drive; no guest may have the device open.

        The host never opens a file by a name that came to it: it has what is open here, and keeps it until the device
        is deleted or gets another.

        Args:
            device: its name.
            fd: the file, open for what the device does with it; it stays the caller's, who may close it.
            name: of the file, for people who look at the device.
            is_read_only: the device only reads it.

        Raises:
            NotFoundError: no such device. BusyError: a guest has it open. UsageError: it has no use for such a file.
            UnsupportedError: it takes none; or the host node is reached over tcp, which carries no descriptors.
        """
        await self._handover().insert(device, fd, name, is_read_only=is_read_only)

    async def signal_drive_ended(self, drive: int) -> None:
        """Return when the signal of a drive, which was not to be kept, is destroyed.

        Raises:
            PeerGone: the host ended. NotFoundError: no such drive, or it was told already that it is over.
        """
        await self._handover().ended(drive)

    async def event_topics(self) -> dict[str, Any]:
        """Every topic with its meaning, severity and fields, and the endpoint they are published at."""
        return await self._ask(admin.EventTopics(), dict[str, Any])

    async def event_publish(self, topic: str, fields: Mapping[str, Any]) -> None:
        """Tell what a lab's supervisor saw, under a topic that begins as one of ``BY_LABS``."""
        await self._ask(admin.EventPublish(topic, dict(fields)), NoneType)

    async def apply(self, verbs: Sequence[msgspec.Struct]) -> int:
        """Do many verbs of ``vbnet.bus.admin`` in order; gives how many were done.

        Raises:
            VbnetError: the first refusal; its ``fields["index"]`` and ``["verb"]`` say which. Those before stay done.
        """
        done = 0
        for chunk in _chunks(verbs):
            try:
                done += await self._ask(admin.Apply(chunk), int)
            except VbnetError as error:
                if isinstance(index := error.fields.get("index"), int):
                    error.fields["index"] = done + index
                raise
        return done

    def events(self, *topics: str) -> EventStream:
        """Listen to topics (prefixes; none: all) from about now on; close it, or close the operator."""
        stream = EventStream(self._address, topics or ("",), self._secrets)
        self._streams.append(stream)
        return stream

    def _handover(self) -> Handover:
        if self._local is None:
            raise UnsupportedError(
                "descriptors cannot travel over tcp: ask an operator on the host node's own machine, without tcp://"
            )
        return self._local

    async def _ask(self, verb: msgspec.Struct, result: type[T]) -> T:
        admin.check_verb(verb)
        what = str(verb.__struct_config__.tag)
        seq, future = self._requests.begin(what, self._deadline_s)
        try:
            self._link.send(admin.encode_request(seq, verb))
        except VbnetError as error:
            self._requests.refuse(seq, error)
        raw = await future
        return msgspec.msgpack.decode(raw, type=result)

    def _received(self, data: bytes) -> None:
        try:
            reply = admin.decode_reply(data)
        except MessageFault as fault:
            if fault.seq:
                self._requests.refuse(fault.seq, fault)
            return
        if isinstance(reply.body, admin.AdminFailure):
            body = reply.body
            self._requests.refuse(reply.seq, error_from_refusal(body.code, body.message, body.detail))
        else:
            self._requests.answer(reply.seq, reply.body.result)


def _chunks(verbs: Sequence[msgspec.Struct]) -> list[list[msgspec.Raw]]:
    """Split verbs into messages that fit both bounds."""
    chunks: list[list[msgspec.Raw]] = []
    size = 0
    for verb in verbs:
        raw = admin.encode_value(verb)
        length = len(bytes(raw))
        is_full = chunks and len(chunks[-1]) >= MAX_ADMIN_VERBS
        if not chunks or is_full or size + length > MAX_MESSAGE_BYTES - _ENVELOPE_BYTES:
            chunks.append([])
            size = 0
        chunks[-1].append(raw)
        size += length
    return chunks


class SyncOperator(Closing):
    """``Operator`` for plain functions; a context manager. The loop runs in a thread of its own.

    Args:
        address: as for ``Operator.connect``.
        secrets: keys, for tcp.
        deadline_s: how long each request may take.
    """

    def __init__(
        self, address: Address = None, *, secrets: Secrets | None = None, deadline_s: float = REQUEST_DEADLINE_S
    ) -> None:
        self._thread = LoopThread("vbnet-operator")
        try:
            self._operator = self._thread.run(Operator.connect(address, secrets=secrets, deadline_s=deadline_s))
        except BaseException:
            self._thread.close()
            raise

    def close(self) -> None:
        """Hang up; harmless when closed already."""
        if self._thread.is_open:
            self._thread.run(self._operator.close())
            self._thread.close()

    def node_info(self) -> NodeInfo:
        """See ``Operator.node_info``."""
        return self._thread.run(self._operator.node_info())

    def node_shutdown(self) -> None:
        """See ``Operator.node_shutdown``."""
        self._thread.run(self._operator.node_shutdown())

    def bus_create(self, name: str) -> None:
        """See ``Operator.bus_create``."""
        self._thread.run(self._operator.bus_create(name))

    def bus_list(self) -> list[BusInfo]:
        """See ``Operator.bus_list``."""
        return self._thread.run(self._operator.bus_list())

    def bus_delete(self, name: str, *, force: bool = False) -> None:
        """See ``Operator.bus_delete``."""
        self._thread.run(self._operator.bus_delete(name, force=force))

    def device_create(
        self,
        name: str,
        type: str | None = None,  # noqa: A002 - the word of the wire
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """See ``Operator.device_create``."""
        self._thread.run(self._operator.device_create(name, type, attributes))

    def device_set(self, name: str, attribute: str, value: str) -> None:
        """See ``Operator.device_set``."""
        self._thread.run(self._operator.device_set(name, attribute, value))

    def device_get(self, name: str) -> DeviceInfo:
        """See ``Operator.device_get``."""
        return self._thread.run(self._operator.device_get(name))

    def device_list(self) -> list[DeviceInfo]:
        """See ``Operator.device_list``."""
        return self._thread.run(self._operator.device_list())

    def device_plug(self, name: str, bus: str) -> list[int]:
        """See ``Operator.device_plug``."""
        return self._thread.run(self._operator.device_plug(name, bus))

    def device_unplug(self, name: str, bus: str) -> None:
        """See ``Operator.device_unplug``."""
        self._thread.run(self._operator.device_unplug(name, bus))

    def device_delete(self, name: str, *, force: bool = False) -> None:
        """See ``Operator.device_delete``."""
        self._thread.run(self._operator.device_delete(name, force=force))

    def class_list(self) -> list[ClassInfo]:
        """See ``Operator.class_list``."""
        return self._thread.run(self._operator.class_list())

    def guest_list(self) -> list[GuestInfo]:
        """See ``Operator.guest_list``."""
        return self._thread.run(self._operator.guest_list())

    def guest_reset(self, name: str) -> None:
        """See ``Operator.guest_reset``."""
        self._thread.run(self._operator.guest_reset(name))

    def switch_create(self, name: str, *, ageing_s: float = 300.0) -> None:
        """See ``Operator.switch_create``."""
        self._thread.run(self._operator.switch_create(name, ageing_s=ageing_s))

    def switch_list(self) -> list[str]:
        """See ``Operator.switch_list``."""
        return self._thread.run(self._operator.switch_list())

    def switch_delete(self, name: str) -> None:
        """See ``Operator.switch_delete``."""
        self._thread.run(self._operator.switch_delete(name))

    def switch_macs(self, name: str) -> list[dict[str, Any]]:
        """See ``Operator.switch_macs``."""
        return self._thread.run(self._operator.switch_macs(name))

    def port_list(self) -> list[dict[str, Any]]:
        """See ``Operator.port_list``."""
        return self._thread.run(self._operator.port_list())

    def port_add(self, switch: str, tap: str, *, mtu: int = 1500, offloads: bool = True) -> int:
        """See ``Operator.port_add``."""
        return self._thread.run(self._operator.port_add(switch, tap, mtu=mtu, offloads=offloads))

    def port_listen(
        self,
        switch: str,
        name: str,
        *,
        socket: str | None = None,
        mac: str | None = None,
        mtu: int = 1500,
        connect: bool = False,
        front_end: bool = False,
    ) -> int:
        """See ``Operator.port_listen``."""
        return self._thread.run(
            self._operator.port_listen(
                switch, name, socket=socket, mac=mac, mtu=mtu, connect=connect, front_end=front_end
            )
        )

    def port_set(self, port: int, attribute: str, value: str) -> None:
        """See ``Operator.port_set``."""
        self._thread.run(self._operator.port_set(port, attribute, value))

    def port_remove(self, port: int) -> None:
        """See ``Operator.port_remove``."""
        self._thread.run(self._operator.port_remove(port))

    def signal_list(self) -> list[dict[str, Any]]:
        """See ``Operator.signal_list``."""
        return self._thread.run(self._operator.signal_list())

    def signal_create(self, name: str, priority: int = 0) -> int:
        """See ``Operator.signal_create``."""
        return self._thread.run(self._operator.signal_create(name, priority))

    def signal_route(
        self,
        signal: str,
        *,
        like: str | None = None,
        guest: str | None = None,
        vcpu: int | None = None,
        vector: int | None = None,
        nowhere: bool = False,
    ) -> None:
        """See ``Operator.signal_route``."""
        self._thread.run(
            self._operator.signal_route(signal, like=like, guest=guest, vcpu=vcpu, vector=vector, nowhere=nowhere)
        )

    def signal_set(self, signal: str, *, priority: int | None = None, is_masked: bool | None = None) -> None:
        """See ``Operator.signal_set``."""
        self._thread.run(self._operator.signal_set(signal, priority=priority, is_masked=is_masked))

    def signal_raise(self, signal: str) -> None:
        """See ``Operator.signal_raise``."""
        self._thread.run(self._operator.signal_raise(signal))

    def signal_grant(self, signal: str, guest: str, *, revoke: bool = False) -> None:
        """See ``Operator.signal_grant``."""
        self._thread.run(self._operator.signal_grant(signal, guest, revoke=revoke))

    def signal_destroy(self, signal: str) -> None:
        """See ``Operator.signal_destroy``."""
        self._thread.run(self._operator.signal_destroy(signal))

    def signal_export(self, signal: str) -> int:
        """See ``Operator.signal_export``."""
        return self._thread.run(self._operator.signal_export(signal))

    def signal_drive(self, signal: str, fd: int, *, keep: bool = False) -> int:
        """See ``Operator.signal_drive``."""
        return self._thread.run(self._operator.signal_drive(signal, fd, keep=keep))

    def device_insert(self, device: str, fd: int, name: str, *, is_read_only: bool = False) -> None:
        """See ``Operator.device_insert``."""
        self._thread.run(self._operator.device_insert(device, fd, name, is_read_only=is_read_only))

    def signal_drive_ended(self, drive: int) -> None:
        """See ``Operator.signal_drive_ended``."""
        self._thread.run(self._operator.signal_drive_ended(drive))

    def event_topics(self) -> dict[str, Any]:
        """See ``Operator.event_topics``."""
        return self._thread.run(self._operator.event_topics())

    def event_publish(self, topic: str, fields: Mapping[str, Any]) -> None:
        """See ``Operator.event_publish``."""
        self._thread.run(self._operator.event_publish(topic, fields))

    def apply(self, verbs: Sequence[msgspec.Struct]) -> int:
        """See ``Operator.apply``."""
        return self._thread.run(self._operator.apply(verbs))

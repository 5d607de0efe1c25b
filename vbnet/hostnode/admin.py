"""What operators may ask of a host node, and what it does: the host's end of the admin sockets.

Every verb does all of its change or none of it, and is answered in the order it came; ``apply`` is many verbs in one
message and stops at the first that is refused, saying which.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zmq

from vbnet.bus import admin
from vbnet.bus.admin import AdminFailure, AdminResult, Verb
from vbnet.bus.limits import Limits
from vbnet.bus.messages import DevAdd, DevDrop, plain_fields
from vbnet.bus.model import DeviceRecord
from vbnet.bus.rundir import RunDir
from vbnet.bus.topics import BY_LABS, TOPICS
from vbnet.bus.transport import ZmqPort
from vbnet.errors import BusyError, NotFoundError, TooLargeError, UsageError, VbnetError, refusal_name
from vbnet.hostnode import metrics
from vbnet.hostnode.device import HostServices
from vbnet.hostnode.portsettings import set_port
from vbnet.hostnode.sessions import SessionBook
from vbnet.hostnode.signals import OPERATOR, Vector
from vbnet.hostnode.tap import open_tap
from vbnet.hostnode.wedged import wedged_levels
from vbnet.units import SECOND_NS

__all__ = ["AdminDesk"]

_NO_MAC: Final = "00:00:00:00:00:00"


@dataclass(slots=True)
class NodeFacts:
    """What ``node.info`` tells beyond counts."""

    name: str
    vbnet: str
    protocol: int
    abi: int
    libzmq: str
    started_at: str
    started_ns: int
    events: str
    endpoints: list[str] = field(default_factory=list)


class AdminDesk:
    """Answers operators.

    Args:
        book: the sessions, and through it buses and devices.
        services: the fabric, the clock and the event stream.
        facts: for ``node.info``.
        limits: longest message.
        run_dir: where sockets for front ends are made.
        shutdown: ends the node soon after it was called.
    """

    def __init__(
        self,
        book: SessionBook,
        services: HostServices,
        facts: NodeFacts,
        limits: Limits,
        *,
        run_dir: RunDir,
        shutdown: Callable[[], None],
    ) -> None:
        self._book = book
        self._board = book.plugboard
        self._services = services
        self._facts = facts
        self._limits = limits
        self._run_dir = run_dir
        self._shutdown = shutdown
        self._ports: list[ZmqPort] = []
        self._verbs: dict[type[Any], Callable[[Any], object]] = {
            admin.NodeInfoVerb: self._node_info,
            admin.NodeShutdown: self._node_shutdown,
            admin.BusCreate: lambda verb: self._board.create_bus(verb.name),
            admin.BusList: self._bus_list,
            admin.BusDelete: self._bus_delete,
            admin.DeviceCreate: self._device_create,
            admin.DeviceSet: lambda verb: self._board.set_attribute(verb.name, verb.attribute, verb.value),
            admin.DeviceGet: lambda verb: self._device_info(self._board.model.device(verb.name)),
            admin.DeviceList: lambda _: [self._device_info(record) for record in self._board.model.devices()],
            admin.DevicePlug: lambda verb: [slot.dev_id for slot in self._board.plug(verb.name, verb.bus)],
            admin.DeviceUnplug: lambda verb: self._board.unplug(verb.name, verb.bus),
            admin.DeviceDelete: self._device_delete,
            admin.ClassList: self._class_list,
            admin.GuestList: self._guest_list,
            admin.GuestReset: self._guest_reset,
            admin.SwitchCreate: lambda verb: services.need_fabric().switch_create(verb.name, verb.ageing_s),
            admin.SwitchList: lambda _: list(services.fabric.switches()) if services.fabric else [],
            admin.SwitchDelete: lambda verb: services.need_fabric().switch_delete(verb.name),
            admin.SwitchMacs: lambda verb: [dict(row) for row in services.need_fabric().macs(verb.name)],
            admin.PortList: lambda _: services.port_faults.rows(services.fabric) if services.fabric else [],
            admin.PortAdd: self._port_add,
            admin.PortListen: self._port_listen,
            admin.PortSet: self._port_set,
            admin.PortRemove: lambda verb: services.need_fabric().port_remove(verb.id),
            admin.SignalList: lambda _: services.signals.rows(),
            admin.SignalCreate: lambda verb: services.signals.create(OPERATOR, verb.name, verb.priority),
            admin.SignalRoute: self._signal_route,
            admin.SignalSet: self._signal_set,
            admin.SignalRaise: lambda verb: services.signals.raise_soon(services.signals.find(verb.signal)),
            admin.SignalGrant: self._signal_grant,
            admin.SignalDestroy: self._signal_destroy,
            admin.EventTopics: lambda _: {"endpoint": facts.events, "topics": _topic_rows()},
            admin.EventPublish: self._event_publish,
            admin.Apply: self._apply,
        }

    def serve(self, socket: zmq.Socket[bytes]) -> None:
        """Answer through one more ROUTER socket, which becomes the desk's."""
        port = ZmqPort(socket, parts=2, on_message=lambda parts, surplus: self._receive(port, parts, surplus))
        self._ports.append(port)

    def close(self, linger_ms: int) -> None:
        """Stop answering; the last replies may still leave."""
        for port in self._ports:
            port.close(linger_ms)

    def perform(self, verb: Verb) -> object:
        """Do one verb; gives its result.

        Raises:
            VbnetError: refused.
        """
        return self._verbs[type(verb)](verb)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _receive(self, port: ZmqPort, parts: list[bytes], surplus: int) -> None:
        seq = 0
        body: AdminResult | AdminFailure
        refused: Exception | None = None
        try:
            seq, raw = admin.decode_request(self._whole(parts, surplus))
            body = AdminResult(admin.encode_value(self.perform(admin.decode_verb(raw))))
        except VbnetError as error:
            body = _failure(error)
            seq = seq or getattr(error, "seq", 0)
            refused = error
        except Exception as error:  # no request may stop the host
            self._services.log.exception("admin_failed")
            body = _failure(error)
            refused = error
        if refused is not None:
            self._services.refused("admin.refused", "operator", refused)
        if isinstance(body, AdminFailure):
            self._book.tally.add(metrics.REFUSED, body.code)
        port.send_nowait(parts[0], admin.encode_reply(seq, body))

    def _whole(self, parts: list[bytes], surplus: int) -> bytes:
        if len(parts) != 2 or surplus:  # noqa: PLR2004 - who it is from, and the message
            raise UsageError(f"{len(parts) + surplus - 1} parts, a request has one")
        limit = self._limits.message_bytes
        if len(parts[1]) > limit:
            raise TooLargeError(
                f"request of {len(parts[1])} bytes, at most {limit}; send fewer verbs at once",
                got=len(parts[1]),
                limit=limit,
            )
        return parts[1]

    def _apply(self, verb: admin.Apply) -> int:
        for index, raw in enumerate(verb.verbs):
            name = "?"
            try:
                one = admin.decode_verb(raw)
                name = str(type(one).__struct_config__.tag)
                if isinstance(one, admin.Apply):
                    raise UsageError("an apply cannot hold another")
                self.perform(one)
            except VbnetError as error:
                error.fields = {**error.fields, "index": index, "verb": name}
                raise
        return len(verb.verbs)

    def _node_info(self, _verb: admin.NodeInfoVerb) -> admin.NodeInfo:
        facts = self._facts
        return admin.NodeInfo(
            name=facts.name,
            pid=os.getpid(),
            vbnet=facts.vbnet,
            protocol=facts.protocol,
            abi=facts.abi,
            libzmq=facts.libzmq,
            started_at=facts.started_at,
            uptime_s=self._age_s(facts.started_ns),
            buses=len(self._board.model.buses()),
            devices=len(self._board.model.devices()),
            guests=len(self._book),
            endpoints=list(facts.endpoints),
            events=facts.events,
            counters=self._book.tally.snapshot(),
        )

    def _node_shutdown(self, _verb: admin.NodeShutdown) -> None:
        self._shutdown()

    def _bus_list(self, _verb: admin.BusList) -> list[admin.BusInfo]:
        model = self._board.model
        return [
            admin.BusInfo(
                name=name,
                is_private=model.is_private(name),
                devices=list(dict.fromkeys(slot.device for slot in model.slots(name))),
                guests=[session.name for session in model.members(name)],
            )
            for name in model.buses()
        ]

    def _bus_delete(self, verb: admin.BusDelete) -> None:
        if verb.force:
            for session in self._board.model.members(verb.name):
                self._book.end(session, "bus-deleted")
            if verb.name in self._board.model.buses():
                self._board.clear_bus(verb.name)
            return
        self._board.delete_bus(verb.name)

    def _device_create(self, verb: admin.DeviceCreate) -> None:
        if verb.type is None and verb.attributes:
            raise UsageError("attributes belong to a type; give the type too", device=verb.name)
        self._board.create_device(verb.name)
        try:
            if verb.type is not None:
                self._board.set_attribute(verb.name, "type", verb.type)
            for attribute, value in verb.attributes.items():
                self._board.set_attribute(verb.name, attribute, value)
        except BaseException:
            self._board.delete_device(verb.name)
            raise

    def _device_delete(self, verb: admin.DeviceDelete) -> None:
        if verb.force:
            for bus in list(self._board.model.device(verb.name).buses):
                self._board.unplug(verb.name, bus)
        self._board.delete_device(verb.name)

    def _device_info(self, record: DeviceRecord) -> admin.DeviceInfo:
        attributes = self._board.attributes(record.name)
        attributes.pop("type", None)
        plugs = [
            admin.PlugInfo(
                bus=slot.bus,
                dev_id=slot.dev_id,
                interface=slot.interface.name,
                abi_type=slot.interface.abi_type,
                open_count=self._board.open_count(slot),
            )
            for slot in self._board.model.slots_of(record.name)
        ]
        return admin.DeviceInfo(name=record.name, type=record.type, attributes=attributes, plugs=plugs)

    def _class_list(self, _verb: admin.ClassList) -> list[admin.ClassInfo]:
        registry = self._board.registry
        return [
            admin.ClassInfo(name=name, kind=registry.kind_of(name), abi_types=list(registry.find(name).abi_types))
            for name in registry.names()
        ]

    def _guest_list(self, _verb: admin.GuestList) -> list[admin.GuestInfo]:
        wedged = {session.name: wedged_levels(self._services.signals, session.name) for session in self._book.all()}
        broken = self._services.port_faults.broken(self._services.fabric)
        return [
            admin.GuestInfo(
                name=session.name,
                bus=session.bus,
                pid=session.pid,
                uid=session.uid,
                kind=session.kind,
                state="wedged" if wedged[session.name] and session.is_ready else str(session.state),
                is_remote=session.is_remote,
                age_s=self._age_s(session.since_ns),
                faults=session.faults,
                ram_bytes=session.ram.size if session.ram is not None else 0,
                devices=[slot.dev_id for slot in session.open_devices()],
                wedged=wedged[session.name],
                quarantined=[
                    f"{slot.interface.name}: {broken[slot.device]}"
                    for slot in session.open_devices()
                    if slot.device in broken
                ],
            )
            for session in self._book.all()
        ]

    def _guest_reset(self, verb: admin.GuestReset) -> None:
        """To the guest it looks as if every device was unplugged and plugged again under its old dev-id."""
        session = self._book.find(verb.name)
        slots = self._board.model.slots(session.bus) if session.is_ready else []
        for slot in slots:
            session.post(DevDrop(slot.dev_id))
        session.close_everything()
        for slot in slots:
            session.post(DevAdd(slot.dev_id, slot.interface.abi_type, slot.interface.name))
        self._services.publish("guest.reset", guest=session.name, bus=session.bus)

    def _port_add(self, verb: admin.PortAdd) -> int:
        fabric = self._services.need_fabric()
        fd = open_tap(verb.tap, has_offloads=verb.offloads)
        try:
            return fabric.port_add_tap(verb.switch, verb.tap, fd, verb.mtu)
        finally:
            os.close(fd)

    def _port_listen(self, verb: admin.PortListen) -> int:
        mac = verb.mac if verb.mac is not None else _NO_MAC
        socket = Path(verb.socket) if verb.socket is not None else self._run_dir.front_end_socket(verb.name)
        if verb.connect and verb.socket is None:
            raise UsageError("a port that connects needs the path of the socket where the other end listens")
        if verb.front_end and verb.mac is not None:
            raise UsageError(
                "a front end has the addresses of those behind it; `mac` goes with back ends", mac=verb.mac
            )
        return self._services.need_fabric().port_add_vhost_user(
            verb.switch,
            verb.name,
            socket,
            mac=mac,
            mtu=verb.mtu,
            does_connect=verb.connect,
            is_front_end=verb.front_end,
        )

    def _port_set(self, verb: admin.PortSet) -> None:
        name = set_port(self._services.need_fabric(), verb.id, verb.attribute, verb.value)
        self._services.publish("port.set", port=verb.id, name=name, attribute=verb.attribute, value=verb.value)

    def _signal_route(self, verb: admin.SignalRoute) -> None:
        signals = self._services.signals
        number = signals.find(verb.signal)
        if verb.nowhere:
            signals.route_nowhere(number)
            return
        row = signals.row(signals.find(verb.like) if verb.like is not None else number)
        guest = verb.guest if verb.guest is not None else row["to"]
        vector = verb.vector if verb.vector is not None else row["vector"]
        if guest is None or vector is None:
            raise UsageError(
                f"signal {verb.signal!r} leads to no guest's vector yet; say `like` which signal, or guest and vector",
                signal=verb.signal,
            )
        vcpu = verb.vcpu if verb.vcpu is not None else row["vcpu"] or 0
        signals.route_to_vector(number, Vector(guest, vcpu, vector))

    def _signal_set(self, verb: admin.SignalSet) -> None:
        signals = self._services.signals
        number = signals.find(verb.signal)
        if verb.priority is not None:
            signals.set_priority(number, verb.priority)
        if verb.is_masked is not None:
            signals.set_masked(number, is_masked=verb.is_masked)

    def _signal_grant(self, verb: admin.SignalGrant) -> None:
        signals = self._services.signals
        change = signals.revoke if verb.revoke else signals.grant
        change(signals.find(verb.signal), verb.guest)

    def _signal_destroy(self, verb: admin.SignalDestroy) -> None:
        signals = self._services.signals
        number = signals.find(verb.signal)
        if signals.is_devices(number):
            raise BusyError(f"signal {verb.signal!r} belongs to a device and goes with it", signal=verb.signal)
        signals.destroy(number)

    def _event_publish(self, verb: admin.EventPublish) -> None:
        topic = TOPICS.get(verb.topic)
        if topic is None or not verb.topic.startswith(BY_LABS):
            raise NotFoundError(f"there is no topic {verb.topic!r} that others may publish", topic=verb.topic)
        if verb.fields.keys() != set(topic.fields):
            raise UsageError(
                f"an event {verb.topic!r} has the fields {', '.join(topic.fields)}",
                got=sorted(verb.fields),
                limit=list(topic.fields),
            )
        self._services.publish(verb.topic, **verb.fields)

    def _age_s(self, since_ns: int) -> float:
        return round((self._services.clock.now_ns() - since_ns) / SECOND_NS, 3)


def _topic_rows() -> dict[str, dict[str, object]]:
    return {
        name: {"meaning": topic.meaning, "severity": str(topic.severity), "fields": topic.fields}
        for name, topic in TOPICS.items()
    }


def _failure(error: Exception) -> AdminFailure:
    if not isinstance(error, VbnetError):
        return AdminFailure("EIO", "a bug of the host; see its log", {})
    return AdminFailure(refusal_name(error), str(error), plain_fields(error.fields))

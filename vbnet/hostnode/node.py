"""The host node: sockets, timers and the order in which things live and die.

    guest processes ─ bus.sock ──> BusDesk ─┐                    ┌─> Plugboard ─> devices of their authors
                    ─ attach.sock > AttachDesk ─> SessionBook ───┤
    operators ─────── admin.sock ─> AdminDesk ┘                  └─> events.sock ─> whoever subscribed

One thread, one asyncio loop, two timers. Every handler is a plain function that runs to its end, so no guest ever sees
half a change, and "ready" needs no lock: between the replay and the first live event nothing can come. The data path
is not here; it runs in the fabric's threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import zmq

from vbnet.bus.keys import CurveServer, KeyStore, TcpAddress
from vbnet.bus.kinds import Catalogue
from vbnet.bus.limits import Limits
from vbnet.bus.messages import ABI_VERSION, PROTOCOL_VERSION
from vbnet.bus.rundir import DEFAULT_NODE, HostRecord, RunDir, start_ticks
from vbnet.bus.transport import ConnectionWatch, ZmqPort, new_socket, require_libzmq
from vbnet.clock import Clock, MonotonicClock
from vbnet.errors import ClosedError, NotPermittedError, ResourceError
from vbnet.hostnode.admin import AdminDesk, NodeFacts
from vbnet.hostnode.attach import AttachDesk
from vbnet.hostnode.bells import Bells
from vbnet.hostnode.device import HostServices, Log
from vbnet.hostnode.fabric import Fabric
from vbnet.hostnode.fastcalls import Fastcalls
from vbnet.hostnode.log import LimitedLog, default_log
from vbnet.hostnode.metrics import Tally
from vbnet.hostnode.plugboard import Plugboard
from vbnet.hostnode.registry import ClassRegistry
from vbnet.hostnode.sessions import SessionBook
from vbnet.hostnode.signals import SignalBook
from vbnet.hostnode.telling import Refusals, Teller
from vbnet.hostnode.verbs import BusDesk
from vbnet.hostnode.wedged import WEDGED_NS, WedgeWatch, wedged_levels
from vbnet.units import seconds_to_ns

if TYPE_CHECKING:
    from vbnet.sharedmem import Ram

__all__ = ["HostNode", "HostOptions"]

_LINGER_MS = 200
_BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class HostOptions:
    """How a host node is set up.

    Attributes:
        run_dir: its private folder. name: as ``node.info`` tells it. limits: bounds on guests and operators. tcp:
        ``"tcp://ADDRESS:PORT"`` to let other machines in: guests at PORT, operators at PORT + 1, events at PORT + 2.
        keys: folder of this host's key and allow-list; needed with ``tcp``. catalogue: device kinds; None finds them.
    """

    run_dir: RunDir = field(default_factory=RunDir.for_node)
    name: str = DEFAULT_NODE
    limits: Limits = field(default_factory=Limits)
    tcp: str | None = None
    keys: Path | None = None
    catalogue: Catalogue | None = None


class HostNode:
    """One host node, inside a running asyncio loop; also an async context manager.

    Args:
        options: how it is set up.
        clock: the only source of time.
        log: where it writes; None uses structlog as the program configured it.
        fabric: switches and ports; None runs without. Becomes the node's: it is closed with it.
        counters: the mapped counter file for devices; None takes the fabric's.
    """

    def __init__(
        self,
        options: HostOptions,
        *,
        clock: Clock | None = None,
        log: Log | None = None,
        fabric: Fabric | None = None,
        counters: Any = None,  # noqa: ANN401 - the native counter file, not known to this layer
    ) -> None:
        require_libzmq()
        self._options = options
        self._clock: Clock = MonotonicClock() if clock is None else clock
        self._log = LimitedLog(default_log() if log is None else log, self._clock)
        self._fabric = fabric
        self._teller = Teller(self._clock)
        self._refusals = Refusals(self._teller.publish, self._teller.note)
        if counters is None and fabric is not None:
            counters = fabric.counters
        signals = SignalBook(counters, self.publish)
        self.tally = Tally(counters)
        self._undo = contextlib.ExitStack()
        self._undo.callback(self.tally.close)
        self._fastcalls = Fastcalls(self.tally, self._log, counters, self.publish)
        self._services = HostServices(
            self._clock,
            self._log,
            self.publish,
            fabric,
            counters,
            signals,
            self._fastcalls,
            self._refusals.add,
        )
        self.plugboard = Plugboard(ClassRegistry(options.catalogue), self._services, self.tally)
        self._bells = Bells(self.tally)
        self.book = SessionBook(
            self._services,
            self.plugboard,
            options.limits,
            self.tally,
            self._bells,
            run_dir=options.run_dir,
        )
        self._wedges = WedgeWatch(lambda guest: wedged_levels(signals, guest), self.publish)
        self._stopped = asyncio.Event()
        self._stop_asked = asyncio.Event()
        if fabric is not None:
            self._undo.callback(fabric.close)
        self._undo.callback(signals.close)
        self._undo.callback(self._bells.close)
        self._undo.callback(self._fastcalls.close)
        self._desks: list[BusDesk] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Take the run directory and answer from now on.

        Raises:
            BusyError: a host node runs there. NotPermittedError: the folder is not private, or tcp without keys.
            ResourceError: the machine refused. ClosedError: it was stopped.
        """
        if self._stopped.is_set():
            raise ClosedError("this host node was stopped; make another")
        address, keys = self._check_tcp()
        try:
            facts = self._open(address, keys)
        except BaseException:
            await self.stop()
            raise
        self._log.info("host_ready", node=self._options.name, endpoints=facts.endpoints)
        self.publish("node.ready", node=self._options.name, endpoints=facts.endpoints)

    def ask_stop(self) -> None:
        """Have ``run`` end; returns at once."""
        self._stop_asked.set()

    async def run(self) -> None:
        """Serve until ``ask_stop``, then stop."""
        await self._stop_asked.wait()
        await self.stop()

    async def stop(self) -> None:
        """End every session, release every device, remove every socket; harmless when stopped already."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._stop_asked.set()
        self.publish("node.stopping", node=self._options.name)
        for session in self.book.all():
            self.book.end(session, "host-stopped")
        self.plugboard.release_all()
        self._undo.close()
        self._log.info("host_stopped", node=self._options.name)

    def publish(self, topic: str, **fields: object) -> None:
        """Tell everyone who subscribed, and whoever reads the history later.

        Args:
            topic: one of ``vbnet.bus.topics.TOPICS``.
            fields: what belongs to it; plain values.
        """
        self._teller.publish(topic, **fields)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _check_tcp(self) -> tuple[TcpAddress | None, KeyStore | None]:
        if self._options.tcp is None:
            return None, None
        address = TcpAddress.parse(self._options.tcp)
        if self._options.keys is None:
            raise NotPermittedError(
                "tcp lets in whoever reaches the port, so it needs keys: "
                "run 'vbnet keys make', then 'vbnet keys allow'",
                tcp=self._options.tcp,
            )
        return address, KeyStore(self._options.keys)

    def _open(self, address: TcpAddress | None, keys: KeyStore | None) -> NodeFacts:
        """Open everything; what was opened is closed in reverse order by ``stop``, however far this came."""
        undo, run_dir, limits = self._undo, self._options.run_dir, self._options.limits
        run_dir.create()
        undo.callback(run_dir.lock().release)
        undo.callback(self._teller.close)
        self._teller.open(run_dir)
        self.publish("node.starting", node=self._options.name, pid=os.getpid(), vbnet=_own_version())
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        undo.callback(context.term)
        undo.callback(AttachDesk(run_dir.attach_socket, run_dir.operate_socket, self.book, _open_ram).close)
        curve = None
        if keys is not None:
            curve = CurveServer(context, keys)
            undo.callback(curve.close)
        facts = self._facts(address)
        admin = AdminDesk(self.book, self._services, facts, limits, run_dir=run_dir, shutdown=self.ask_stop)
        undo.callback(admin.close, _LINGER_MS)
        doors = [_Doors(context, run_dir, None)]
        if address is not None:
            doors.append(_Doors(context, address, curve))
        for door in doors:
            events = door.bind(zmq.PUB, 2, _BACKLOG)
            self._teller.sockets.append(events)
            undo.callback(events.close, _LINGER_MS)
            admin.serve(door.bind(zmq.ROUTER, 1, _BACKLOG))
            self._serve_bus(door.bind(zmq.ROUTER, 0, limits.outbound_messages), is_remote=door.is_remote)
        undo.callback(self._teller.sockets.clear)
        if self._fabric is not None:
            loop, fault_fd = asyncio.get_running_loop(), self._fabric.fault_fd()
            loop.add_reader(fault_fd, self._take_faults)
            undo.callback(loop.remove_reader, fault_fd)
        self._beat()
        self._look()
        run_dir.write_host(
            HostRecord(
                pid=os.getpid(),
                started_at=facts.started_at,
                vbnet=facts.vbnet,
                protocol=facts.protocol,
                abi=facts.abi,
                libzmq=facts.libzmq,
                start_ticks=start_ticks(os.getpid()),
            )
        )
        return facts

    def _serve_bus(self, socket: zmq.Socket[bytes], *, is_remote: bool) -> None:
        desk = BusDesk(self.book, is_remote=is_remote, later=asyncio.get_running_loop().call_soon)
        watch = ConnectionWatch(socket, lambda _reason: desk.probe_soon()) if is_remote else None
        desk.serve(ZmqPort(socket, parts=2, on_message=desk.receive))
        self._desks.append(desk)
        self._undo.callback(desk.close, _LINGER_MS)
        if watch is not None:
            self._undo.callback(watch.close)

    def _beat(self) -> None:
        """Once a heartbeat: who is silent, and what was too often to be told one by one."""
        limits = self._options.limits
        if self._stopped.is_set():
            return
        self._clock.call_later(seconds_to_ns(limits.heartbeat_s), self._beat)
        for desk in self._desks:
            desk.watch()
        self._refusals.tell()
        self._teller.tell_left_out()
        self._log.say_left_out()

    def _look(self) -> None:
        """Once a second: who never attached, whose handlers do not return. Other guests cost nothing here."""
        if self._stopped.is_set():
            return
        self._clock.call_later(WEDGED_NS, self._look)
        self.tally.beat(WEDGED_NS)
        self.book.expire_tokens()
        if changed := self._wedges.look(self._services.signals.controlled()):
            wedged = self._wedges.guests()
            for session in self.book.all():
                if session.name in changed:
                    session.is_wedged = session.name in wedged
                    session.show_state()

    def _take_faults(self) -> None:
        if self._fabric is None:
            return
        for fault in self._fabric.take_faults():
            self._services.port_faults.note(fault)
            for session in self.plugboard.openers(fault["name"]):
                session.count_fault()
            self._log.warning("port_fault", **fault)
            self.publish("port.fault", **fault)

    def _facts(self, address: TcpAddress | None) -> NodeFacts:
        run_dir = self._options.run_dir
        endpoints = [f"ipc://{run_dir.bus_socket}"]
        if address is not None:
            endpoints.append(address.endpoint(0))
        return NodeFacts(
            name=self._options.name,
            vbnet=_own_version(),
            protocol=PROTOCOL_VERSION,
            abi=ABI_VERSION,
            libzmq=zmq.zmq_version(),
            started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            started_ns=self._clock.now_ns(),
            events=f"ipc://{run_dir.events_socket}",
            endpoints=endpoints,
        )


@dataclass(frozen=True, slots=True)
class _Doors:
    """Where one kind of peer comes in: local ones through the run directory, others through guarded tcp ports."""

    context: zmq.Context[zmq.Socket[bytes]]
    address: RunDir | TcpAddress
    curve: CurveServer | None

    @property
    def is_remote(self) -> bool:
        return isinstance(self.address, TcpAddress)

    def bind(self, kind: int, service: int, outbound: int) -> zmq.Socket[bytes]:
        """Open the door for guests (0), operators (1) or listeners to events (2)."""
        socket = new_socket(self.context, kind, outbound=outbound)
        if self.curve is not None:
            self.curve.protect(socket)
        endpoint = self.address.endpoint(service)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            socket.close(0)
            raise ResourceError(f"cannot listen at {endpoint}: {error}", errno=error.errno or 0) from error
        return socket


def _open_ram(fd: int, limit: int) -> Ram:
    """Check and map a guest's memory; the native module is loaded when the first guest brings some."""
    from vbnet.sharedmem import Ram  # noqa: PLC0415 - not needed by hosts whose guests share no memory

    return Ram.open(fd, limit)


def _own_version() -> str:
    try:
        return metadata.version("vbnet")
    except metadata.PackageNotFoundError:
        return "0+source"

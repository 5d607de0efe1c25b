"""The host node: sockets, timers and the order in which things live and die.

    guest processes ─ bus.sock ──> BusDesk ─┐                    ┌─> Plugboard ─> devices of their authors
                    ─ attach.sock > AttachDesk ─> SessionBook ───┤
    operators ─────── admin.sock ─> AdminDesk ┘                  └─> events.sock ─> whoever subscribed

One thread, one asyncio loop, one timer. Every handler is a plain function that runs to its end, so no guest ever sees
half a change, and "ready" needs no lock: between the replay and the first live event nothing can come. The data path
is not here; it runs in the fabric's threads.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
import zmq

from vbnet.bus.keys import CurveServer, KeyStore, TcpAddress
from vbnet.bus.kinds import Catalogue
from vbnet.bus.limits import Limits
from vbnet.bus.messages import ABI_VERSION, PROTOCOL_VERSION
from vbnet.bus.rundir import DEFAULT_NODE, HostRecord, RunDir, RunLock
from vbnet.bus.transport import ZmqPort, new_socket, require_libzmq
from vbnet.clock import Clock, MonotonicClock, Timer
from vbnet.errors import ClosedError, NotPermittedError, ResourceError
from vbnet.hostnode.admin import AdminDesk, NodeFacts
from vbnet.hostnode.attach import AttachDesk
from vbnet.hostnode.device import HostServices, Log
from vbnet.hostnode.fabric import Fabric
from vbnet.hostnode.log import LimitedLog
from vbnet.hostnode.metrics import Tally
from vbnet.hostnode.plugboard import Plugboard
from vbnet.hostnode.registry import ClassRegistry
from vbnet.hostnode.sessions import SessionBook
from vbnet.hostnode.verbs import BusDesk
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
        log: where it writes; None uses structlog's default.
        fabric: switches and ports; None runs without. Becomes the node's: it is closed with it.
        counters: the mapped counter file for devices; None runs without.
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
        self._log = LimitedLog(_default_log() if log is None else log, self._clock)
        self._fabric = fabric
        self._event_seq = 0
        self._events: list[zmq.Socket[bytes]] = []
        self._services = HostServices(self._clock, self._log, self.publish, fabric, counters)
        self.tally = Tally()
        self.plugboard = Plugboard(ClassRegistry(options.catalogue), self._services, self.tally)
        self.book = SessionBook(
            self._services, self.plugboard, options.limits, self.tally, options.run_dir.attach_socket
        )
        self._stopped = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._lock: RunLock | None = None
        self._attach: AttachDesk | None = None
        self._admin: AdminDesk | None = None
        self._curve: CurveServer | None = None
        self._desks: list[BusDesk] = []
        self._timer: Timer | None = None

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
        run_dir = self._options.run_dir
        run_dir.create()
        self._lock = run_dir.lock()
        try:
            self._context = zmq.Context()
            self._attach = AttachDesk(run_dir.attach_socket, self.book, _open_ram)
            if keys is not None:
                self._curve = CurveServer(self._context, keys)
            self._open_events(address)
            facts = self._facts(address)
            self._admin = AdminDesk(self.book, self._services, facts, self._options.limits, self.ask_stop)
            self._serve_bus(f"ipc://{run_dir.bus_socket}")
            self._serve_admin(f"ipc://{run_dir.admin_socket}", self._admin)
            if address is not None:
                self._serve_bus(address.endpoint(0))
                self._serve_admin(address.endpoint(1), self._admin)
            if self._fabric is not None:
                asyncio.get_running_loop().add_reader(self._fabric.fault_fd(), self._take_faults)
            self._beat()
            run_dir.write_host(
                HostRecord(
                    pid=os.getpid(),
                    started_at=facts.started_at,
                    vbnet=facts.vbnet,
                    protocol=facts.protocol,
                    abi=facts.abi,
                    libzmq=facts.libzmq,
                )
            )
        except BaseException:
            await self.stop()
            raise
        self._log.info("host_ready", node=self._options.name, run_dir=str(run_dir.path), endpoints=facts.endpoints)

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
        if self._timer is not None:
            self._timer.cancel()
        self.publish("node.stopping", node=self._options.name)
        for session in self.book.all():
            self.book.end(session, "host-stopped")
        self.plugboard.release_all()
        if self._fabric is not None:
            asyncio.get_running_loop().remove_reader(self._fabric.fault_fd())
            self._fabric.close()
        for desk in self._desks:
            desk.close(_LINGER_MS)
        if self._admin is not None:
            self._admin.close(_LINGER_MS)
        if self._curve is not None:
            self._curve.close()
        for events in self._events:
            events.close(_LINGER_MS)
        self._events.clear()
        if self._attach is not None:
            self._attach.close()
        if self._context is not None:
            self._context.term()
        if self._lock is not None:
            self._lock.release()
        self._log.info("host_stopped", node=self._options.name)

    def publish(self, topic: str, **fields: object) -> None:
        """Send an event to everyone who subscribed.

        Args:
            topic: one of ``vbnet.hostnode.admin.TOPICS``.
            fields: what belongs to it; plain values.
        """
        if not self._events:
            return
        self._event_seq += 1
        event = {"topic": topic, "seq": self._event_seq, "time": time.time(), **fields}
        parts = (topic.encode(), msgspec.json.encode(event))
        for socket in self._events:  # PUB never blocks: it drops for a slow subscriber, whom seq shows the gap
            socket.send_multipart(parts, zmq.NOBLOCK)

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

    def _open_events(self, address: TcpAddress | None) -> None:
        self._events.append(self._bind(zmq.PUB, f"ipc://{self._options.run_dir.events_socket}", _BACKLOG))
        if address is not None:
            self._events.append(self._bind(zmq.PUB, address.endpoint(2), _BACKLOG))

    def _serve_bus(self, endpoint: str) -> None:
        loop = asyncio.get_running_loop()
        desk = BusDesk(self.book, is_remote=endpoint.startswith("tcp:"), later=loop.call_soon)
        socket = self._bind(zmq.ROUTER, endpoint, self._options.limits.outbound_messages)
        desk.serve(ZmqPort(socket, parts=2, on_message=desk.receive))
        self._desks.append(desk)

    def _serve_admin(self, endpoint: str, admin: AdminDesk) -> None:
        admin.serve(self._bind(zmq.ROUTER, endpoint, _BACKLOG))

    def _bind(self, kind: int, endpoint: str, outbound: int) -> zmq.Socket[bytes]:
        if self._context is None:
            raise ClosedError("this host node is not started")
        socket = new_socket(self._context, kind, outbound=outbound)
        try:
            if endpoint.startswith("tcp:"):
                if self._curve is None:
                    raise NotPermittedError(f"{endpoint} without keys was not opened")
                self._curve.protect(socket)
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            socket.close(0)
            raise ResourceError(f"cannot listen at {endpoint}: {error}", errno=error.errno or 0) from error
        return socket

    def _beat(self) -> None:
        """The one timer: who is silent, and who never attached."""
        limits = self._options.limits
        self._timer = self._clock.call_later(seconds_to_ns(limits.heartbeat_s), self._beat)
        self.book.expire_tokens()
        for desk in self._desks:
            desk.watch()

    def _take_faults(self) -> None:
        if self._fabric is None:
            return
        for fault in self._fabric.take_faults():
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


def _open_ram(fd: int, limit: int) -> Ram:
    """Check and map a guest's memory; the native module is loaded when the first guest brings some."""
    from vbnet.sharedmem import Ram  # noqa: PLC0415 - not needed by hosts whose guests share no memory

    return Ram.open(fd, limit)


def _default_log() -> Log:
    import structlog  # noqa: PLC0415 - slow to import, and tests hand in their own

    log: Log = structlog.get_logger("vbnet.host")
    return log


def _own_version() -> str:
    try:
        return metadata.version("vbnet")
    except metadata.PackageNotFoundError:
        return "0+source"

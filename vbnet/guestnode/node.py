"""The guest node: one process, one connection to the host, any number of guests in it.

    async with await GuestNode.connect(name="lab") as node:
        guest = await node.join("web-0", bus="web-0")
        device = await guest.wait_device("echo0")
        async with await device.open() as echo:
            print(await echo.call(1, b"hello"))

One DEALER and one attach socket serve all guests of the process, and one timer says that it lives. When the host
ends, the attach socket hangs up, and everything that waits or is asked later raises PeerGone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast

from vbnet.bus import fdpass, messages
from vbnet.bus.fdpass import FdChannel
from vbnet.bus.keys import TcpAddress
from vbnet.bus.limits import DEFAULT_RAM_BYTES, RAM_HEADER_BYTES, REQUEST_DEADLINE_S
from vbnet.bus.link import Address, Link, Requests, Secrets, resolve_address
from vbnet.bus.messages import Event, HostBody, MessageFault
from vbnet.bus.rundir import RunDir
from vbnet.clock import Clock, MonotonicClock, Timer
from vbnet.errors import (
    ClosedError,
    DeadlineError,
    NotFoundError,
    PeerFault,
    PeerGone,
    ResourceError,
    UnsupportedError,
    UsageError,
    VbnetError,
    error_from_refusal,
)
from vbnet.guestnode.driver import Driver, DriverInstance, is_nic_type, load_driver
from vbnet.guestnode.memory import Memory
from vbnet.guestnode.parcels import KEPT_LENDS, Key, Parcels, close_fds
from vbnet.guestnode.proxy import FastSlots, ProxyDevice, RegionSpec, SharedSignal
from vbnet.units import SECOND_NS, seconds_to_ns

if TYPE_CHECKING:
    from vbnet.sharedmem import Ram
    from vbnet.sharedmem.programs import ProgramCounters

__all__ = ["EventStream", "GuestNode", "GuestSession"]

_log = logging.getLogger("vbnet.guest")
_LINGER_MS = 100
_EVENT_BACKLOG = 4096
_MARKS = 15
"""Moments in a heartbeat's interval at which a machine's guests say that they live."""
_DISK_TYPE, _DISK_VERSION = "virtio:2", 1
_FASTCALL_TYPE = "fastcall"
_SIGNAL = "signal"
_LEND = "lend"
T = TypeVar("T")


class _FastPool(Protocol):
    """What the driver of fastcall devices gives: see ``vbnet.devices.fastcall.driver``."""

    def call(self, handle: int, function: int, data: bytes, deadline_s: float) -> bytes | None:
        """Call a device from any thread; None: make the ordinary call instead."""

    async def lend(self, handle: int, count: int) -> FastSlots | None:
        """Slots for native code; None: there are not that many."""


class GuestNode:
    """This process's connection to a host node; make it with ``connect``. Also an async context manager."""

    def __init__(
        self, address: RunDir | TcpAddress, name: str, *, secrets: Secrets | None, deadline_s: float, clock: Clock
    ) -> None:
        self.name = name
        self.run_dir = address if isinstance(address, RunDir) else None
        self.deadline_s = deadline_s
        self._clock = clock
        self._replies: Requests[HostBody] = Requests(clock)
        self._packets: Requests[fdpass.AttachReply] = Requests(clock)
        self._sessions: dict[int, GuestSession] = {}
        self._sids = itertools.count(1)
        self._parcels = Parcels(clock)
        self._heartbeat: Timer | None = None
        self._end: VbnetError | None = None
        self._channel: FdChannel | None = None
        self._link = Link(address, 0, secrets=secrets, on_message=self._received, on_lost=self._lost)
        try:
            if isinstance(address, RunDir):
                self._channel = FdChannel(
                    fdpass.connect_fds(address, address.attach_socket, deadline_s),
                    on_packet=self._packet,
                    on_closed=lambda reason: self._lost(PeerGone(f"the host node ended: {reason}", reason=reason)),
                )
        except BaseException:
            self._link.close()
            raise

    @classmethod
    async def connect(
        cls,
        address: Address = None,
        name: str = "guest",
        *,
        secrets: Secrets | None = None,
        deadline_s: float = REQUEST_DEADLINE_S,
        clock: Clock | None = None,
    ) -> GuestNode:
        """Connect this process to a host node.

        Args:
            address: its run directory, ``tcp://HOST:PORT``, or None for this user's default node.
            name: of this process, for messages.
            secrets: keys, for tcp.
            deadline_s: how long each request may take unless it says otherwise.
            clock: for deadlines and heartbeats.

        Raises:
            NotFoundError: no host node runs there. NotPermittedError: not private, or tcp without keys.
        """
        return cls(
            resolve_address(address), name, secrets=secrets, deadline_s=deadline_s, clock=clock or MonotonicClock()
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    @property
    def is_remote(self) -> bool:
        """Whether the host is on another machine: list and call work, shared memory does not."""
        return self._channel is None

    @property
    def sessions(self) -> list[GuestSession]:
        """The guests of this process, oldest first."""
        return list(self._sessions.values())

    async def join(
        self, name: str, bus: str | None = None, *, ram_bytes: int = DEFAULT_RAM_BYTES, kind: str = "python"
    ) -> GuestSession:
        """Put a guest on a bus; when this returns, ``devices`` holds everything that was there.

        Args:
            name: of the guest, unique on the host.
            bus: its name; None makes a private one, which ends with the guest.
            ram_bytes: memory to create and share with devices; 0 for none. From another machine there is none.
            kind: a word for lists.

        Raises:
            NotFoundError: no such bus. ExistsError: the guest's name is taken. PeerFault: other versions.
            ResourceError: no memory, or too many guests. PeerGone: the host ended.
        """
        self._check()
        session = GuestSession(self, next(self._sids), name, kind)
        self._sessions[session.sid] = session
        try:
            await session.enter(bus, 0 if self.is_remote else ram_bytes)
        except BaseException:
            await session.close()
            raise
        return session

    async def close(self) -> None:
        """End every guest and hang up; harmless when closed already."""
        for session in self.sessions:
            await session.close()
        if not isinstance(self._end, ClosedError):
            self._finish(ClosedError("this guest node is closed"))
            self._link.close(_LINGER_MS)

    # ---- for sessions ------------------------------------------------------------------------------------------------

    def seconds_left(self, deadline_ns: int) -> float:
        """Seconds until a moment of this node's clock, >= 0."""
        return max(0, deadline_ns - self._clock.now_ns()) / SECOND_NS

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Run ``callback`` after so many seconds of this node's clock."""
        return self._clock.call_later(seconds_to_ns(seconds), callback)

    def moment(self, seconds: float) -> int:
        """The moment ``seconds`` from now, on this node's clock."""
        return self._clock.now_ns() + seconds_to_ns(seconds)

    async def ask(self, sid: int, body: messages.Request, deadline_s: float | None = None) -> HostBody:
        """Send a request of a session and wait for the reply; a refusal is raised."""
        self._check()
        deadline = self.deadline_s if deadline_s is None else deadline_s
        seq, future = self._replies.begin(type(body).__name__.lower(), deadline)
        try:
            self._link.send(messages.encode(sid, seq, body))
        except VbnetError as error:
            self._replies.refuse(seq, error)
        return await future

    def tell(self, sid: int, body: messages.Signal | messages.Bye) -> None:
        """Send what is never answered."""
        if self._end is None:
            self._link.send(messages.encode(sid, 0, body))

    async def hand_over(self, body: fdpass.AttachBody, fds: list[int]) -> fdpass.AttachReply:
        """Send a packet with descriptors, which stay the caller's, and wait for the reply; a refusal is raised."""
        self._check()
        if self._channel is None:
            raise UnsupportedError("descriptors cannot be handed to another machine")
        seq, future = self._packets.begin(type(body).__name__.lower(), self.deadline_s)
        self._channel.send(fdpass.encode_packet(seq, body), fds)
        return await future

    async def signal_fds(self, sid: int, signal: int) -> tuple[int, int]:
        """The two descriptors of a signal, once they have come; they are the caller's."""
        kick_fd, call_fd = await self._parcels.take((_SIGNAL, sid, signal), self.deadline_s)
        return kick_fd, call_fd

    async def lent_fd(self, sid: int, ticket: int, deadline_s: float | None) -> int:
        """A descriptor that a device lent, once it has come; it is the caller's."""
        self._check()
        if self._channel is None:
            raise UnsupportedError("nothing can be lent from another machine")
        [fd] = await self._parcels.take((_LEND, sid, ticket), self.deadline_s if deadline_s is None else deadline_s)
        return fd

    def discard(self, sid: int) -> None:
        """A session is over: nothing of it is kept."""
        self._sessions.pop(sid, None)
        self._parcels.discard(sid)

    def beat_every(self, seconds: float) -> None:
        """Say that this process lives, from now on, once in so many seconds.

        A machine's guests do so at common moments, a fifteenth of the interval apart: of those that wake together only
        the first finds the caches cold, and the host hears them in one turn.
        """
        if self._heartbeat is None and seconds > 0:
            interval_ns = seconds_to_ns(seconds)
            mark_ns = max(1, interval_ns // _MARKS)
            beyond_ns = (self._clock.now_ns() + interval_ns) % mark_ns
            self._heartbeat = self._clock.call_later(interval_ns - beyond_ns, lambda: self._beat(seconds))

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _beat(self, seconds: float) -> None:
        self._heartbeat = None
        if self._end is None:
            self._say_alive()
            self.beat_every(seconds)

    def _say_alive(self) -> None:
        with contextlib.suppress(VbnetError):  # a full pipe: the host will hear the next one, or call us stuck
            self._link.send(messages.ALIVE)

    def _received(self, data: bytes) -> None:
        try:
            envelope = messages.decode_envelope(data)
            body = messages.decode_host_body(envelope)
        except MessageFault as fault:
            if fault.seq:
                self._replies.refuse(fault.seq, fault)
            _log.warning("the host sent a malformed message: %s", fault)
            return
        if isinstance(body, messages.Probe):
            self._say_alive()
        elif isinstance(body, messages.Refused):
            self._refused(envelope.sid, envelope.seq, body)
        elif isinstance(body, (messages.Answer, messages.Welcome)):
            self._replies.answer(envelope.seq, body)
        elif (session := self._sessions.get(envelope.sid)) is not None:
            session.happened(body)

    def _refused(self, sid: int, seq: int, body: messages.Refused) -> None:
        error = error_from_refusal(body.code, body.message, body.detail)
        if seq:
            self._replies.refuse(seq, error)
        elif (session := self._sessions.get(sid)) is not None and isinstance(error, PeerGone):
            session.ended(error)
        else:
            _log.warning("the host refused a message of session %d: %s", sid, error)

    def _packet(self, data: bytes, fds: list[int], is_cut: bool) -> None:
        try:
            seq, body = fdpass.decode_attach_reply(data)
        except MessageFault as fault:
            close_fds(fds)
            _log.warning("the host sent a malformed packet: %s", fault)
            return
        if isinstance(body, fdpass.SignalFds):
            self._parcel((_SIGNAL, body.sid, body.signal), fds, 2, is_cut=is_cut)
            return
        if isinstance(body, fdpass.Lent):
            self._parcel((_LEND, body.sid, body.ticket), fds, 1, is_cut=is_cut, kept_at_most=KEPT_LENDS)
            return
        close_fds(fds)
        if isinstance(body, fdpass.FdRefused):
            self._packets.refuse(seq, error_from_refusal(body.code, body.message, body.detail))
        else:
            self._packets.answer(seq, body)

    def _parcel(
        self, key: Key, fds: list[int], expected: int, *, is_cut: bool, kept_at_most: int | None = None
    ) -> None:
        if is_cut or len(fds) != expected:
            close_fds(fds)
            self._lost(ResourceError(f"descriptors of {key[0]} did not arrive; this process has no room for them"))
        elif key[1] in self._sessions:
            self._parcels.came(key, fds, kept_at_most=kept_at_most)
        else:
            close_fds(fds)

    def _lost(self, error: VbnetError) -> None:
        if self._end is None:
            self._finish(error)
            asyncio.get_running_loop().call_soon(self._link.close)

    def _finish(self, error: VbnetError) -> None:
        self._end = error
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self._replies.fail_all(error)
        self._packets.fail_all(error)
        for session in self.sessions:
            session.ended(error)
        self._parcels.fail_all(error)
        if self._channel is not None:
            self._channel.close()

    def _check(self) -> None:
        if self._end is not None:
            raise self._end


class EventStream:
    """Events of one guest as they happen: DevAdd, DevDrop, ShmClose, LinkState of ``vbnet.bus.messages``.

    An async iterator; it ends when the guest is closed, and raises PeerGone when the host ended. ``missed`` counts
    events lost because this side took none for too long.
    """

    def __init__(self) -> None:
        self.missed = 0
        self._waiting: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._end: VbnetError | None = None

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if isinstance(self._end, ClosedError):
                raise StopAsyncIteration
            if self._end is not None:
                raise self._end
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    def put(self, event: Event) -> None:
        """One more happened."""
        if len(self._waiting) >= _EVENT_BACKLOG:
            self._waiting.popleft()
            self.missed += 1
        self._waiting.append(event)
        self._arrived.set()

    def end(self, error: VbnetError) -> None:
        """No more will happen."""
        self._end = error
        self._arrived.set()


class GuestSession:
    """One guest: its bus, its memory, its devices and drivers. Made by ``GuestNode.join``; an async context manager.

    Attributes:
        name: of the guest.
        bus: it is on.
        sid: its number on this process's connection.
        memory: who uses which part of its memory.
    """

    def __init__(self, node: GuestNode, sid: int, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.sid = sid
        self.bus = ""
        self.memory = Memory(0, 0)
        self._node = node
        self._ram: Ram | None = None
        self._counters: ProgramCounters | None = None
        self._devices: dict[int, ProxyDevice] = {}
        self._drivers: dict[str, Driver] = {}
        self._bindings: dict[ProxyDevice, asyncio.Task[DriverInstance]] = {}
        self._streams: list[EventStream] = []
        self._changed: list[asyncio.Event] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cookies = itertools.count(1)
        self._tickets = itertools.count(1)
        self._end: VbnetError | None = None
        self._is_entered = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._fast: _FastPool | None = None
        self._is_fast_known = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<guest {self.name} on {self.bus or 'no bus'}>"

    # ---- what programs use -----------------------------------------------------------------------------------------

    @property
    def ram(self) -> Ram:
        """The guest's memory.

        Raises:
            UsageError: it joined without any, or from another machine.
        """
        if self._ram is None:
            raise UsageError(f"guest {self.name!r} has no memory; join with ram_bytes on the host's machine")
        return self._ram

    @property
    def devices(self) -> list[ProxyDevice]:
        """Everything on its bus, by rising dev-id."""
        return [self._devices[dev_id] for dev_id in sorted(self._devices)]

    def register(self, driver: Driver) -> None:
        """Drive every device of the driver's ABI type, those here and those to come.

        Raises:
            UsageError: a driver for this type is registered already.
        """
        if driver.abi_type in self._drivers:
            raise UsageError(f"a driver for {driver.abi_type!r} is registered already", type=driver.abi_type)
        self._drivers[driver.abi_type] = driver
        for device in self.devices:
            self._match(device)

    async def wait_device(self, name_or_type: str, timeout: float | None = None) -> ProxyDevice:  # noqa: ASYNC109
        """The first device with this name, or else this ABI type, now or when it comes.

        Args:
            name_or_type: what to look for.
            timeout: seconds; None: as the node was made.

        Raises:
            DeadlineError: none came in time. PeerGone: the host ended.
        """
        return await self._wait_until(
            lambda: self._find(name_or_type), f"device {name_or_type!r} on bus {self.bus!r}", timeout
        )

    async def open(self, name_or_type: str, version: int = 1, timeout: float | None = None) -> Any:  # noqa: ASYNC109, ANN401
        """Wait for a device and connect to it: an ``OpenDevice``, to speak its ABI; a disk is opened as a file.

        To speak a disk's registers, open what ``wait_device`` gives.

        Args:
            name_or_type: what to look for.
            version: of the device's ABI.
            timeout: seconds to wait for it; None: as the node was made.

        Raises:
            DeadlineError: no such device in time. What ``ProxyDevice.open`` raises, or of a disk ``disk``.
        """
        device = await self.wait_device(name_or_type, timeout)
        if (device.abi_type, version) == (_DISK_TYPE, _DISK_VERSION):
            return await self.disk(device.name, timeout)
        return await device.open(version)

    async def bind(self, name_or_type: str, timeout: float | None = None) -> Any:  # noqa: ASYNC109, ANN401
        """A device's driver at work: waits for the device, loads a driver if none is registered.

        Raises:
            DeadlineError: no such device in time. NotFoundError: no driver for its type.
            VbnetError: whatever the driver's ``probe`` raised.
        """
        device = await self.wait_device(name_or_type, timeout)
        if device not in self._bindings:
            self._start(device, self._drivers.get(device.abi_type) or load_driver(device.abi_type))
        return await asyncio.shield(self._bindings[device])

    async def nic(self, name: str | None = None, timeout: float | None = None) -> Any:  # noqa: ASYNC109, ANN401
        """The network interface ``name`` (the first one, of any model, if none is named), ready to send and receive.

        Raises:
            DeadlineError: no such device in time. UsageError: it is no network interface.
        """
        if name is None:
            device = await self._wait_until(self._find_nic, f"network interface on bus {self.bus!r}", timeout)
        else:
            device = await self.wait_device(name, timeout)
        if not is_nic_type(device.abi_type):
            raise UsageError(f"{name!r} is of type {device.abi_type!r}, no network interface", type=device.abi_type)
        return await self.bind(device.name, timeout)

    async def disk(self, name: str = _DISK_TYPE, timeout: float | None = None) -> Any:  # noqa: ASYNC109, ANN401
        """The disk ``name`` (the first one, if none is named) as a file, at its beginning.

        Raises:
            DeadlineError: no such device in time. UsageError: it is no disk.
        """
        device = await self.wait_device(name, timeout)
        if device.abi_type != _DISK_TYPE:
            raise UsageError(f"{name!r} is of type {device.abi_type!r}, not {_DISK_TYPE!r}", type=device.abi_type)
        return (await self.bind(device.name, timeout)).open()

    async def list_devices(self) -> list[tuple[int, str, str]]:
        """Ask the host what is on the bus: dev-id, ABI type and name of each."""
        result = _answer_of(await self._ask(messages.List()))
        if not isinstance(result, tuple):
            raise _strange("List", result)
        return [(listed.dev_id, listed.type, listed.name) for listed in result]

    @property
    def counters(self) -> ProgramCounters:
        """What the program in this guest counts, for the host's exporter: Prometheus sees it with the guest's name.

            requests = guest.counters.counter("requests", help="Requests answered.")
            requests.add()

        Any thread may count; it costs no call. On another machine than the host, or in a sandbox that has only the
        host's sockets, it is counted, and nobody sees it.

        Raises:
            ClosedError: the guest is closed.
        """
        if isinstance(self._end, ClosedError):
            raise self._end
        if self._counters is None:
            from vbnet.sharedmem.programs import ProgramCounters  # noqa: PLC0415 - most guests count nothing

            run_dir = self._node.run_dir
            place = None if run_dir is None else run_dir.program_counters(self.name)
            self._counters = ProgramCounters(place if place and place.parent.is_dir() else None)
        return self._counters

    def events(self) -> EventStream:
        """A stream of everything that happens from now on."""
        stream = EventStream()
        if self._end is not None:
            stream.end(self._end)
        self._streams.append(stream)
        return stream

    async def reset(self) -> None:
        """Start again on the same connection: everything is closed, drivers removed, devices shown anew and matched.

        Raises:
            PeerGone: the host ended.
        """
        await self._ask(messages.Negotiate(messages.NEGOTIATE_MAGIC, messages.PROTOCOL_VERSION))
        gone = PeerGone("the guest was reset")
        removals = [self._drop(device, gone) for device in self.devices]
        for removal in removals:
            if removal is not None:
                await removal
        await self._ask(messages.Ready())

    async def kick(self, signal: SharedSignal) -> None:
        """Kick by message instead of the signal's own descriptor: slow, for those who cannot."""
        self._node.tell(self.sid, messages.Signal(signal.handle))

    def new_ticket(self) -> int:
        """A ticket no other descriptor of this guest was given under."""
        return next(self._tickets)

    async def close(self) -> None:
        """Leave the bus: drivers are removed, memory is let go; harmless when closed already."""
        if not isinstance(self._end, ClosedError):
            if self._end is None and self._is_entered:
                with contextlib.suppress(VbnetError):
                    self._node.tell(self.sid, messages.Bye())
            self.ended(ClosedError(f"guest {self.name!r} is closed"))
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._node.discard(self.sid)
        if self._counters is not None:
            self._counters.close()
        if self._ram is not None:
            ram, self._ram = self._ram, None
            ram.close()

    # ---- the carrier of its devices --------------------------------------------------------------------------------

    async def open_device(self, dev_id: int, version: int) -> int:
        """Open a device; gives the handle."""
        return _number_of(await self._ask(messages.Open(dev_id, version)), "Open")

    async def call_device(self, handle: int, function: int, data: bytes, deadline_s: float | None) -> bytes:
        """Run a function of an open device."""
        body = messages.Call(handle, function, data, 0)
        result = _answer_of(await self._ask(body, deadline_s))
        if not isinstance(result, bytes):
            raise _strange("Call", result)
        return result

    def fastcall_device(self, handle: int, function: int, data: bytes, deadline_s: float | None) -> bytes:
        """Run a function of an open device and wait for it, in whichever thread this is."""
        seconds = self._node.deadline_s if deadline_s is None else deadline_s
        is_on_loop = threading.get_ident() == self._thread
        if not self._is_fast_known and not is_on_loop:
            self._from_thread(self._find_fast())
        pool = self._fast
        if pool is not None and (answer := pool.call(handle, function, data, seconds)) is not None:
            return answer
        if is_on_loop:
            raise UsageError(
                "this call must go the ordinary way, which the event loop's own thread cannot wait for: await call() "
                "instead, or bind the bus's fastcall device and open a device with a fast handler",
                function=function,
            )
        return self._from_thread(self.call_device(handle, function, data, deadline_s))

    async def fast_slots(self, handle: int, count: int) -> FastSlots | None:
        """Fastcall slots for native code that calls this open device; None: there are not that many."""
        if not self._is_fast_known:
            await self._find_fast()
        return None if self._fast is None else await self._fast.lend(handle, count)

    async def share(self, handle: int, region: RegionSpec) -> SharedSignal | None:
        """Show a region to an open device."""
        body = messages.Shm(
            handle,
            region.id,
            region.offset,
            region.length,
            region.flags,
            region.signal_offset,
            region.priority,
            next(self._cookies),
        )
        signal = _number_of(await self._ask(body), "Shm")
        if signal == 0:
            return None
        kick_fd, call_fd = await self._node.signal_fds(self.sid, signal)
        return SharedSignal(signal, kick_fd, call_fd)

    async def close_device(self, handle: int) -> None:
        """Close a handle; one the host closed before is closed as well as can be."""
        with contextlib.suppress(NotFoundError):
            await self._ask(messages.Close(handle))

    async def give_fd(self, ticket: int, fd: int) -> None:
        """Hand the host a descriptor for one of its devices; ``fd`` stays the caller's."""
        await self._node.hand_over(fdpass.Give(self.sid, ticket), [fd])

    async def take_fd(self, ticket: int, deadline_s: float | None) -> int:
        """Take a descriptor that one of its devices lent."""
        return await self._node.lent_fd(self.sid, ticket, deadline_s)

    # ---- for the node ----------------------------------------------------------------------------------------------

    async def enter(self, bus: str | None, ram_bytes: int) -> None:
        """Say hello, prove who we are, hand over the memory, and be ready."""
        if ram_bytes:
            self._ram = _new_ram(ram_bytes)
            self.memory = Memory(RAM_HEADER_BYTES, self._ram.size)
        hello = messages.Hello(self.name, bus, os.getpid(), self.kind, messages.PROTOCOL_VERSION, messages.ABI_VERSION)
        welcome = await self._ask(hello)
        if not isinstance(welcome, messages.Welcome):
            raise _strange("Hello", welcome)
        self.bus = welcome.bus
        self._is_entered = True
        self._node.beat_every(welcome.heartbeat_ms / 1000)
        if not self._node.is_remote:
            fds = [self._ram.fileno()] if self._ram is not None else []
            await self._node.hand_over(fdpass.Attach(welcome.token, bool(fds)), fds)
        await self._ask(messages.Ready())

    def happened(self, event: Event | HostBody) -> None:
        """Take an event."""
        match event:
            case messages.DevAdd():
                device = ProxyDevice(self, event.dev_id, event.type, event.name)
                self._devices[event.dev_id] = device
                if event.type == _FASTCALL_TYPE:
                    self._is_fast_known = False
                self._match(device)
            case messages.DevDrop():
                if (dropped := self._devices.get(event.dev_id)) is not None:
                    self._drop(dropped, PeerGone(f"device {dropped.name!r} left the bus", dev_id=event.dev_id))
            case messages.LinkState():
                if (linked := self._devices.get(event.dev_id)) is not None:
                    linked.link_changed(is_up=event.is_up)
            case messages.ShmClose():
                pass
            case _:
                return
        for stream in self._streams:
            stream.put(event)
        self._wake()

    def ended(self, error: VbnetError) -> None:
        """The session is over: everything that waits raises ``error``, drivers are removed."""
        if self._end is not None:
            if isinstance(error, ClosedError):
                self._end = error
            return
        self._end = error
        for device in self.devices:
            self._drop(device, error)
        for stream in self._streams:
            stream.end(error)
        self._wake()

    # ---- inside ----------------------------------------------------------------------------------------------------

    async def _ask(self, body: messages.Request, deadline_s: float | None = None) -> HostBody:
        if self._end is not None:
            raise self._end
        try:
            return await self._node.ask(self.sid, body, deadline_s)
        except VbnetError:
            if self._end is None:
                raise
            raise self._end from None  # why it ended says more than that the host does not know it any more

    async def _wait_until(self, find: Callable[[], T | None], what: str, timeout: float | None) -> T:  # noqa: ASYNC109
        changed = asyncio.Event()
        self._changed.append(changed)
        seconds = self._node.deadline_s if timeout is None else timeout
        deadline_ns = self._node.moment(seconds)
        timer = self._node.call_later(seconds, changed.set)
        try:
            while (found := find()) is None:
                if self._end is not None:
                    raise self._end
                if self._node.seconds_left(deadline_ns) <= 0:
                    raise DeadlineError(f"no {what} within {seconds} s", deadline_s=seconds)
                changed.clear()
                await changed.wait()
            return found
        finally:
            self._changed.remove(changed)
            timer.cancel()

    async def _find_fast(self) -> None:
        """Bind the fastcall device, if the bus has one; a guest that cannot use it goes the ordinary way."""
        if (device := self._find(_FASTCALL_TYPE)) is not None:
            with contextlib.suppress(VbnetError):
                await self.bind(device.name)
        self._is_fast_known = True

    def _from_thread(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the event loop for another thread, which waits; every request in it has its deadline."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise ClosedError(f"the event loop of guest {self.name!r} is closed") from None
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _find(self, name_or_type: str) -> ProxyDevice | None:
        devices = self.devices
        by_name = (device for device in devices if device.name == name_or_type)
        by_type = (device for device in devices if device.abi_type == name_or_type)
        return next(itertools.chain(by_name, by_type), None)

    def _find_nic(self) -> ProxyDevice | None:
        return next((device for device in self.devices if is_nic_type(device.abi_type)), None)

    def _match(self, device: ProxyDevice) -> None:
        driver = self._drivers.get(device.abi_type)
        if driver is not None and device not in self._bindings:
            self._start(device, driver)

    def _start(self, device: ProxyDevice, driver: Driver) -> None:
        self._bindings[device] = self._spawn(self._probe(device, driver))

    async def _probe(self, device: ProxyDevice, driver: Driver) -> DriverInstance:
        try:
            device.instance = await driver.probe(device)
        except Exception as error:
            device.probe_error = error
            _log.warning("the driver for %r failed to take %r: %s", device.abi_type, device.name, error)
            raise
        if device.abi_type == _FASTCALL_TYPE:
            self._fast = cast("_FastPool", device.instance)
        return device.instance

    def _drop(self, device: ProxyDevice, reason: VbnetError) -> asyncio.Task[None] | None:
        self._devices.pop(device.dev_id, None)
        device.void(reason)
        if device.abi_type == _FASTCALL_TYPE:
            self._fast, self._is_fast_known = None, False
        binding = self._bindings.pop(device, None)
        return None if binding is None else self._spawn(self._unbind(device, binding))

    async def _unbind(self, device: ProxyDevice, binding: asyncio.Task[DriverInstance]) -> None:
        binding.cancel()
        await asyncio.wait([binding])
        instance, device.instance = device.instance, None
        if instance is None:
            return
        try:
            await instance.remove()
        except Exception as error:  # noqa: BLE001 - a driver's bug ends with the driver
            _log.warning("the driver for %r failed to leave %r: %s", device.abi_type, device.name, error)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # it was kept in probe_error and logged
        self._wake()

    def _wake(self) -> None:
        for changed in self._changed:
            changed.set()


def _new_ram(size: int) -> Ram:
    from vbnet.sharedmem import Ram  # noqa: PLC0415 - guests without memory do not need the native module

    return Ram.create(size)


def _answer_of(body: HostBody) -> int | bytes | tuple[messages.Listed, ...] | None:
    if not isinstance(body, messages.Answer):
        raise _strange("the request", body)
    return body.result


def _number_of(body: HostBody, what: str) -> int:
    result = _answer_of(body)
    if not isinstance(result, int):
        raise _strange(what, result)
    return result


def _strange(what: str, got: object) -> PeerFault:
    return PeerFault(
        f"the host answered {what} with a {type(got).__name__}", rule="typed answers", got=type(got).__name__
    )

"""The guest half of the interrupt controller: handlers of signals, on threads of their own, most urgent first.

    intc = await guest.bind("intc0")
    tick = await intc.create("tick", on_tick, priority=5)      # a signal others may raise: await tick.grant("other")
    await intc.bind(nic.receive_signal, on_frames)             # a device's signal, served here, not by its eventfd
    bell = await intc.connect("other/tick"); bell.ring()       # a signal somebody granted: one store, seldom a call
    intc.vcpus[0].threshold = 4                                # priorities 0..3 wait

Each priority of each vCPU has a thread, started when its first signal comes or its first handler is registered, so a
handler of higher priority runs while a lower one is in the middle of its work. Threads of priority 1 to 7 run in the
real-time class SCHED_FIFO where the process may (root, CAP_SYS_NICE, RLIMIT_RTPRIO), so that they preempt at once;
elsewhere the scheduler shares the core fairly and ``Vcpu.is_realtime`` is False. A Python handler also waits for the
interpreter's lock, which a running one gives up within ``sys.getswitchinterval()`` (5 ms unless it is set lower).

Who writes what: see ``rust/core/src/shm/intc.rs``. A handler that raises is counted and logged, and the next runs; one
that never returns blocks its own priority only, and the host shows it as wedged.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import select
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

from vbnet._native import IntcLevel, IntcOutbox, format_level
from vbnet.devices.intc import wire
from vbnet.errors import ClosedError, NotFoundError, PeerGone, ResourceError, UnsupportedError, UsageError
from vbnet.guestnode.memory import Block
from vbnet.guestnode.proxy import OpenDevice, ProxyDevice, SharedSignal

__all__ = ["Doorbell", "GuestSignal", "Handler", "Intc", "IntcDriver", "Vcpu"]

Handler = Callable[[], object]
"""What serves a signal: a function, run on the thread of its priority; or a coroutine function, run on the event loop
of the guest."""

_log = logging.getLogger("vbnet.guest")
_BUDGET: Final = 64
_JOIN_S: Final = 1.0
_ALIGNMENT: Final = 128
_FIRST_REALTIME: Final = 1


class IntcDriver:
    """Drives ``interrupt-controller`` devices.

    Args:
        vcpus: how many sets of eight priorities, 1..64.
        is_realtime: let threads of priority 1..7 run in the real-time class where that is permitted.
        spin: seconds that a thread looks on for more work before it sleeps.
    """

    abi_type = wire.ABI_TYPE

    def __init__(self, vcpus: int = 1, *, is_realtime: bool = True, spin: float = 0.0) -> None:
        if not 1 <= vcpus <= wire.VCPUS_MAX:
            raise UsageError(f"a guest has 1..{wire.VCPUS_MAX} vCPUs; got {vcpus}", got=vcpus, limit=wire.VCPUS_MAX)
        self._vcpus = vcpus
        self._is_realtime = is_realtime
        self._spin = spin

    async def probe(self, device: ProxyDevice) -> Intc:
        """Lay out levels and outbox, show them to the host and start the controller."""
        opened = await device.open(wire.VERSION)
        count = self._vcpus * wire.PRIORITIES
        block = None
        try:
            block = device.memory.allocate((count + 1) * wire.LEVEL_BYTES, _ALIGNMENT)
            places = [block.offset + index * wire.LEVEL_BYTES for index in range(count + 1)]
            for place in places:
                format_level(device.ram, place)
            shown = await asyncio.gather(
                *(
                    _share(opened, region, place, region % wire.PRIORITIES)
                    for region, place in enumerate(places[:count])
                ),
                _share(opened, wire.OUTBOX, places[count], 0),
            )
            levels = [
                IntcLevel(device.ram, place, signal.call_fd)
                for place, signal in zip(places[:count], shown[:count], strict=True)
            ]
            outbox = IntcOutbox(device.ram, places[count], shown[count].kick_fd)
            answer = await opened.call(wire.Function.START, wire.VCPUS.pack(self._vcpus))
            (mode,) = wire.MODE.unpack(answer)
        except BaseException:
            await opened.close()
            if block is not None:
                device.memory.free(block)
            raise
        is_trapped = mode == wire.TRAPPED
        return Intc(
            opened, block, levels, outbox, is_realtime=self._is_realtime, spin=self._spin, is_trapped=is_trapped
        )


async def _share(opened: OpenDevice, region: int, offset: int, priority: int) -> SharedSignal:
    signal = await opened.shm(
        region, offset, wire.LEVEL_BYTES, priority=priority, signal_offset=wire.LEVEL_SIGNAL_OFFSET
    )
    if signal is None:  # a level is always shown with one
        raise ResourceError(f"the host gave level {region} no doorbell")
    return signal


class Vcpu:
    """Eight priorities of one guest, each with a thread of its own.

    Attributes:
        number: 0 for the first.
        served: handlers that ran to their end.
        failures: handlers that raised.
    """

    def __init__(self, number: int, servers: list[_Server]) -> None:
        self.number = number
        self._servers = servers
        self._threshold = 0

    @property
    def served(self) -> int:
        """Handlers that ran so far, failed ones included."""
        return sum(server.served for server in self._servers)

    @property
    def failures(self) -> int:
        """Handlers that raised so far."""
        return sum(server.failures for server in self._servers)

    @property
    def is_realtime(self) -> bool | None:
        """Whether its urgent threads got into the real-time class; None: none has started yet."""
        found = [server.is_realtime for server in self._servers if server.is_realtime is not None]
        return all(found) if found else None

    @property
    def threads(self) -> dict[int, int]:
        """Kernel thread id by priority, of those that have started."""
        return {server.priority: server.tid for server in self._servers if server.tid}

    @property
    def threshold(self) -> int:
        """The least priority that is served, 0..8; signals below it stay pending. 8 serves none."""
        return self._threshold

    @threshold.setter
    def threshold(self, least: int) -> None:
        if not 0 <= least <= wire.PRIORITIES:
            raise UsageError(f"a threshold is 0..{wire.PRIORITIES}; got {least}", got=least, limit=wire.PRIORITIES)
        if self._servers[0].is_trapped:
            raise UnsupportedError("an emulated controller has no threshold; mask signals at the host")
        self._threshold = least
        for server in self._servers:
            is_held = server.priority < least
            if is_held is not server.level.is_held:
                server.level.hold(is_held)


class _Server:
    """One priority of one vCPU: its level, and the thread that serves it."""

    is_trapped = False

    def __init__(self, intc: Intc, level: IntcLevel, vcpu: int, priority: int) -> None:
        self.level = level
        self.vcpu = vcpu
        self.priority = priority
        self.served = 0
        self.failures = 0
        self.tid = 0
        self.is_realtime: bool | None = None
        self._intc = intc
        self._thread: threading.Thread | None = None
        self._is_over = False

    def watch(self) -> None:
        """Start the thread as soon as the level's doorbell rings."""
        if self.level.arm():
            self._intc.loop.add_reader(self.level.fileno(), self.start)
        else:
            self.start()

    def start(self) -> None:
        """Start the thread; harmless when it runs."""
        if self._thread is not None or self._is_over:
            return
        self._intc.loop.remove_reader(self.level.fileno())
        self._thread = threading.Thread(
            target=self._serve, name=f"vbnet-irq-{self.priority}", daemon=True, args=(self._intc.spin,)
        )
        self._thread.start()

    def _serve(self, spin: float) -> None:
        self.tid = threading.get_native_id()
        self.is_realtime = self._intc.is_realtime and _become_realtime(self.priority)
        level, handlers = self.level, self._intc.handlers
        while not self._is_over:
            for vector in level.wait(_BUDGET, None, spin):
                level.begin(vector)
                try:
                    self.handle(handlers.get(vector), vector)
                finally:
                    level.end()

    def handle(self, handler: Handler | None, vector: int) -> None:
        """Run a handler; what it raises is its own bug, counted and logged."""
        try:
            if handler is not None:
                handler()
        except Exception:  # noqa: BLE001 - a handler's bug ends with this call of it
            self.failures += 1
            _log.exception("the handler of vector %d at priority %d failed", vector, self.priority)
        finally:
            self.served += 1

    async def stop(self) -> bool:
        """End the thread. False: its handler does not return, and it is left behind."""
        self._is_over = True
        if self._thread is None:
            self._intc.loop.remove_reader(self.level.fileno())
            return True
        self.level.nudge()
        if self._thread is not threading.current_thread():
            await asyncio.to_thread(self._thread.join, _JOIN_S)
        return not self._thread.is_alive()


class _TrappedServer(_Server):
    """One vCPU of an emulated controller: a thread on its one interrupt line, at the place of priority 0."""

    is_trapped = True

    def watch(self) -> None:
        """Wait for the interrupt line; the other priorities have none."""
        if self.priority == 0:
            self._intc.loop.add_reader(self.level.fileno(), self.start)

    def start(self) -> None:
        """Start the thread of this vCPU."""
        if self.priority == 0:
            super().start()

    def _serve(self, spin: float) -> None:
        del spin
        self.tid = threading.get_native_id()
        self.is_realtime = False
        line, vcpu = self.level.fileno(), wire.VCPU.pack(self.vcpu)
        poll = select.poll()
        poll.register(line, select.POLLIN)
        while not self._is_over:
            poll.poll()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(line)
            try:
                self._drain(vcpu)
            except (ClosedError, PeerGone):
                return

    def _drain(self, vcpu: bytes) -> None:
        """Acknowledge, handle and end until nothing is requested: two traps an interrupt."""
        trap, handlers = self._intc.trap, self._intc.handlers
        while (found := trap(wire.Function.ACKNOWLEDGE, vcpu)) and not self._is_over:
            _priority, vector = wire.INTERRUPT.unpack(found)
            self.handle(handlers.get(vector), vector)
            if not trap(wire.Function.END, vcpu)[0]:
                return


class Intc:
    """A guest's interrupt controller at work. Made by :class:`IntcDriver`; to be used on the guest's event loop.

    Attributes:
        vcpus: its vCPUs.
        handlers: what serves each vector.
        is_realtime: whether threads try for the real-time class.
        is_trapped: the controller is an emulated one: each vCPU has one thread, each acknowledge and end is a call.
    """

    def __init__(
        self,
        opened: OpenDevice,
        block: Block,
        levels: list[IntcLevel],
        outbox: IntcOutbox,
        *,
        is_realtime: bool,
        spin: float,
        is_trapped: bool = False,
    ) -> None:
        self.is_trapped = is_trapped
        self.handlers: dict[int, Handler] = {}
        self.is_realtime = is_realtime
        self.spin = spin
        self.loop = asyncio.get_running_loop()
        self._opened = opened
        self._block = block
        self._outbox = outbox
        kind = _TrappedServer if is_trapped else _Server
        self._servers = [kind(self, level, *divmod(index, wire.PRIORITIES)) for index, level in enumerate(levels)]
        self.vcpus = tuple(
            Vcpu(first // wire.PRIORITIES, self._servers[first : first + wire.PRIORITIES])
            for first in range(0, len(levels), wire.PRIORITIES)
        )
        self._free_vectors = list(range(wire.VECTORS - 1, -1, -1))
        self._places: set[int] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        for server in self._servers:
            server.watch()

    async def create(self, name: str, handler: Handler, *, priority: int = 0, vcpu: int = 0) -> GuestSignal:
        """Make a signal under a name, for the host, timers and others whom it is granted to raise.

        Args:
            name: unique among this guest's; others know it as ``GUEST/NAME``.
            handler: what serves it.
            priority: 0..7, 7 the most urgent.
            vcpu: which vCPU serves it.

        Raises:
            ExistsError: the name is taken. UsageError, NotFoundError: no such priority or vCPU.
            ResourceError: no vector or signal is left.
        """
        vector = self._take_vector(handler)
        try:
            data = wire.CREATE.pack(_u32(priority), _u32(vcpu), vector) + name.encode()
            (line,) = wire.LINE.unpack(await self._opened.call(wire.Function.CREATE, data))
        except BaseException:
            self.give_vector_back(vector)
            raise
        self._start(vcpu, priority)
        return GuestSignal(self, line, vector, handle=None)

    async def bind(self, signal: SharedSignal, handler: Handler, *, vcpu: int = 0) -> GuestSignal:
        """Have a device's signal served here instead of by its own eventfd, at the priority it was shown with.

        Args:
            signal: of one of this guest's open devices.
            handler: what serves it.
            vcpu: which vCPU serves it.

        Raises:
            NotFoundError: the signal is closed, or no such vCPU.
        """
        vector = self._take_vector(handler)
        try:
            data = wire.BIND.pack(signal.handle, _u32(vcpu), vector)
            (line,) = wire.LINE.unpack(await self._opened.call(wire.Function.BIND, data))
        except BaseException:
            self.give_vector_back(vector)
            raise
        return GuestSignal(self, line, vector, handle=signal.handle)

    async def on_bus_events(self, handler: Handler, *, vcpu: int = 0) -> GuestSignal:
        """Be told of the bus's own events (a device came or left, a link changed) at the highest priority, 7.

        What happened comes as ever, by ``GuestSession.events`` and drivers; this is the word that something did, which
        no flood of other signals holds up.

        Args:
            handler: what serves it; several events may be one call.
            vcpu: which vCPU serves it.

        Raises:
            ExistsError: somebody is told already.
        """
        vector = self._take_vector(handler)
        try:
            data = wire.EVENTS.pack(_u32(vcpu), vector)
            (line,) = wire.LINE.unpack(await self._opened.call(wire.Function.EVENTS, data))
        except BaseException:
            self.give_vector_back(vector)
            raise
        self._start(vcpu, wire.PRIORITIES - 1)
        return GuestSignal(self, line, vector, handle=None)

    async def connect(self, name: str) -> Doorbell:
        """Get hold of another's signal that this guest was granted, or of one of its own.

        Args:
            name: ``GUEST/NAME``, or an operator's ``NAME``.

        Raises:
            NotFoundError: no such signal. NotPermittedError: it was not granted.
            ResourceError: every place of the outbox is taken.
        """
        place = next((place for place in range(wire.VECTORS) if place not in self._places), None)
        if place is None:
            raise ResourceError("every place of this guest's outbox is taken; close a doorbell", limit=wire.VECTORS)
        self._places.add(place)
        try:
            await self._opened.call(wire.Function.CONNECT, wire.CONNECT.pack(place) + name.encode())
        except BaseException:
            self._places.discard(place)
            raise
        return Doorbell(self, self._outbox, place)

    async def remove(self) -> None:
        """The device left, or the guest does: end the threads, then give the memory back."""
        ended = [await server.stop() for server in self._servers]
        await self._opened.close()
        if all(ended):  # a thread whose handler never returns still has its level
            self._servers.clear()
            self._opened.device.memory.free(self._block)

    # ---- for signals and doorbells ---------------------------------------------------------------------------------

    async def ask(self, function: wire.Function, data: bytes) -> bytes:
        """Run a function of the device."""
        return await self._opened.call(function, data)

    def trap(self, function: wire.Function, data: bytes) -> bytes:
        """Call the device from a thread that serves, and wait: through shared memory where the bus has fastcalls."""
        return self._opened.fastcall(function, data)

    @property
    def device(self) -> ProxyDevice:
        """The device behind it."""
        return self._opened.device

    def each_level(self) -> list[IntcLevel]:
        """Every level of every vCPU."""
        return [server.level for server in self._servers]

    def give_vector_back(self, vector: int) -> None:
        """Nothing is served under this vector any more."""
        if self.handlers.pop(vector, None) is not None:
            self._free_vectors.append(vector)

    def give_place_back(self, place: int) -> None:
        """A place of the outbox is free."""
        self._places.discard(place)

    def _take_vector(self, handler: Handler) -> int:
        if not self._free_vectors:
            raise ResourceError("every vector of this guest is taken; destroy a signal", limit=wire.VECTORS)
        vector = self._free_vectors.pop()
        self.handlers[vector] = self._on_loop(handler) if inspect.iscoroutinefunction(handler) else handler
        return vector

    def _on_loop(self, handler: Callable[[], Coroutine[Any, Any, object]]) -> Handler:
        def spawn() -> None:
            task = self.loop.create_task(handler())
            self._tasks.add(task)
            task.add_done_callback(self._done)

        return lambda: self.loop.call_soon_threadsafe(spawn)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a handler on the event loop failed: %s", error)

    def _start(self, vcpu: int, priority: int) -> None:
        """Have the thread ready before the first signal comes."""
        self._servers[wire.level_region(vcpu, 0 if self.is_trapped else priority)].start()


class GuestSignal:
    """A signal that this guest serves. Made by ``Intc.create`` and ``Intc.bind``.

    Attributes:
        line: its number on the host.
        vector: the number under which this guest sees it pending.
    """

    def __init__(self, intc: Intc, line: int, vector: int, handle: int | None) -> None:
        self.line = line
        self.vector = vector
        self._intc = intc
        self._handle = handle

    def mask(self) -> None:
        """Keep its handler from being called: a store a level, no call. Raises stay pending as one.

        Raises:
            UnsupportedError: the controller is an emulated one, which masks at the host: ``await mask_at_host()``.
        """
        if self._intc.is_trapped:
            raise UnsupportedError("an emulated controller masks at the host; use mask_at_host()")
        for level in self._intc.each_level():
            level.mask(self.vector)

    def unmask(self) -> None:
        """Let its handler be called again, at once if it was raised meanwhile."""
        for level in self._intc.each_level():
            level.unmask(self.vector)

    async def mask_at_host(self, is_masked: bool = True) -> None:
        """Have the host keep its raises, so that none of them touches this guest's memory; or deliver them as one."""
        await self._intc.ask(wire.Function.MASK, wire.LINE_VALUE.pack(self.line, int(is_masked)))

    async def route(self, vcpu: int) -> None:
        """Have another vCPU serve it; what was pending is served where it was."""
        await self._intc.ask(wire.Function.ROUTE, wire.ROUTE.pack(self.line, _u32(vcpu), self.vector))

    async def set_priority(self, priority: int) -> None:
        """Change its priority, 0..7; what was pending is served as it was."""
        await self._intc.ask(wire.Function.PRIORITY, wire.LINE_VALUE.pack(self.line, _u32(priority)))

    async def raise_(self) -> None:
        """Raise it by message, for those who are not in a hurry; a ``Doorbell`` does it by a store."""
        await self._intc.ask(wire.Function.RAISE, wire.LINE.pack(self.line))

    async def grant(self, guest: str) -> None:
        """Let another guest raise it."""
        await self._intc.ask(wire.Function.GRANT, wire.GRANT.pack(self.line, 1) + guest.encode())

    async def revoke(self, guest: str) -> None:
        """Let it no more; doorbells it has are disconnected."""
        await self._intc.ask(wire.Function.GRANT, wire.GRANT.pack(self.line, 0) + guest.encode())

    async def export(self) -> int:
        """Lead it to a new eventfd instead of its handler; the descriptor is the caller's, for whoever is to wait."""
        (ticket,) = wire.LINE.unpack(await self._intc.ask(wire.Function.EXPORT, wire.LINE.pack(self.line)))
        return await self._intc.device.take_fd(ticket)

    async def drive(self, fd: int) -> int:
        """Let an eventfd or connected socket raise it; gives the source's number. ``fd`` stays the caller's.

        A socket's hang-up detaches it. Raises UsageError for any other kind of descriptor.
        """
        ticket = await self._intc.device.give_new_fd(fd)
        (source,) = wire.LINE.unpack(await self._intc.ask(wire.Function.DRIVE, wire.DRIVE.pack(self.line, ticket)))
        return int(source)

    async def undrive(self, source: int) -> None:
        """Let go of a source."""
        await self._intc.ask(wire.Function.UNDRIVE, wire.DRIVE.pack(self.line, source))

    async def destroy(self) -> None:
        """Serve it no more: a bound signal goes back to its own eventfd, a named one is gone."""
        with contextlib.suppress(PeerGone, NotFoundError):
            if self._handle is None:
                await self._intc.ask(wire.Function.DESTROY, wire.LINE.pack(self.line))
            else:
                await self._intc.ask(wire.Function.UNBIND, wire.LINE.pack(self._handle))
        self.unmask()
        self._intc.give_vector_back(self.vector)


class Doorbell:
    """Another's signal, to be raised by a store. Made by ``Intc.connect``; may be used by any thread."""

    def __init__(self, intc: Intc, outbox: IntcOutbox, place: int) -> None:
        self._intc = intc
        self._raise = outbox.raise_number
        self._place = place

    def ring(self) -> bool:
        """Raise the signal. True: the host slept and had to be woken. What is revoked meanwhile is ignored there."""
        return self._raise(self._place)

    async def close(self) -> None:
        """Let go of it."""
        with contextlib.suppress(PeerGone, NotFoundError):
            await self._intc.ask(wire.Function.DISCONNECT, wire.PLACE.pack(self._place))
        self._intc.give_place_back(self._place)


def _become_realtime(priority: int) -> bool:
    """Put the calling thread into the real-time class, if it is urgent and that is permitted."""
    if priority < _FIRST_REALTIME:
        return True
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except PermissionError:
        return False
    return True


def _u32(value: int) -> int:
    if not 0 <= value < 1 << 32:
        raise UsageError(f"a number from 0 on is wanted; got {value}", got=value)
    return value

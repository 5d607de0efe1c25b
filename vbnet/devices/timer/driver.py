"""The guest half of timer: deadlines by the thousand, without a system call for most of them.

    timer = await guest.bind("timer0")
    later = timer.arm(0.5, callback=print)              # on the event loop; the tick is the argument
    later.move(2.0); later.cancel()
    async for tick in timer.every(0.001): ...           # tick.number, .deadline_ns, .late_ns, .missed
    await timer.after(0.01)

    mine = timer.arm(0.01, every=0.01)                  # for a thread
    tick = timer.wait(mine, timeout=1.0)                # None: the time was up, or it was cancelled

Deadlines are nanoseconds of ``timer.now_ns()``, CLOCK_MONOTONIC. No tick comes early; a periodic timer stays on its
grid, and expiries without a tick are counted in ``missed``. When the device or the host is gone, everything that waits
raises PeerGone. A host whose device is not ``enabled`` keeps no timers: then a thread of this process does, and
``is_shared`` is False. Who writes which memory: see ``rust/core/src/guest/timer.rs``.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from vbnet._native import CounterFile, Ram, Tick, Timekeeper, TimersLayout, timer_now_ns
from vbnet._native import Timers as NativeTimers
from vbnet.devices.timer import wire
from vbnet.errors import BusyError, ClosedError, PeerGone, UsageError, VbnetError
from vbnet.guestnode.memory import Block
from vbnet.guestnode.proxy import OpenDevice, ProxyDevice, SharedSignal

__all__ = ["LocalTimers", "Tick", "Timer", "TimerDriver", "Timers"]

Handler = Callable[[Tick], object]

_LINE_PAIR: Final = 128
_NO_ID: Final = 2**64 - 1
_NS: Final = 1_000_000_000
_ROUNDS: Final = 16
"""How often ticks are taken before the rest of the event loop has its turn."""


class Timer:
    """One timer. Made by ``Timers.arm``.

    Args:
        timers: where it lives.
        id: of its present arming.
        period_ns: 0 for once.
        priority: 0..7.
        handler: called on the event loop; None for a thread.
    """

    def __init__(self, timers: Timers, id: int, period_ns: int, priority: int, handler: Handler | None) -> None:  # noqa: A002
        self._timers = timers
        self.id = id
        self.period_ns = period_ns
        self.priority = priority
        self.handler = handler

    def move(
        self, in_seconds: float | None = None, *, deadline_ns: int | None = None, every: float | None = None
    ) -> None:
        """Set another deadline, and period if given; a timer that is over is armed anew. Ticks not yet heard are void.

        Args:
            in_seconds: from now; or else
            deadline_ns: of ``now_ns()``.
            every: period in seconds; None keeps the one it has, 0 is once.
        """
        self.period_ns = self.period_ns if every is None else _period(every)
        self._timers.rearm(self, _deadline(in_seconds, deadline_ns))

    def cancel(self) -> bool:
        """Stop it; False when it was over already."""
        return self._timers.cancel(self)


class Timers:
    """All timers of one guest on one device.

    Attributes:
        is_shared: whether the host keeps them; otherwise a thread of this process does.
    """

    def __init__(self, native: NativeTimers, opened: OpenDevice, block: Block | None, *, is_shared: bool) -> None:
        self.is_shared = is_shared
        self._native = native
        self._opened = opened
        self._block = block
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._handlers: dict[int, Timer] = {}
        self._mailboxes: set[_Mailbox] = set()
        self._shown: set[int] = set()
        self._showing: set[asyncio.Task[None]] = set()
        self._is_serving = False
        self._reminder: asyncio.TimerHandle | None = None
        self._ended: VbnetError | None = None

    @staticmethod
    def now_ns() -> int:
        """The time, as deadlines have it: nanoseconds of CLOCK_MONOTONIC."""
        return timer_now_ns()

    def arm(
        self,
        in_seconds: float | None = None,
        *,
        deadline_ns: int | None = None,
        every: float = 0,
        priority: int = 0,
        callback: Handler | None = None,
    ) -> Timer:
        """Arm a timer.

        Args:
            in_seconds: from now, the past means at once; or else
            deadline_ns: of ``now_ns()``.
            every: period in seconds, 0.00001 or longer; 0 is once.
            priority: 0..7, 7 the most urgent.
            callback: called with each tick on the event loop; None: a thread waits for it with ``wait``.

        Raises:
            UsageError: a period or priority that cannot be, or a callback from another thread than the loop's.
            BusyError: every slot is in use. PeerGone, ClosedError: it is over.
        """
        timer = Timer(self, _NO_ID, _period(every), priority, callback)
        self.rearm(timer, _deadline(in_seconds, deadline_ns))
        return timer

    def rearm(self, timer: Timer, deadline_ns: int) -> None:
        """Arm one of these timers anew; ``Timer.move`` is the convenient form."""
        for_loop = timer.handler is not None
        if for_loop and threading.get_ident() != self._thread:
            raise UsageError("callbacks run on the event loop: arm the timer there, or wait for it in this thread")
        self._handlers.pop(timer.id, None)
        timer.id = self._native.rearm(timer.id, deadline_ns, timer.period_ns, timer.priority, for_loop)
        if timer.priority not in self._shown:
            self._show(timer.priority)
        if for_loop:
            self._handlers[timer.id] = timer
            if not self._is_serving:
                self._is_serving = True
                self._loop.add_reader(self._native.fileno(), self._serve)
                self._loop.call_soon(self._serve)

    def cancel(self, timer: Timer) -> bool:
        """Stop one of these timers; ``Timer.cancel`` is the convenient form."""
        self._handlers.pop(timer.id, None)
        return self._native.cancel(timer.id)

    def wait(self, timer: Timer, timeout: float | None = None) -> Tick | None:
        """Wait in this thread for the next tick of a timer without callback.

        Returns:
            The tick; None when ``timeout`` seconds have passed, or the timer was cancelled or is over.

        Raises:
            UsageError: it has a callback. PeerGone, ClosedError: it is over.
        """
        if timer.handler is not None:
            raise UsageError("this timer has a callback; arm one without to wait for it in a thread")
        return self._native.wait(timer.id, timeout)

    async def after(self, seconds: float, *, priority: int = 0) -> Tick:
        """Wait for ``seconds``; the tick says how late it is."""
        with self._mailbox() as mailbox:
            timer = self.arm(seconds, priority=priority, callback=mailbox.put)
            try:
                return await mailbox.take()
            finally:
                timer.cancel()

    async def every(self, seconds: float, *, deadline_ns: int | None = None, priority: int = 0) -> AsyncIterator[Tick]:
        """Give a tick every ``seconds``, the first after as long, or at ``deadline_ns``; close it to stop the timer."""
        first_ns = _deadline(seconds, None) if deadline_ns is None else deadline_ns
        with self._mailbox() as mailbox:
            timer = self.arm(deadline_ns=first_ns, every=seconds, priority=priority, callback=mailbox.put)
            try:
                while True:
                    yield await mailbox.take()
            finally:
                timer.cancel()

    def totals(self) -> dict[str, int]:
        """What was done so far: arms, cancels, kicks, ticks, missed, sleeps, and the present lead_ns."""
        return self._native.totals()

    async def remove(self) -> None:
        """The device left, or the guest does: whoever waits hears of it, and the memory is free again."""
        reason = self._opened.ended_by
        if isinstance(reason, PeerGone):
            self._native.abandon()
        else:
            self._native.close()
        self._end(reason if reason is not None else ClosedError("these timers are closed"))
        for task in self._showing:
            task.cancel()
        await self._opened.close()
        if self._block is not None:
            self._opened.device.memory.free(self._block)
            self._block = None

    @contextlib.contextmanager
    def _mailbox(self) -> Iterator[_Mailbox]:
        """A mailbox that hears when it is over."""
        mailbox = _Mailbox()
        self._mailboxes.add(mailbox)
        try:
            yield mailbox
        finally:
            self._mailboxes.discard(mailbox)

    def _end(self, reason: VbnetError) -> None:
        self._ended = self._ended or reason
        if self._is_serving:
            self._loop.remove_reader(self._native.fileno())
            self._is_serving = False
        if self._reminder is not None:
            self._reminder.cancel()
        self._handlers.clear()
        for mailbox in self._mailboxes:
            mailbox.end(reason)

    def _serve(self) -> None:
        """Handle what expired, until nothing is left or the others on this loop want their turn."""
        if not self._is_serving:
            return
        try:
            for _ in range(_ROUNDS):
                ticks, until_ns = self._native.take_for_loop()
                if not ticks:
                    self._remind(until_ns)
                    return
                for tick in ticks:
                    self._handle(tick)
            self._loop.call_soon(self._serve)
        except (PeerGone, ClosedError) as error:
            self._end(error)

    def _handle(self, tick: Tick) -> None:
        timer = self._handlers.get(tick.id)
        if timer is None or timer.handler is None:
            return
        if timer.period_ns == 0:
            del self._handlers[tick.id]
        try:
            timer.handler(tick)
        except Exception as error:  # noqa: BLE001 - the callback's mistake, told the way asyncio tells its own
            self._loop.call_exception_handler({"message": "a timer's callback failed", "exception": error})

    def _remind(self, until_ns: int | None) -> None:
        if self._reminder is not None:
            self._reminder.cancel()
            self._reminder = None
        if until_ns is not None:
            self._reminder = self._loop.call_later(max(0, until_ns - timer_now_ns()) / _NS, self._serve)

    def _show(self, priority: int) -> None:
        """Have the host told where the signal of a priority is; what expires meanwhile is told then."""
        self._shown.add(priority)
        if threading.get_ident() == self._thread:
            self._start_showing(priority)
        else:
            self._loop.call_soon_threadsafe(self._start_showing, priority)

    def _start_showing(self, priority: int) -> None:
        task = self._loop.create_task(self.show_priority(priority))
        self._showing.add(task)
        task.add_done_callback(self._shown_or_not)

    def _shown_or_not(self, task: asyncio.Task[None]) -> None:
        self._showing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._ended is None:
            self._loop.call_exception_handler({"message": "a timer's signal was refused", "exception": error})

    async def show_priority(self, priority: int) -> None:
        """Show the host the signal of a priority, and listen to it; done by itself for the first timer of each."""
        self._shown.add(priority)
        layout = self._native.layout
        offset = layout.signals_offset + priority * layout.signal_bytes
        signal = await self._opened.shm(
            wire.SIGNAL + priority, offset, layout.signal_bytes, priority=priority, signal_offset=0
        )
        self._native.connect_priority(priority, _need(signal).call_fd)


class TimerDriver:
    """Drives ``timer`` devices.

    Args:
        slots: most timers at once, a power of two from 64 to 131072.
    """

    abi_type = wire.ABI_TYPE

    def __init__(self, slots: int = 1024) -> None:
        self._slots = slots

    async def probe(self, device: ProxyDevice) -> Timers:
        """Open the device and share a timer page; keep the timers in this process when the host does not."""
        opened = await device.open(wire.VERSION)
        try:
            is_enabled, slots_max, lead_ns = wire.QUERY_ANSWER.unpack(await opened.call(wire.QUERY))
            if not is_enabled:
                return await _keep_here(opened, self._slots)
            return await _share(opened, min(self._slots, 1 << (slots_max.bit_length() - 1)), lead_ns)
        except BaseException:
            await opened.close()
            raise


async def _share(opened: OpenDevice, slots: int, lead_ns: int) -> Timers:
    """Timers that the host keeps, in the guest's own memory."""
    device = opened.device
    layout = TimersLayout(slots)
    block = device.memory.allocate(layout.end - layout.page_offset, _LINE_PAIR)
    try:
        native = NativeTimers(device.ram, slots, block.offset)
        layout = native.layout
        page = await opened.shm(wire.PAGE, layout.page_offset, layout.page_bytes, signal_offset=wire.PAGE_SIGNAL_OFFSET)
        native.connect(_need(page).kick_fd, lead_ns)
        timers = Timers(native, opened, block, is_shared=True)
        await timers.show_priority(0)
    except BaseException:
        await opened.close()  # before the memory is another's
        device.memory.free(block)
        raise
    return timers


def _need(signal: SharedSignal | None) -> SharedSignal:
    """The doorbell of a region that is always shared with one."""
    if signal is None:
        raise BusyError("the host gave a region of timers no doorbell")
    return signal


class LocalTimers(Timers):
    """Timers that a thread of this process keeps.

    Args:
        kept: who keeps them, under which number, in which memory.
    """

    def __init__(self, native: NativeTimers, opened: OpenDevice, kept: tuple[Timekeeper, int, Ram]) -> None:
        super().__init__(native, opened, None, is_shared=False)
        self._kept = kept

    async def show_priority(self, priority: int) -> None:
        """Listen to the signal of a priority."""
        self._shown.add(priority)
        keeper, page, ram = self._kept
        layout = self._native.layout
        signal = (layout.signals_offset + priority * layout.signal_bytes, layout.signal_bytes)
        with _Bell() as call:
            self._native.connect_priority(priority, call)
            keeper.connect(page, priority, ram, signal, call)

    async def remove(self) -> None:
        """Whoever waits hears of it, and the thread lets go of the memory."""
        keeper, page, _ram = self._kept
        with contextlib.suppress(VbnetError):
            keeper.detach(page)
        await super().remove()


@functools.cache
def _own_keeper() -> Timekeeper:
    """The thread that keeps timers of this process."""
    return Timekeeper(CounterFile.create())


async def _keep_here(opened: OpenDevice, slots: int) -> Timers:
    """Timers in memory that nobody else sees."""
    layout = TimersLayout(slots)
    ram = Ram.create(layout.end)
    native = NativeTimers(ram, slots)
    with _Bell() as kick:
        place = (layout.page_offset, layout.page_bytes)
        page = _own_keeper().attach(ram, place, kick, "guest=local", slots_max=slots, lead_ns=0)
        native.connect(kick, 0)
    timers = LocalTimers(native, opened, (_own_keeper(), page, ram))
    await timers.show_priority(0)
    return timers


class _Mailbox:
    """Ticks for one task, and the news that there will be no more."""

    def __init__(self) -> None:
        self._ticks: collections.deque[Tick] = collections.deque()
        self._reason: VbnetError | None = None
        self._news = asyncio.Event()

    def put(self, tick: Tick) -> None:
        """Keep a tick."""
        self._ticks.append(tick)
        self._news.set()

    def end(self, reason: VbnetError) -> None:
        """Have whoever takes from now on get ``reason``, once the ticks are taken."""
        self._reason = reason
        self._news.set()

    async def take(self) -> Tick:
        """The oldest tick."""
        while not self._ticks:
            if self._reason is not None:
                raise self._reason
            self._news.clear()
            await self._news.wait()
        return self._ticks.popleft()


class _Bell:
    """An eventfd of this process, closed again when both ends have their copies."""

    def __enter__(self) -> int:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self._fd

    def __exit__(self, *_exc: object) -> None:
        os.close(self._fd)


def _period(seconds: float) -> int:
    if seconds < 0:
        raise UsageError(f"a period is not negative; got {seconds} s", got=seconds)
    return round(seconds * _NS)


def _deadline(in_seconds: float | None, deadline_ns: int | None) -> int:
    if (in_seconds is None) is (deadline_ns is None):
        raise UsageError("say when: either in_seconds or deadline_ns")
    if deadline_ns is not None:
        return deadline_ns
    return max(0, timer_now_ns() + round((in_seconds or 0) * _NS))

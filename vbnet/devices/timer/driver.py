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
raises PeerGone. While the operator has the device not ``enabled`` the host keeps no timers: then a thread of this
process does, on the same page, and ``is_shared`` is False. Timers go from one to the other while they run; a switch may
make a tick late, and none is lost or comes twice. Who writes which memory: see ``rust/core/src/guest/timer.rs``.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Final

from vbnet._native import CounterFile, Tick, Timekeeper, TimersLayout, timer_now_ns
from vbnet._native import Timers as NativeTimers
from vbnet.devices.timer import wire
from vbnet.errors import BusyError, ClosedError, DeadlineError, PeerGone, UnsupportedError, UsageError, VbnetError
from vbnet.guestnode.memory import Block
from vbnet.guestnode.proxy import OpenDevice, ProxyDevice, SharedSignal

__all__ = ["Tick", "Timer", "TimerDriver", "Timers"]

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

    Args:
        native: what arms and waits.
        opened: the device.
        block: their memory.

    Attributes:
        is_shared: whether the host keeps them; otherwise a thread of this process does.
    """

    def __init__(self, native: NativeTimers, opened: OpenDevice, block: Block) -> None:
        self.is_shared = False
        self._native = native
        self._opened = opened
        self._block: Block | None = block
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._handlers: dict[int, Timer] = {}
        self._mailboxes: set[_Mailbox] = set()
        self._shown = {0}
        self._page: SharedSignal | None = None
        self._signals: dict[int, SharedSignal] = {}
        self._kept_here: int | None = None
        self._may_host_keep = False
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
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
        self._opened.device.on_link = None
        reason = self._opened.ended_by
        self._stop(reason if reason is not None else ClosedError("these timers are closed"))
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(VbnetError):
            self._let_go()
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

    def _stop(self, reason: VbnetError) -> None:
        """Nobody keeps them any more: a thread that waits hears of it, and so does what waits on the event loop."""
        if isinstance(reason, ClosedError):
            self._native.close()
        else:
            self._native.abandon()
        self._end(reason)

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
            self._start(self.show_priority(priority))
        else:
            self._loop.call_soon_threadsafe(lambda: self._start(self.show_priority(priority)))

    def look_again(self, is_up: bool) -> None:
        """The host keeps timers from now on, or does so no more: do as it says, soon."""
        del is_up  # by the time it is done it may be otherwise
        self._start(self.settle())

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None or self._ended is not None:
            return
        if not isinstance(error, (PeerGone, ClosedError)):
            self._loop.call_exception_handler({"message": "a timer device refused its guest", "exception": error})
        if not self.is_shared and self._kept_here is None and not self._turn.locked():
            self._stop(PeerGone(f"nobody keeps these timers: {error}"))

    async def show_priority(self, priority: int) -> None:
        """Have whoever keeps the timers ring for a priority; done by itself for the first timer of each."""
        self._shown.add(priority)
        async with self._turn:
            if self.is_shared:
                await self._share_priority(priority)
            elif self._kept_here is not None:
                self._ring_here(priority)

    async def settle(self) -> None:
        """Have the timers kept by the host if its device is enabled, otherwise here."""
        async with self._turn:
            is_enabled, lead_ns = await self._query()
            try:
                if is_enabled and not self.is_shared:
                    await self._give_to_host(lead_ns)
                elif not is_enabled and (self.is_shared or self._kept_here is None):
                    await self._take_from_host()
            except UnsupportedError:
                if (await self._query())[0]:
                    raise
                # Switched off between question and answer: that is a wish of its own, and granted already.

    async def _query(self) -> tuple[bool, int]:
        is_enabled, _, lead_ns = wire.QUERY_ANSWER.unpack(await self._opened.call(wire.QUERY))
        return bool(is_enabled), lead_ns

    async def _give_to_host(self, lead_ns: int) -> None:
        """From here to the host; it stays here when the host refuses."""
        self._let_go()
        self._native.hand_over()
        self._may_host_keep = True
        try:
            if self._page is None:
                layout = self._native.layout
                place = (layout.page_offset, layout.page_bytes)
                self._page = _need(await self._opened.shm(wire.PAGE, *place, signal_offset=wire.PAGE_SIGNAL_OFFSET))
            else:
                await self._opened.call(wire.KEEP)
            for priority in sorted(self._shown):
                await self._share_priority(priority)
        except (PeerGone, ClosedError):
            raise
        except VbnetError:
            await self._take_from_host()
            raise
        self.is_shared = True
        self._native.connect(self._page.kick_fd, lead_ns)

    async def _take_from_host(self) -> None:
        """From the host to here: it is asked until it has said that it lets go, for two must never keep one page."""
        keeper = _own_keeper()
        while self._may_host_keep:
            with contextlib.suppress(DeadlineError):
                await self._opened.call(wire.RELEASE)
                self._may_host_keep = False
        self.is_shared = False
        self._native.hand_over()
        layout = self._native.layout
        with _Bell() as bell:
            kick = bell if self._page is None else self._page.kick_fd
            place = (layout.page_offset, layout.page_bytes)
            ram = self._opened.device.ram
            self._kept_here = keeper.attach(ram, place, kick, "guest=local", slots_max=layout.slots, lead_ns=0)
            for priority in sorted(self._shown):
                self._ring_here(priority)
            self._native.connect(kick, 0)

    def _let_go(self) -> None:
        """This process keeps them no more; when this returns, its thread touches the page no more."""
        kept, self._kept_here = self._kept_here, None
        if kept is not None:
            _own_keeper().detach(kept)

    async def _share_priority(self, priority: int) -> None:
        if priority in self._signals:
            return
        offset, length = self._signal_place(priority)
        region = wire.SIGNAL + priority
        signal = _need(await self._opened.shm(region, offset, length, priority=priority, signal_offset=0))
        self._signals[priority] = signal
        self._native.connect_priority(priority, signal.call_fd)

    def _ring_here(self, priority: int) -> None:
        """Have our own thread ring for a priority: the doorbell that the host would ring, if there is one."""
        if self._kept_here is None:
            return
        shared = self._signals.get(priority)
        with _Bell() as bell:
            call = bell if shared is None else shared.call_fd
            place, ram = self._signal_place(priority), self._opened.device.ram
            _own_keeper().connect(self._kept_here, priority, ram, place, call)
            if shared is None:
                self._native.connect_priority(priority, call)

    def _signal_place(self, priority: int) -> tuple[int, int]:
        layout = self._native.layout
        return layout.signals_offset + priority * layout.signal_bytes, layout.signal_bytes


class TimerDriver:
    """Drives ``timer`` devices.

    Args:
        slots: most timers at once, a power of two from 64 to 131072.
    """

    abi_type = wire.ABI_TYPE

    def __init__(self, slots: int = 1024) -> None:
        self._slots = slots

    async def probe(self, device: ProxyDevice) -> Timers:
        """Open the device and share a timer page; keep the timers in this process while the host does not."""
        opened = await device.open(wire.VERSION)
        try:
            _, slots_max, _ = wire.QUERY_ANSWER.unpack(await opened.call(wire.QUERY))
            slots = min(self._slots, 1 << (slots_max.bit_length() - 1))
            layout = TimersLayout(slots)
            ram, block = device.ram, device.memory.allocate(layout.end - layout.page_offset, _LINE_PAIR)
        except BaseException:
            await opened.close()
            raise
        try:
            timers = Timers(NativeTimers(ram, slots, block.offset), opened, block)
        except BaseException:
            await opened.close()
            device.memory.free(block)
            raise
        try:
            device.on_link = timers.look_again
            await timers.settle()
        except BaseException:
            await timers.remove()
            raise
        return timers


def _need(signal: SharedSignal | None) -> SharedSignal:
    """The doorbell of a region that is always shared with one."""
    if signal is None:
        raise BusyError("the host gave a region of timers no doorbell")
    return signal


@functools.cache
def _own_keeper() -> Timekeeper:
    """The thread that keeps timers of this process."""
    return Timekeeper(CounterFile.create())


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

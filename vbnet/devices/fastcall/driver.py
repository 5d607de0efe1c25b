"""The guest half of fastcall: a slot for each thread that calls.

    answer = opened.fastcall(function, data)          # from any thread; opened is any open device of this guest

A thread gets a slot at its first call and keeps it until it ends; then another thread may have it. The event loop's own
thread has one from the start, because it cannot wait for one to be shown. Who writes what: a slot's request is written
by the thread that has it, its answer by the host; see ``rust/core/src/shm/fastcall.rs``. When host or device are gone,
calls that wait end with PeerGone at once; whatever else happens they end at their deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import threading
from collections import deque
from typing import Final

from vbnet._native import FastSlot
from vbnet.devices.fastcall import wire
from vbnet.errors import BusyError, ClosedError, DeadlineError, VbnetError, error_from_refusal
from vbnet.guestnode.memory import Block
from vbnet.guestnode.proxy import FastSlots, OpenDevice, ProxyDevice

__all__ = ["FastcallDriver", "FastcallPool"]

_HANDLE_SHIFT: Final = 32
"""A slot names a device by the upper half of its handle."""


class FastcallDriver:
    """Drives ``fastcall`` devices."""

    abi_type = wire.ABI_TYPE

    async def probe(self, device: ProxyDevice) -> FastcallPool:
        """Open it, and show the slot of the event loop's thread."""
        opened = await device.open(wire.VERSION)
        try:
            slots_max, spin_us = wire.INFO.unpack(await opened.call(wire.Function.INFO))
            pool = FastcallPool(opened, slots_max, spin_us)
            await pool.show_first()
        except BaseException:
            await opened.close()
            raise
        return pool


class _Lease:
    """A thread's hold on a slot; when the thread ends, another may have it."""

    def __init__(self, slot: FastSlot, free: deque[FastSlot]) -> None:
        self.slot = slot
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.slot)


class FastcallPool:
    """The slots of one guest.

    Args:
        opened: the fastcall device.
        slots_max: slots the host takes.
        spin_us: how long to spin for an answer.
    """

    def __init__(self, opened: OpenDevice, slots_max: int, spin_us: int) -> None:
        self._opened = opened
        self._slots_max = slots_max
        self._spin_us = spin_us
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._regions = itertools.count()
        self._slots: list[tuple[FastSlot, Block]] = []
        self._free: deque[FastSlot] = deque()
        self._is_removed = False
        self._own = threading.local()

    def call(self, handle: int, function: int, data: bytes, deadline_s: float) -> bytes | None:
        """Call a device from any thread; None: make the ordinary call instead.

        Args:
            handle: of the open device.
            function: of its ABI.
            data: at most 368 bytes; longer data goes the ordinary way.
            deadline_s: how long to wait for the answer.

        Raises:
            DeadlineError: no answer. PeerGone: the host ended. VbnetError: whatever the device refuses with.
        """
        if len(data) > wire.DATA_BYTES:
            return None
        lease = getattr(self._own, "lease", None) or self._lease(deadline_s)
        if lease is None:
            return None
        try:
            answer = lease.slot.call(handle >> _HANDLE_SHIFT, function, data, deadline_s)
        except (BusyError, ClosedError):  # its last call is still unanswered, or the device is on its way out
            return None
        if answer is None:
            raise DeadlineError(f"no answer to a fastcall within {deadline_s} s", deadline_s=deadline_s)
        status, content = answer
        if status == wire.UNSERVED:
            return None
        if status:
            raise error_from_refusal(errno.errorcode.get(status, "EIO"), content.decode(errors="replace"))
        return content

    async def lend(self, handle: int, count: int) -> FastSlots | None:
        """Slots for native code that calls an open device by itself; None: there are not that many to be had.

        Args:
            handle: of the open device.
            count: how many.
        """
        slots: list[FastSlot] = []
        while len(slots) < count:
            slot = self._free.popleft() if self._free else None
            if slot is None and len(self._slots) < self._slots_max:
                slot = await self._show()
            if slot is None:
                self._free.extend(slots)
                return None
            slots.append(slot)
        return FastSlots(handle >> _HANDLE_SHIFT, slots, self._given_back)

    async def show_first(self) -> None:
        """Show the slot of the event loop's thread, which must be the one that runs this."""
        slot = await self._show()
        if slot is not None:
            self._own.lease = _Lease(slot, self._free)

    async def remove(self) -> None:
        """The device left, or the guest does: free those who wait, then give the memory back."""
        for slot, _ in self._slots:
            slot.abandon()
        await self._opened.close()
        self._is_removed = True
        for slot, _ in list(self._slots):
            self._close(slot)

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _given_back(self, slot: FastSlot) -> None:
        self._free.append(slot)
        if self._is_removed:  # whoever had it left later than we did
            self._close(slot)

    def _close(self, slot: FastSlot) -> None:
        with contextlib.suppress(BusyError):  # native code has it, or a thread is on its way out of a wait
            slot.close()
            for entry in [entry for entry in self._slots if entry[0] is slot]:
                self._slots.remove(entry)
                self._opened.device.memory.free(entry[1])

    def _lease(self, deadline_s: float) -> _Lease | None:
        """A slot for the calling thread: one that is free, or a new one; None: there is none to be had."""
        slot: FastSlot | None = None
        try:
            slot = self._free.popleft()
        except IndexError:
            if len(self._slots) < self._slots_max and threading.get_ident() != self._loop_thread:
                slot = self._from_loop(deadline_s)
        if slot is None:
            return None
        lease = self._own.lease = _Lease(slot, self._free)
        return lease

    def _from_loop(self, deadline_s: float) -> FastSlot | None:
        shown = asyncio.run_coroutine_threadsafe(self._show(), self._loop)
        try:
            return shown.result(deadline_s)
        except TimeoutError:
            shown.cancel()
            raise DeadlineError(
                f"the guest's loop showed no slot within {deadline_s} s", deadline_s=deadline_s
            ) from None

    async def _show(self) -> FastSlot | None:
        """Show the host another slot; None: it takes no more, or there is no memory, and none is asked for again."""
        memory = self._opened.device.memory
        try:
            block = memory.allocate(wire.SLOT_BYTES, wire.SLOT_ALIGNMENT)
            entry = (FastSlot(self._opened.device.ram, block.offset), block)
        except VbnetError:
            self._slots_max = 0
            return None
        self._slots.append(entry)
        try:
            signal = await self._opened.shm(
                next(self._regions), block.offset, wire.SLOT_BYTES, signal_offset=wire.SIGNAL_OFFSET
            )
            assert signal is not None  # noqa: S101 - a signal was asked for
            entry[0].connect(signal.kick_fd, signal.call_fd, self._spin_us)
        except VbnetError as error:
            self._slots_max = 0
            if not isinstance(error, DeadlineError):  # else the host may have taken it: its memory stays taken
                self._slots.remove(entry)
                memory.free(block)
            return None
        return entry[0]

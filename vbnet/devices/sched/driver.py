"""The guest half of sched: threads that say what they need.

    sched = guest.bind("sched0")
    with sched.thread("deadline", runtime_s=0.0002, deadline_s=0.001) as me:
        me.running()
        ...
        me.idle()

Saying costs a few stores; the host is told only of what it must act on now. What it made of a wish is in ``me.state``.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Self

from vbnet._native import SCHED_REFUSALS, SchedPage, SchedRecord
from vbnet.devices.sched import wire
from vbnet.errors import ResourceError, UsageError
from vbnet.guestnode.memory import Block
from vbnet.guestnode.proxy import OpenDevice, ProxyDevice

__all__ = ["Sched", "SchedDriver", "SchedThread", "State"]

_NS: Final = 1_000_000_000
_POLICY_BITS: Final = 0xFF


@dataclass(frozen=True, slots=True)
class State:
    """What the host says of a thread.

    Attributes:
        applied: class in force, or None.
        is_boosted: an urgent signal raised it.
        refusal: why it did not get what it wants, one of ``SCHED_REFUSALS``, or None.
    """

    applied: str | None
    is_boosted: bool
    refusal: str | None


class SchedDriver:
    """Drives ``sched`` devices.

    Args:
        threads: how many threads may take part at once, 1..256; each takes 256 bytes of the guest's memory.
    """

    abi_type = wire.ABI_TYPE

    def __init__(self, threads: int = 16) -> None:
        if not 1 <= threads <= wire.RECORDS_MAX:
            raise UsageError(f"threads are 1..{wire.RECORDS_MAX}; got {threads}", got=threads, limit=wire.RECORDS_MAX)
        self._threads = threads

    async def probe(self, device: ProxyDevice) -> Sched:
        """Open it and show a page."""
        opened = await device.open(wire.VERSION)
        length = wire.HEADER_BYTES + self._threads * wire.RECORD_BYTES
        block = None
        try:
            block = device.memory.allocate(length, 128)
            page = SchedPage(device.ram, block.offset, self._threads)
            bits = (await opened.call(wire.Function.ABILITIES))[0]
            signal = await opened.shm(wire.PAGE_REGION, block.offset, length, signal_offset=wire.SIGNAL_OFFSET)
            if signal is not None:
                page.connect(signal.kick_fd)
        except BaseException:
            await opened.close()
            if block is not None:
                device.memory.free(block)
            raise
        abilities = frozenset(name for bit, name in enumerate(wire.ABILITIES) if bits >> bit & 1)
        return Sched(opened, block, page, self._threads, abilities)


class Sched:
    """A scheduler coordinator at the other end of the bus. Every method may be called on any thread.

    Attributes:
        abilities: what the host can do, of ``wire.ABILITIES``.
    """

    def __init__(
        self, opened: OpenDevice, block: Block, page: SchedPage, threads: int, abilities: frozenset[str]
    ) -> None:
        self._opened = opened
        self._block = block
        self._lock = threading.Lock()
        self._free = [page.record(index) for index in reversed(range(threads))]
        self._live: list[SchedThread] = []
        self.abilities = abilities

    @contextmanager
    def thread(
        self,
        cls: str = "normal",
        *,
        tid: int | None = None,
        runtime_s: float = 0.0,
        deadline_s: float = 0.0,
        period_s: float = 0.0,
        nice: int = 0,
        rt_priority: int = 0,
        is_fifo: bool = False,
        polls_when_idle: bool = False,
        vcpu: int | None = None,
        processors: Sequence[int] = (),
    ) -> Iterator[SchedThread]:
        """Have a thread take part until the block ends; it then has what it had before.

        Args:
            cls: idle, batch, normal, interactive, realtime or deadline.
            tid: of a thread of this process; None: the calling one.
            runtime_s: processor time it needs in each period (deadline).
            deadline_s: within which it must have it, from the period's start.
            period_s: how often; 0: as the deadline.
            nice: added to the class's own nice value, -20..19.
            rt_priority: among realtime threads, 1..99; 0: the least.
            is_fifo: realtime until it blocks, where it would otherwise share in turns with its equals.
            polls_when_idle: it gives way between ``idle`` and ``running``.
            vcpu: whose interrupts it serves: an urgent one raises it.
            processors: where it wants to run; empty: wherever it may.

        Raises:
            ResourceError: as many threads as the driver was made for take part.
            UsageError: there is no such class or processor.
        """
        with self._lock:
            if not self._free:
                raise ResourceError("every record of the scheduling page is taken; make the driver with more threads")
            record = self._free.pop()
        member = SchedThread(record, threading.get_native_id() if tid is None else tid)
        self._live.append(member)
        try:
            member.declare(
                cls,
                runtime_s=runtime_s,
                deadline_s=deadline_s,
                period_s=period_s,
                nice=nice,
                rt_priority=rt_priority,
                is_fifo=is_fifo,
                polls_when_idle=polls_when_idle,
                vcpu=vcpu,
                processors=processors,
            )
            yield member
        finally:
            record.withdraw()
            self._live.remove(member)
            with self._lock:
                self._free.append(record)

    async def remove(self) -> None:
        """Close it; threads have what they had before. Where the host is gone, they put it back themselves."""
        ended = self._opened.ended_by is not None
        await self._opened.close()
        if ended:
            for member in list(self._live):
                member.put_back()
        self._opened.device.memory.free(self._block)


class SchedThread:
    """One thread that takes part. Made by ``Sched.thread``.

    Attributes:
        tid: the kernel's number of it.
    """

    def __init__(self, record: SchedRecord, tid: int) -> None:
        self._record = record
        self.tid = tid
        self._before = _Before.of(tid)
        self.running = record.running
        """Say that there is work; may be said again for nothing."""
        self.idle = record.idle
        """Say that there is none."""

    @property
    def state(self) -> State:
        """What the host says of it now."""
        applied, is_boosted, refusal = self._record.verdict()
        name = wire.Class(applied - 1).name.lower() if 1 <= applied <= len(wire.Class) else None
        reason = SCHED_REFUSALS[refusal - 1] if 1 <= refusal <= len(SCHED_REFUSALS) else None
        return State(name, is_boosted, reason)

    def declare(
        self,
        cls: str,
        *,
        runtime_s: float = 0.0,
        deadline_s: float = 0.0,
        period_s: float = 0.0,
        nice: int = 0,
        rt_priority: int = 0,
        is_fifo: bool = False,
        polls_when_idle: bool = False,
        vcpu: int | None = None,
        processors: Sequence[int] = (),
    ) -> Self:
        """Want something else from now on; the arguments are those of ``Sched.thread``.

        Raises:
            UsageError: there is no such class or processor.
        """
        try:
            number = wire.Class[cls.upper()]
        except KeyError:
            known = ", ".join(found.name.lower() for found in wire.Class)
            raise UsageError(f"there is no class {cls!r}; there are: {known}", got=cls) from None
        flags = (wire.Flag.FIFO if is_fifo else 0) | (wire.Flag.IDLE_POLLS if polls_when_idle else 0)
        self._record.declare(
            self.tid,
            number,
            flags=flags,
            nice=nice,
            rt_priority=rt_priority,
            vcpu=vcpu,
            runtime_ns=round(runtime_s * _NS),
            deadline_ns=round(deadline_s * _NS),
            period_ns=round(period_s * _NS),
            processors=list(processors),
        )
        return self

    def put_back(self) -> None:
        """Have what it had before, as far as this process may; what the host does while it lives."""
        if self._before is not None:
            self._before.restore(self.tid)


@dataclass(frozen=True, slots=True)
class _Before:
    """How a thread was scheduled before it took part."""

    policy: int
    priority: int
    nice: int
    processors: frozenset[int]

    @classmethod
    def of(cls, tid: int) -> Self | None:
        """Look at it; None: there is no such thread, which the host will say as well."""
        try:
            policy = os.sched_getscheduler(tid) & _POLICY_BITS
            priority = os.sched_getparam(tid).sched_priority
            nice = os.getpriority(os.PRIO_PROCESS, tid)
            return cls(policy, priority, nice, frozenset(os.sched_getaffinity(tid)))
        except OSError:
            return None

    def restore(self, tid: int) -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(tid, self.policy, os.sched_param(self.priority))
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, tid, self.nice)
        with contextlib.suppress(OSError):
            os.sched_setaffinity(tid, self.processors)

"""Which open devices answer fastcalls, and the native service that asks them.

    Session.open ── offer(guest, handle, connection.fast) ─┐
    fastcall device ── attach(guest, region) ──────────────┴─> Fastcalls ──> native service's thread ── fast(f, data)

Sessions say which of their open devices have a fast handler; the fastcall device says where in a guest's memory its
slots are. A slot reaches handlers of its own guest only: guests have numbers of their own here, which are never used
again. The service is started by the first slot; hosts without fastcall devices do without its thread.

Handlers of device authors run on the service's thread. What they raise is a refusal, as in ``Connection.call``; what is
no refusal is counted and logged on the event loop, a moment later.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from vbnet.errors import BusyError, InternalError, PeerFault, UsageError, VbnetError, refusal_name
from vbnet.hostnode import metrics
from vbnet.hostnode.metrics import Tally
from vbnet.hostnode.rows import label_text

if TYPE_CHECKING:
    from vbnet._native import FastcallService, FastHandler
    from vbnet.hostnode.device import Fast, Log, SharedRegion

__all__ = ["Fastcalls", "SlotParams"]

_HANDLE_SHIFT: Final = 32
"""A slot names a device by the upper half of its handle: the serial, which is unique within a session."""


class FastLog(Protocol):
    """The part of a log that is used here."""

    def error(self, event: str, **fields: Any) -> Any:  # noqa: ANN401 - a logger's shape
        """Write what someone must look into."""


@dataclass(frozen=True, slots=True)
class SlotParams:
    """How a slot is served.

    Attributes:
        is_enabled: calls reach handlers; otherwise callers are told to take the ordinary way.
        spin_us: how long at most the slot is polled after its last call, 0..100000.
        trap_ns: modelled cost of a call, spent by the caller, 0..1000000.
    """

    is_enabled: bool = True
    spin_us: int = 50
    trap_ns: int = 0


@dataclass(slots=True)
class _Guest:
    number: int
    handlers: dict[int, FastHandler | Callable[[int, bytes], tuple[int, bytes]]] = field(default_factory=dict)
    slots: set[int] = field(default_factory=set)


class Fastcalls:
    """The fast handlers and fastcall slots of one host; used from one event loop.

    Args:
        tally: counts failures of handlers.
        log: where they are told.
        counters: the host's counter file; None makes one that nobody reads.
        publish: tells whoever subscribed.
    """

    def __init__(
        self,
        tally: Tally,
        log: Log | FastLog,
        counters: Any = None,  # noqa: ANN401 - native
        publish: Callable[..., None] = lambda _topic, **_fields: None,
    ) -> None:
        self._publish = publish
        self._tally = tally
        self._log = log
        self._counters = counters
        self._guests: dict[str, _Guest] = {}
        self._numbers = itertools.count(1)
        self._on_fault: dict[int, Callable[[PeerFault], None]] = {}
        self._service: FastcallService | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---- sessions ----------------------------------------------------------------------------------------------------

    def offer(self, guest: str, handle: int, fast: Fast, device: str) -> None:
        """Let fastcalls of ``guest`` to the device it opened as ``handle`` reach ``fast``.

        Args:
            guest: name of the session.
            handle: of the open device.
            fast: what answers.
            device: its name, for the log.

        Raises:
            BusyError: a handler keeps the service's thread for more than a second.
        """
        known = self._guest(guest)
        serial = handle >> _HANDLE_SHIFT
        known.handlers[serial] = self._contained(fast, device)
        if self._service is not None:
            self._service.register(known.number, serial, known.handlers[serial])

    def withdraw(self, guest: str, handle: int) -> None:
        """Take back what was offered, if anything was; when this returns it is not called any more.

        A handler that keeps the service's thread for more than a second is logged, and ends by itself.
        """
        known = self._guests.get(guest)
        serial = handle >> _HANDLE_SHIFT
        if known is None or known.handlers.pop(serial, None) is None:
            return
        if self._service is not None:
            self._despite_busy(lambda service: service.unregister(known.number, serial), guest)
        self._tidy(guest)

    # ---- the fastcall device -----------------------------------------------------------------------------------------

    def attach(
        self,
        guest: str,
        bus: str,
        region: SharedRegion,
        params: SlotParams,
        on_fault: Callable[[PeerFault], None],
        *,
        label: str = "",
    ) -> int:
        """Serve a slot; gives its number.

        Args:
            guest: whose.
            bus: for the counters' labels.
            region: the slot, with its signal.
            params: how.
            on_fault: called once, on the event loop, when the guest broke a rule; the slot is not served any more.
            label: which slot of the guest this is, for counters; "": the number of its region.

        Raises:
            PeerFault: the region is no slot. ResourceError: no thread, or no room for its counters.
        """
        if region.signal is None:
            raise UsageError("a fastcall slot is shared with its signal", region=region.id)
        service = self._started()
        slot = service.attach(
            self._guest(guest).number,
            region.ram,
            region.offset,
            region.length,
            (region.signal.kick_fd, region.signal.call_fd),
            labels=label_text({"guest": guest, "slot": label or str(region.id), "bus": bus}),
            is_enabled=params.is_enabled,
            spin_us=params.spin_us,
            trap_ns=params.trap_ns,
        )
        self._guest(guest).slots.add(slot)
        self._on_fault[slot] = on_fault
        return slot

    def set(self, slot: int, params: SlotParams) -> None:
        """Change how a slot is served.

        Raises:
            BusyError: a handler keeps the service's thread for more than a second.
        """
        if self._service is not None:
            self._service.set(slot, is_enabled=params.is_enabled, spin_us=params.spin_us, trap_ns=params.trap_ns)

    def detach(self, guest: str, slot: int) -> None:
        """Let go of a slot; when this returns its memory is not used any more."""
        self._on_fault.pop(slot, None)
        if self._service is not None:
            self._despite_busy(lambda service: service.detach(slot), guest)
        known = self._guests.get(guest)
        if known is not None:
            known.slots.discard(slot)
            self._tidy(guest)

    def close(self) -> None:
        """End the thread; harmless when it never started."""
        if self._service is not None and self._loop is not None:
            self._loop.remove_reader(self._service.fault_fd())
            self._service.close()
            self._service = None

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _guest(self, name: str) -> _Guest:
        known = self._guests.get(name)
        if known is None:
            known = self._guests[name] = _Guest(next(self._numbers))
        return known

    def _tidy(self, guest: str) -> None:
        known = self._guests[guest]
        if not known.handlers and not known.slots:
            del self._guests[guest]

    def _started(self) -> FastcallService:
        if self._service is not None:
            return self._service
        from vbnet._native import CounterFile, FastcallService  # noqa: PLC0415 - most hosts do without

        if self._counters is None:
            self._counters = CounterFile.create()
        self._service, self._loop = FastcallService(self._counters), asyncio.get_running_loop()
        self._loop.add_reader(self._service.fault_fd(), self._take_faults)
        for known in self._guests.values():
            for serial, handler in known.handlers.items():
                self._service.register(known.number, serial, handler)
        return self._service

    def _take_faults(self) -> None:
        if self._service is None:
            return
        for slot, rule, text in self._service.take_faults():
            on_fault = self._on_fault.pop(slot, None)
            if on_fault is not None:
                on_fault(PeerFault(text, rule=rule, slot=slot))

    def _despite_busy(self, work: Callable[[FastcallService], object], guest: str) -> None:
        assert self._service is not None  # noqa: S101 - the callers looked
        try:
            work(self._service)
        except BusyError as error:
            self._tally.add(metrics.DEVICE_FAILURES)
            self._log.error("fastcall_stuck", guest=guest, error=str(error))

    def _contained(self, fast: Fast, device: str) -> FastHandler | Callable[[int, bytes], tuple[int, bytes]]:
        from vbnet._native import FASTCALL_DATA_BYTES, FastHandler  # noqa: PLC0415

        if isinstance(fast, FastHandler):
            return fast

        def answer(function: int, data: bytes) -> tuple[int, bytes]:
            try:
                content = bytes(fast(function, data))
                if len(content) > FASTCALL_DATA_BYTES:
                    raise ValueError(f"answer of {len(content)} bytes, at most {FASTCALL_DATA_BYTES}")  # noqa: TRY301
            except Exception as error:  # noqa: BLE001 - told below, and to the guest
                return self._refusal(error, device)
            return 0, content

        return answer

    def _refusal(self, error: Exception, device: str) -> tuple[int, bytes]:
        """Number and sentence for the guest; runs on the service's thread."""
        is_refusal = isinstance(error, VbnetError) and not isinstance(error, InternalError)
        if is_refusal:
            return getattr(errno, refusal_name(error), errno.EIO), str(error).encode()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._failed, device, error)
        return errno.EIO, f"device {device!r} failed in fast: {type(error).__name__}; see the host's log".encode()

    def _failed(self, device: str, error: Exception) -> None:
        self._tally.add(metrics.DEVICE_FAILURES)
        self._log.error("device_failed", device=device, method="fast", error=repr(error))
        self._publish("device.failed", device=device, method="fast", error=type(error).__name__)

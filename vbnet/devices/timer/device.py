"""The host half of timer: shows guests' timer pages to the host's timekeeper.

What is on the pages is the timekeeper's business (a native thread, one for all devices of a host); here are the regions
a driver shares, about once in its life. The timekeeper is started for the first guest, and ends with the last device.

Switched off, a device tells those who have it open, and each that follows takes its timers over and says so. Who does
not is served on: what that costs is what it cost before, ``guests`` shows it, and unplugging the device ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vbnet.devices.timer import wire
from vbnet.errors import ExistsError, PeerFault, UnsupportedError, UsageError, VbnetError
from vbnet.hostnode.device import (
    Attribute,
    AttributeTable,
    Connection,
    Device,
    DeviceClass,
    HostServices,
    Interface,
    Opener,
    SharedRegion,
    SignalEnds,
)
from vbnet.hostnode.rows import label_text
from vbnet.hostnode.values import flag, flag_text, within

if TYPE_CHECKING:
    from vbnet._native import Signals, Timekeeper

__all__ = ["TimerClass", "TimerDevice"]


class Keeper:
    """The host's timekeeper, started when it is needed.

    Args:
        services: of the host.
    """

    def __init__(self, services: HostServices) -> None:
        self._services = services
        self._native: Timekeeper | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_fault: dict[int, Callable[[PeerFault], None]] = {}

    @property
    def signals(self) -> Signals:
        """The host's lines, by which guests are called."""
        signals: Signals = self._services.signals.native
        return signals

    def attach(
        self, region: SharedRegion, signal: SignalEnds, labels: str, *, slots_max: int, lead_us: int
    ) -> tuple[Timekeeper, int]:
        """Have a page kept; gives who keeps it, and under which number.

        Raises:
            PeerFault: it is no timer page (the guest's fault).
        """
        native = self._native if self._native is not None else self._start()
        place = (region.offset, region.length)
        lead_ns = lead_us * 1000
        page = native.attach(region.ram, place, signal.kick_fd, labels, slots_max=slots_max, lead_ns=lead_ns)
        return native, page

    def watch(self, page: int, on_fault: Callable[[PeerFault], None]) -> None:
        """Call ``on_fault`` when the page was given up because its guest broke a rule."""
        self._on_fault[page] = on_fault

    def detach(self, page: int) -> None:
        """Let go of a page; when this returns its memory is used no more."""
        self._on_fault.pop(page, None)
        if self._native is not None:
            with contextlib.suppress(VbnetError):  # it was given up already
                self._native.detach(page)

    def close(self) -> None:
        """End the thread; harmless when it never started."""
        native, self._native = self._native, None
        if native is not None:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(native.fault_fd())
            native.close()

    def _start(self) -> Timekeeper:
        from vbnet._native import CounterFile, Timekeeper  # noqa: PLC0415 - hosts without timers do without

        counters = self._services.counters
        self._native = Timekeeper(CounterFile.create() if counters is None else counters)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._native.fault_fd(), self._take_faults)
        return self._native

    def _take_faults(self) -> None:
        if self._native is None:
            return
        for page, rule, text in self._native.take_faults():
            on_fault = self._on_fault.get(page)
            if on_fault is not None:
                on_fault(PeerFault(text, rule=rule))


class TimerClass(DeviceClass):
    """Timers of guests, kept by one thread of the host."""

    name = "timer"
    abi_types = (wire.ABI_TYPE,)

    def __init__(self) -> None:
        self._keeper: Keeper | None = None
        self._devices = 0

    def create(self, services: HostServices, name: str) -> TimerDevice:
        """Make one; all of a host share its timekeeper."""
        if self._keeper is None:
            self._keeper = Keeper(services)
        self._devices += 1
        return TimerDevice(self._keeper, name, self._released)

    def _released(self) -> None:
        self._devices -= 1
        if self._devices == 0 and self._keeper is not None:
            self._keeper.close()
            self._keeper = None


class TimerDevice(Device):
    """One timer device: what its guests may have.

    Args:
        keeper: of the host.
        name: of the device.
        released: called when it was deleted.
    """

    def __init__(self, keeper: Keeper, name: str, released: Callable[[], None]) -> None:
        self.keeper = keeper
        self.name = name
        self._released = released
        self.connections: set[TimerConnection] = set()
        self.kept: set[TimerConnection] = set()
        self.attributes = AttributeTable(
            (
                Attribute(
                    "enabled",
                    "whether the host keeps guests' timers, 0 or 1; told at once to those that are bound",
                    flag,
                    default=True,
                    format=flag_text,
                ),
                Attribute(
                    "slots_max",
                    "most timers of a guest that binds from now on, 64..131072",
                    within(wire.SLOTS_MIN, wire.SLOTS_MAX),
                    16384,
                ),
                Attribute(
                    "lead_us",
                    f"how early guests may be woken, to wait the rest awake; 0..{wire.LEAD_MAX_US} µs",
                    within(0, wire.LEAD_MAX_US),
                    wire.LEAD_US,
                ),
                Attribute("guests", "guests whose timers the host keeps now", int, 0, is_read_only=True),
            ),
            self._on_change,
        )

    def _on_change(self, name: str, value: Any) -> None:  # noqa: ANN401 - as the declaration says
        if name == "lead_us":
            for connection in self.kept:
                connection.set_lead(value)
        elif name == "enabled":
            for connection in self.connections:
                connection.opener.link_state(is_up=value)

    def plug(self, bus: str) -> Sequence[Interface]:
        """Show one interface, named after the last part of the device's name, on any bus."""
        del bus
        return [TimerInterface(self)]

    def release(self) -> None:
        """The timekeeper ends with the last device."""
        self._released()

    def count(self) -> None:
        """Show how many guests' timers are kept."""
        self.attributes.publish("guests", len(self.kept))


class TimerInterface(Interface):
    """What guests open, any number at once."""

    abi_type = wire.ABI_TYPE
    versions = (wire.VERSION,)
    exclusive = False
    needs_memory = True

    def __init__(self, device: TimerDevice) -> None:
        self.name = device.name.rpartition(".")[2]
        self._device = device

    def connect(self, opener: Opener, version: int) -> Connection:  # noqa: ARG002 - there is one version
        """Let a driver use it."""
        return TimerConnection(self._device, opener)


class TimerConnection(Connection):
    """One guest's use: a page, then a signal for each priority; shared also while the guest keeps its timers itself.

    Attributes:
        opener: the guest.
    """

    def __init__(self, device: TimerDevice, opener: Opener) -> None:
        self._device = device
        self.opener = opener
        self._slots_max: int = device.attributes["slots_max"]
        self._page: SharedRegion | None = None
        self._signals: dict[int, SharedRegion] = {}
        self._kept: tuple[Timekeeper, int] | None = None
        self._is_given_up = False
        device.connections.add(self)

    def call(self, function: int, data: bytes) -> bytes:
        """Answer QUERY, KEEP and RELEASE."""
        if function not in (wire.QUERY, wire.KEEP, wire.RELEASE):
            return super().call(function, data)
        if data:
            raise UsageError(f"function {function} takes no data; got {len(data)} bytes", got=len(data), limit=0)
        if function == wire.QUERY:
            attributes = self._device.attributes
            return wire.QUERY_ANSWER.pack(attributes["enabled"], self._slots_max, attributes["lead_us"] * 1000)
        if function == wire.RELEASE:
            self._let_go()
        elif self._page is None:
            raise UsageError("share the timer page first")
        else:
            with self.opener.blamed():
                self._keep(self._page)
        return b""

    def shm(self, region: SharedRegion) -> None:
        """Take the page, or the signal of a priority."""
        with self.opener.blamed():
            if region.id == wire.PAGE:
                self._take_page(region)
            elif wire.SIGNAL <= region.id < wire.SIGNAL + wire.PRIORITIES:
                self._take_signal(region, region.id - wire.SIGNAL)
            else:
                super().shm(region)

    def _take_page(self, region: SharedRegion) -> None:
        if self._page is not None:
            raise ExistsError("a timer page was shared before; close the device to share it anew")
        self._keep(region)
        self._page = region

    def _take_signal(self, region: SharedRegion, priority: int) -> None:
        if self._page is None:
            raise UsageError("share the timer page first")
        if priority in self._signals:
            raise ExistsError(f"the signal of priority {priority} was shared before")
        region.signal_at(0)
        self._connect(priority, region)
        self._signals[priority] = region

    def _keep(self, page: SharedRegion) -> None:
        """Have the timekeeper keep the page, with all signals that were shared; nothing when it does already."""
        attributes = self._device.attributes
        if not attributes["enabled"]:
            raise UnsupportedError(f"device {self._device.name!r} keeps no timers now; its attribute `enabled` is 0")
        if self._is_given_up:
            raise UsageError("these timers were given up, for a rule that was broken; close the device to start anew")
        if self._kept is not None:
            return
        signal = page.signal_at(wire.PAGE_SIGNAL_OFFSET)
        labels = label_text({"guest": self.opener.guest, "device": self._device.name})
        self._kept = self._device.keeper.attach(
            page, signal, labels, slots_max=self._slots_max, lead_us=attributes["lead_us"]
        )
        self._device.keeper.watch(self._kept[1], self._given_up)
        self._device.kept.add(self)
        self._device.count()
        try:
            for priority, region in self._signals.items():
                self._connect(priority, region)
        except BaseException:
            self._let_go()
            raise

    def _connect(self, priority: int, region: SharedRegion) -> None:
        """Call the guest by this signal, if the host keeps its timers; otherwise from when it does."""
        if self._kept is not None:
            native, page = self._kept
            place = (region.offset, region.length)
            line = self.opener.line(region.signal_at(0))
            native.connect(page, priority, region.ram, place, line, self._device.keeper.signals)

    def _given_up(self, fault: PeerFault) -> None:
        """The guest broke a rule: its timers are not kept any more."""
        self._is_given_up = True
        self.opener.fault(fault)
        self._let_go()

    def set_lead(self, lead_us: int) -> None:
        """Grant another lead."""
        if self._kept is not None:
            native, page = self._kept
            with contextlib.suppress(VbnetError):  # it may have been given up this instant
                native.set_lead(page, lead_us * 1000)

    def close(self) -> None:
        """Let go of the page; when this returns nobody touches the guest's memory."""
        self._let_go()
        self._device.connections.discard(self)

    def _let_go(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            self._device.keeper.detach(kept[1])
            self._device.kept.discard(self)
            self._device.count()

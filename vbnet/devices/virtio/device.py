"""The host half of virtio: gives each open device its native half, and tells what guests broke.

Registers, queues and requests are native code's business (``rust/core/src/virtio``), on a thread for each open device;
here is what an operator sees and sets. All virtio devices of a class share one native host, which frees their threads
from doorbells that guests made block.

A disk is an open file that an operator put in (``vbnet device insert``), and so is a console's log. The host never
opens one by a name. A console is a pseudo terminal; whoever attaches opens its terminal end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vbnet.devices.virtio import wire
from vbnet.errors import BusyError, ClosedError, PeerFault, UnsupportedError, UsageError
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
)
from vbnet.hostnode.rows import label_text
from vbnet.hostnode.values import within

if TYPE_CHECKING:
    from vbnet._native import ConsoleTerminal, DiskImage, VirtioDevice, VirtioHost
    from vbnet.sharedmem import Ram

__all__ = ["BlkClass", "BlkDevice", "ConsoleClass", "ConsoleDevice", "RngClass", "RngDevice"]

SPIN_MAX_US = 100_000
TRAP_COST_MAX_NS = 1_000_000
SERIAL_BYTES = 20


class Share:
    """What the virtio devices of one class share on a host; its native part is made when it is needed.

    Args:
        services: of the host.
    """

    def __init__(self, services: HostServices) -> None:
        self.services = services
        self._native: VirtioHost | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_fault: dict[int, Callable[[PeerFault], None]] = {}

    @property
    def native(self) -> VirtioHost:
        """The native part, made if it was not there."""
        if self._native is None:
            from vbnet._native import CounterFile, VirtioHost  # noqa: PLC0415 - hosts without virtio do without

            counters = self.services.counters
            self._native = VirtioHost(CounterFile.create() if counters is None else counters)
            with contextlib.suppress(RuntimeError):  # a bench has no loop, and reads no faults
                self._loop = asyncio.get_running_loop()
                self._loop.add_reader(self._native.fault_fd(), self._take_faults)
        return self._native

    def watch(self, device: VirtioDevice, on_fault: Callable[[PeerFault], None]) -> None:
        """Call ``on_fault`` when a queue of an open device was ended because its driver broke a rule."""
        self._on_fault[device.number] = on_fault

    def forget(self, device: VirtioDevice) -> None:
        """The device was closed."""
        self._on_fault.pop(device.number, None)

    def close(self) -> None:
        """End it; harmless when it was never made."""
        native, self._native = self._native, None
        if native is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(native.fault_fd())

    def _take_faults(self) -> None:
        if self._native is None:
            return
        for number, rule, text in self._native.take_faults():
            on_fault = self._on_fault.get(number)
            if on_fault is not None:
                on_fault(PeerFault(text, rule=rule))


class VirtioClass(DeviceClass):
    """What the classes here have in common: all devices of one share its native part, which ends with the last."""

    abi_type: str

    def __init__(self) -> None:
        self.abi_types = (self.abi_type,)
        self._share: Share | None = None
        self._devices = 0

    def create(self, services: HostServices, name: str) -> VirtioBase:
        """Make one."""
        if self._share is None:
            self._share = Share(services)
        device = self.make(self._share, name)
        self._devices += 1
        device.released = self._released
        return device

    @abstractmethod
    def make(self, share: Share, name: str) -> VirtioBase:
        """Make a device of this class."""

    def _released(self) -> None:
        self._devices -= 1
        if self._devices == 0 and self._share is not None:
            self._share.close()
            self._share = None


class VirtioBase(Device):
    """One device, whatever its kind: it shows one interface on each of its buses.

    Args:
        share: of the host.
        name: of the device.
        abi_type: what it shows.
        attributes: its own, beside those that all have.
    """

    is_shared = False
    """Whether it may be on several buses at once."""

    def __init__(
        self,
        share: Share,
        name: str,
        abi_type: str,
        attributes: Sequence[Attribute[Any]] = (),
        on_change: Callable[[str, Any], None] | None = None,
    ) -> None:
        self.share = share
        self.name = name
        self.abi_type = abi_type
        self.released: Callable[[], None] = lambda: None
        self._bus: str | None = None
        self.attributes = AttributeTable(
            (
                Attribute(
                    "transport",
                    f"how the driver reaches it: {', '.join(wire.TRANSPORTS)} (the others trap at each register)",
                    _transport,
                    wire.TRANSPORTS[0],
                    is_locked_while_open=True,
                ),
                Attribute(
                    "spin_us",
                    f"how long at most its thread stays awake after a request, 0..{SPIN_MAX_US} µs",
                    within(0, SPIN_MAX_US),
                    50,
                    is_locked_while_open=True,
                ),
                Attribute(
                    "trap_cost_ns",
                    f"what a trap costs the guest on top, 0..{TRAP_COST_MAX_NS}: a modelled leave of the guest",
                    within(0, TRAP_COST_MAX_NS),
                    0,
                    is_locked_while_open=True,
                ),
                *attributes,
            ),
            *([] if on_change is None else [on_change]),
        )

    @abstractmethod
    def open_native(self, ram: Ram, how: Mapping[str, Any]) -> VirtioDevice:
        """Open its native half for a guest.

        Args:
            ram: the guest's memory.
            how: keyword arguments that all kinds take.
        """

    def plug(self, bus: str) -> Sequence[Interface]:
        """Show one interface, named after the last part of the device's name."""
        if self._bus is not None and not self.is_shared:
            raise BusyError(
                f"device {self.name!r} is plugged into {self._bus!r}, and has one bus at a time", bus=self._bus
            )
        self._bus = bus
        return [VirtioInterface(self)]

    def unplug(self, bus: str) -> None:
        """It may be plugged elsewhere now."""
        if self._bus == bus:
            self._bus = None

    def connect(self, opener: Opener) -> Connection:
        """Let a driver use it."""
        return VirtioConnection(self, opener)

    def release(self) -> None:
        """It was deleted."""
        self.released()


class BlkClass(VirtioClass):
    """Disks: each an open file of the operator's."""

    name = "virtio-blk"
    abi_type = wire.BLK_TYPE

    def make(self, share: Share, name: str) -> BlkDevice:
        """Make a drive without a disk; an operator puts one in."""
        return BlkDevice(share, name)


class BlkDevice(VirtioBase):
    """One drive, with a disk or without.

    Args:
        share: of the host.
        name: of the device.

    Attributes:
        image: the disk, or None.
    """

    def __init__(self, share: Share, name: str) -> None:
        self.image: DiskImage | None = None
        serial = name.replace(".", "-")[-SERIAL_BYTES:] if name.isascii() else ""
        super().__init__(
            share,
            name,
            wire.BLK_TYPE,
            (
                Attribute(
                    "serial",
                    f"serial number that the guest reads, at most {SERIAL_BYTES} ASCII characters",
                    _serial,
                    serial,
                    is_locked_while_open=True,
                ),
                Attribute("image", "name of the file that was put in; empty: none", str, "", is_read_only=True),
                Attribute("access", "`rw` or `ro`", str, "rw", is_read_only=True),
                Attribute("bytes", "size of the disk", int, 0, is_read_only=True),
            ),
        )

    def open_native(self, ram: Ram, how: Mapping[str, Any]) -> VirtioDevice:
        """Open the disk, if there is one."""
        return self.share.native.open_disk(ram, self.image, **how)

    def insert(self, fd: int, name: str, *, is_read_only: bool) -> None:
        """Take an open file for a disk, instead of the one before."""
        from vbnet._native import DiskImage  # noqa: PLC0415 - hosts without disks do without

        self.image = DiskImage(fd, is_read_only=is_read_only, serial=self.attributes["serial"])
        self.attributes.publish("image", name)
        self.attributes.publish("access", "ro" if is_read_only else "rw")
        self.attributes.publish("bytes", self.image.sectors * wire.SECTOR_BYTES)

    def release(self) -> None:
        """The file is closed."""
        self.image = None
        super().release()


class RngClass(VirtioClass):
    """Entropy of the machine."""

    name = "virtio-rng"
    abi_type = wire.RNG_TYPE

    def make(self, share: Share, name: str) -> RngDevice:
        """Make one."""
        return RngDevice(share, name, wire.RNG_TYPE)


class RngDevice(VirtioBase):
    """Gives guests the machine's random numbers."""

    is_shared = True

    def open_native(self, ram: Ram, how: Mapping[str, Any]) -> VirtioDevice:
        """Open it."""
        return self.share.native.open_rng(ram, **how)


class ConsoleClass(VirtioClass):
    """Consoles, each on a pseudo terminal of the host."""

    name = "virtio-console"
    abi_type = wire.CONSOLE_TYPE

    def make(self, share: Share, name: str) -> ConsoleDevice:
        """Make one; its pseudo terminal is there at once."""
        return ConsoleDevice(share, name)


class ConsoleDevice(VirtioBase):
    """One console: what its guest says goes to the terminal, and to a file if an operator gave one.

    Args:
        share: of the host.
        name: of the device.
    """

    def __init__(self, share: Share, name: str) -> None:
        from vbnet._native import ConsoleTerminal  # noqa: PLC0415 - hosts without consoles do without

        terminal = ConsoleTerminal()
        self._terminal: ConsoleTerminal | None = terminal
        self._log: int | None = None
        super().__init__(
            share,
            name,
            wire.CONSOLE_TYPE,
            (
                Attribute("terminal", "where to attach to it", str, terminal.name, is_read_only=True),
                Attribute("log", "name of the file that keeps what the guest says", str, "", is_read_only=True),
            ),
        )

    def open_native(self, ram: Ram, how: Mapping[str, Any]) -> VirtioDevice:
        """Open it."""
        if self._terminal is None:
            raise ClosedError(f"device {self.name!r} was deleted")
        return self.share.native.open_console(ram, self._terminal, self._log, **how)

    def insert(self, fd: int, name: str, *, is_read_only: bool) -> None:
        """Take an open file for a log, which is added to from where it is."""
        if is_read_only:
            raise UsageError("a console writes to its log; do not insert it to be read only", name=name)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError("a console's log is a regular file", name=name)
        log = os.dup(fd)
        try:
            os.lseek(log, 0, os.SEEK_END)
        except BaseException:
            os.close(log)
            raise
        self._end_log()
        self._log = log
        self.attributes.publish("log", name)

    def release(self) -> None:
        """Terminal and log are closed."""
        self._terminal = None
        self._end_log()
        super().release()

    def _end_log(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None


class VirtioInterface(Interface):
    """What the guest opens."""

    versions = (wire.VERSION,)
    exclusive = True
    needs_memory = True

    def __init__(self, device: VirtioBase) -> None:
        self.name = device.name.rpartition(".")[2]
        self.abi_type = device.abi_type
        self._device = device

    def connect(self, opener: Opener, version: int) -> Connection:  # noqa: ARG002 - there is one version
        """Let a driver use it."""
        return self._device.connect(opener)


class VirtioConnection(Connection):
    """One driver's use. Nothing here looks into the guest's memory."""

    def __init__(self, device: VirtioBase, opener: Opener) -> None:
        if opener.ram is None:
            raise UnsupportedError("a virtio device works in the guest's memory, and this guest shares none")
        self._device = device
        self._opener = opener
        attributes = device.attributes
        how = {
            "name": device.name.rpartition(".")[2],
            "labels": label_text({"guest": opener.guest, "device": device.name}),
            "transport": attributes["transport"],
            "spin_us": attributes["spin_us"],
            "trap_cost_ns": attributes["trap_cost_ns"],
        }
        self._native = device.open_native(opener.ram, how)
        device.share.watch(self._native, opener.fault)
        if attributes["transport"] != wire.TRANSPORTS[0]:
            self.fast = self._native.fast()

    def call(self, function: int, data: bytes) -> bytes:
        """Read or write a register."""
        with self._opener.blamed():
            return self._native.call(function, data)

    def shm(self, region: SharedRegion) -> None:
        """Take the memory of a queue."""
        if region.signal is None or region.signal_offset is None:
            raise UsageError(f"queue {region.id} is shared with a signal")
        self._native.show(
            region.id,
            (region.offset, region.length),
            region.signal_offset,
            (region.signal.kick_fd, region.signal.call_fd),
            signals=self._device.share.services.signals.native,
            line=self._opener.line(region.signal),
        )

    def close(self) -> None:
        """Let go of the guest's memory; when this returns nobody touches it.

        A request that takes its thread longer than a second is left to end by itself, on memory that stays mapped here.
        """
        self._device.share.forget(self._native)
        try:
            self._native.close()
        except BusyError as busy:
            services = self._device.share.services
            services.log.warning("virtio_request_left_behind", device=self._device.name, reason=str(busy))


def _transport(text: str) -> str:
    if text not in wire.TRANSPORTS:
        raise ValueError(f"one of {', '.join(wire.TRANSPORTS)}")
    return text


def _serial(text: str) -> str:
    if not text.isascii() or not (text == "" or text.isprintable()) or len(text) > SERIAL_BYTES:
        raise ValueError(f"at most {SERIAL_BYTES} printable ASCII characters")
    return text

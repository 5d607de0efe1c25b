"""The host half of virtio: gives each open device its native half, and tells what guests broke.

Registers, queues and requests are native code's business (``rust/core/src/virtio``), on a thread for each open device;
here is what an operator sees and sets. All virtio devices of a class share one native host, which frees their threads
from doorbells that guests made block.

A disk is an open file that an operator put in (``vbnet device insert``). The host never opens one by a name.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vbnet.devices.virtio import wire
from vbnet.errors import BusyError, PeerFault, UnsupportedError, UsageError
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
    from vbnet._native import DiskImage, VirtioDevice, VirtioHost

__all__ = ["BlkClass", "BlkDevice"]

SPIN_MAX_US = 100_000
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


class BlkClass(DeviceClass):
    """Disks: each an open file of the operator's."""

    name = "virtio-blk"
    abi_types = (wire.BLK_TYPE,)

    def __init__(self) -> None:
        self._share: Share | None = None
        self._devices = 0

    def create(self, services: HostServices, name: str) -> BlkDevice:
        """Make a drive without a disk; an operator puts one in."""
        if self._share is None:
            self._share = Share(services)
        self._devices += 1
        return BlkDevice(self._share, name, self._released)

    def _released(self) -> None:
        self._devices -= 1
        if self._devices == 0 and self._share is not None:
            self._share.close()
            self._share = None


class BlkDevice(Device):
    """One drive, with a disk or without.

    Args:
        share: of the host.
        name: of the device.
        released: called when it was deleted.

    Attributes:
        image: the disk, or None.
    """

    def __init__(self, share: Share, name: str, released: Callable[[], None]) -> None:
        self.share = share
        self.name = name
        self._released = released
        self._file: tuple[int, bool] | None = None
        self._bus: str | None = None
        self.image: DiskImage | None = None
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
                    "serial",
                    f"serial number that the guest reads, at most {SERIAL_BYTES} ASCII characters",
                    _serial,
                    name.replace(".", "-")[-SERIAL_BYTES:] if name.isascii() else "",
                    is_locked_while_open=True,
                ),
                Attribute("image", "name of the file that was put in; empty: none", str, "", is_read_only=True),
                Attribute("access", "`rw` or `ro`", str, "rw", is_read_only=True),
                Attribute("bytes", "size of the disk", int, 0, is_read_only=True),
            )
        )

    def plug(self, bus: str) -> Sequence[Interface]:
        """Show one interface, named after the last part of the device's name; a disk has one bus."""
        if self._bus is not None:
            raise BusyError(f"device {self.name!r} is plugged into {self._bus!r}; a disk has one bus", bus=self._bus)
        self._bus = bus
        return [BlkInterface(self)]

    def unplug(self, bus: str) -> None:
        """It may be plugged elsewhere now."""
        if self._bus == bus:
            self._bus = None

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
        self._released()


class BlkInterface(Interface):
    """What the guest opens."""

    abi_type = wire.BLK_TYPE
    versions = (wire.VERSION,)
    exclusive = True

    def __init__(self, device: BlkDevice) -> None:
        self.name = device.name.rpartition(".")[2]
        self._device = device

    def connect(self, opener: Opener, version: int) -> Connection:  # noqa: ARG002 - there is one version
        """Let a driver use it."""
        return VirtioConnection(self._device, opener)


class VirtioConnection(Connection):
    """One driver's use. Nothing here looks into the guest's memory."""

    def __init__(self, device: BlkDevice, opener: Opener) -> None:
        if opener.ram is None:
            raise UnsupportedError("a virtio device works in the guest's memory, and this guest shares none")
        self._device = device
        self._opener = opener
        labels = label_text({"guest": opener.guest, "device": device.name})
        attributes = device.attributes
        self._native = device.share.native.open_disk(
            opener.ram,
            device.image,
            name=device.name.rpartition(".")[2],
            labels=labels,
            transport=attributes["transport"],
            spin_us=attributes["spin_us"],
        )
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

"""The guest half of virtio: disks as files, consoles, entropy.

    with guest.disk("disk0") as disk:            # a file: read, readinto, write, seek, tell, flush
        disk.seek(4096)
        disk.write(b"whole or in part")          # on the device when it returns; flush() for the file beneath
        disk.discard(1 << 20, 1 << 20)           # these bytes are of no use any more
    buffered = io.BufferedRandom(guest.disk("disk0"))
    guest.bind("console0").write(b"hello")
    seed = guest.bind("rng0").read(32)

The native driver lays queue and buffers out in a block of the guest's memory, once, and copies data between there and
whoever reads or writes. Operations block their thread, with a deadline, and let go of the interpreter; several threads
take turns. In asyncio, ``await asyncio.to_thread(disk.read, n)``. When host or device are gone, every call raises
PeerGone, also those that wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from vbnet.devices.virtio import wire
from vbnet.errors import BusyError, ClosedError, DeadlineError, ResourceError, UsageError
from vbnet.guestnode.memory import Block
from vbnet.guestnode.proxy import OpenDevice, ProxyDevice

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from vbnet._native import VirtioDisk, VirtioStream
    from vbnet.sharedmem import Ram

__all__ = ["Console", "ConsoleDriver", "Disk", "DiskDriver", "DiskFile", "Entropy", "EntropyDriver"]

BUFFER_BYTES_MIN: Final = 128 << 10
BUFFER_BYTES_MAX: Final = 1 << 20
STREAM_BYTES: Final = 64 << 10
"""Of the guest's memory, for a device of bytes in order: its queues, and buffers of 1 KiB."""
_PAGE_BYTES: Final = 4096
TIMEOUT_S: Final = 30.0
"""How long a disk may take to answer, unless somebody says otherwise."""


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class _Make(Protocol[T_co]):
    """Makes a native driver, in a thread that may wait."""

    def __call__(
        self,
        ram: Ram,
        offset: int,
        length: int,
        call: Callable[[int, bytes], bytes],
        share: Callable[[int, int, int, int], tuple[int, int]],
        *,
        spin_us: int,
    ) -> T_co: ...


async def _started(device: ProxyDevice, make: _Make[T], length: int, spin_us: int) -> tuple[OpenDevice, Block, T]:
    """Open a device and start its native driver in a block of the guest's memory."""
    opened = await device.open(wire.VERSION)
    loop = asyncio.get_running_loop()
    block = None

    def share(region: int, offset: int, length: int, signal_offset: int) -> tuple[int, int]:
        work = opened.shm(region, offset, length, signal_offset=signal_offset)
        signal = asyncio.run_coroutine_threadsafe(work, loop).result()
        if signal is None:  # a queue is always shared with one
            raise BusyError(f"the host gave queue {region} no doorbell")
        return signal.kick_fd, signal.call_fd

    try:
        block = device.memory.allocate(length, _PAGE_BYTES)
        native = await asyncio.to_thread(
            make, device.ram, block.offset, block.length, opened.fastcall, share, spin_us=spin_us
        )
    except BaseException:
        await opened.close()
        if block is not None:
            device.memory.free(block)
        raise
    return opened, block, native


class DiskDriver:
    """Drives ``virtio:2`` devices.

    Args:
        buffer_bytes: of the guest's memory, for its queue and for data on its way; None takes a quarter of what is
            free, 128 KiB to 1 MiB.
        spin_us: how long to wait awake for an answer before going to sleep, in µs.
        timeout: seconds that a disk may take to answer.
    """

    abi_type = wire.BLK_TYPE

    def __init__(self, buffer_bytes: int | None = None, *, spin_us: int = 50, timeout: float = TIMEOUT_S) -> None:
        self._buffer_bytes = buffer_bytes
        self._spin_us = spin_us
        self._timeout = timeout

    async def probe(self, device: ProxyDevice) -> Disk:
        """Open the device and start its driver."""
        from vbnet._native import VirtioDisk  # noqa: PLC0415 - guests without disks do without

        opened, block, native = await _started(device, VirtioDisk, self._length(device), self._spin_us)
        return Disk(opened, block, native, self._timeout)

    def _length(self, device: ProxyDevice) -> int:
        if self._buffer_bytes is not None:
            return -(-self._buffer_bytes // _PAGE_BYTES) * _PAGE_BYTES
        quarter = device.memory.free_bytes // 4 // _PAGE_BYTES * _PAGE_BYTES
        return min(max(quarter, BUFFER_BYTES_MIN), BUFFER_BYTES_MAX)


class Disk:
    """A disk of this guest; ``open()`` gives it as a file, and any number of files may be open at once.

    Attributes:
        size: bytes.
        is_read_only: writes are refused.
        has_discard: discards and zeroes are taken.
        timeout: seconds that it may take to answer.
    """

    def __init__(self, opened: OpenDevice, block: Block, native: VirtioDisk, timeout: float) -> None:
        self._opened = opened
        self._block = block
        self._native = native
        self.size = native.size
        self.is_read_only = native.is_read_only
        self.has_discard = native.has_discard
        self.timeout = timeout

    @property
    def name(self) -> str:
        """Of the device."""
        return self._opened.device.name

    @property
    def serial(self) -> str:
        """The serial number that the operator gave it; asked of the device each time."""
        return self._native.read_serial(self.timeout)

    def open(self) -> DiskFile:
        """The disk as a file, at its beginning."""
        return DiskFile(self)

    def read_at(self, offset: int, length: int) -> bytes:
        """``length`` bytes from byte ``offset`` on.

        Raises:
            UsageError: they do not lie on the disk. ResourceError: the disk failed (an OSError, EIO).
            DeadlineError: it did not answer in time. PeerGone: device or host are gone.
        """
        data = bytearray(length)
        self.read_into(offset, data)
        return bytes(data)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill ``buffer`` from byte ``offset`` on; raises what ``read_at`` raises."""
        self._native.read_into(offset, buffer, self.timeout)

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write ``data`` from byte ``offset`` on. Sectors that are written in part are read before.

        Raises:
            What ``read_at`` raises; after DeadlineError any part may have been written, or may be yet.
            ResourceError: it can only be read (EROFS).
        """
        self._native.write_from(offset, data, self.timeout)

    def flush(self) -> None:
        """Have everything written on the file beneath for good; raises what ``read_at`` raises."""
        self._native.sync(self.timeout)

    def discard(self, offset: int, length: int) -> None:
        """Say that whole sectors are of no use any more; what they read as from now on is open.

        Raises:
            UsageError: not whole sectors of the disk. ResourceError: it takes none (EOPNOTSUPP), or failed.
        """
        self._native.trim(offset, length, False, self.timeout)  # noqa: FBT003 - a native call

    def write_zeroes(self, offset: int, length: int) -> None:
        """Fill whole sectors with zeroes, without sending them; raises what ``discard`` raises."""
        self._native.trim(offset, length, True, self.timeout)  # noqa: FBT003 - a native call

    def tally(self) -> tuple[int, int, int, int]:
        """Register accesses, kicks asked for, doorbells rung and sleeps so far, for benches."""
        return self._native.tally()

    async def remove(self) -> None:
        """The device left, or the guest does: let waits end, then give the memory back."""
        self._native.abandon()
        await self._opened.close()
        with contextlib.suppress(BusyError):  # a thread is on its way out of a wait; its memory stays taken
            self._native.release()
            self._opened.device.memory.free(self._block)


class DiskFile(io.RawIOBase):
    """A disk as a raw file: unbuffered, of a fixed size, any position and length.

    Args:
        disk: what it reads and writes.
    """

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self.disk = disk
        self._position = 0
        self._is_dirty = False

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self.disk.size

    def readable(self) -> bool:
        """Say yes."""
        self._check()
        return True

    def writable(self) -> bool:
        """Say whether the disk can be written to."""
        self._check()
        return not self.disk.is_read_only

    def seekable(self) -> bool:
        """Say yes."""
        self._check()
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, also behind the end, where nothing can be read or written; gives it.

        Raises:
            UsageError: before the beginning, or no such ``whence``.
        """
        self._check()
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.disk.size}
        if whence not in bases:
            raise UsageError(f"whence is 0, 1 or 2; got {whence}", got=whence)
        position = bases[whence] + offset
        if position < 0:
            raise UsageError(f"{position} is before the beginning of the disk", got=position)
        self._position = position
        return position

    def readinto(self, buffer: Buffer) -> int:
        """Read what fits into ``buffer``, up to the end; gives how much that was."""
        self._check()
        view = memoryview(buffer).cast("B")
        length = min(len(view), max(self.disk.size - self._position, 0))
        if length:
            self.disk.read_into(self._position, view[:length])
            self._position += length
        return length

    def write(self, data: Buffer) -> int:
        """Write what fits before the end; gives how much that was.

        Raises:
            ResourceError: at the end of the disk (ENOSPC), or as ``Disk.write_at``.
        """
        self._check()
        view = memoryview(data).cast("B")
        length = min(len(view), max(self.disk.size - self._position, 0))
        if len(view) and not length:
            raise ResourceError(f"the disk ends at byte {self.disk.size}", errno=errno.ENOSPC, got=self._position)
        if length:
            self._is_dirty = True
            self.disk.write_at(self._position, view[:length])
            self._position += length
        return length

    def flush(self) -> None:
        """Have everything written on the file beneath for good."""
        self._check()
        if self._is_dirty:
            self.disk.flush()
            self._is_dirty = False

    def discard(self, offset: int, length: int) -> None:
        """See ``Disk.discard``."""
        self._check()
        self._is_dirty = True
        self.disk.discard(offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        """See ``Disk.write_zeroes``."""
        self._check()
        self._is_dirty = True
        self.disk.write_zeroes(offset, length)

    def _check(self) -> None:
        if self.closed:
            raise ClosedError("this file of a disk is closed")


class _StreamDriver:
    """Drives devices that give or take bytes in order.

    Args:
        spin_us: how long to wait awake for room before going to sleep, in µs.
    """

    def __init__(self, *, spin_us: int = 50) -> None:
        self._spin_us = spin_us

    async def _start(self, device: ProxyDevice) -> tuple[OpenDevice, Block, VirtioStream]:
        from vbnet._native import VirtioStream  # noqa: PLC0415 - guests without such devices do without

        return await _started(device, VirtioStream, STREAM_BYTES, self._spin_us)


class _Stream:
    """A device of bytes in order, at work."""

    def __init__(self, opened: OpenDevice, block: Block, native: VirtioStream) -> None:
        self._opened = opened
        self._block = block
        self._native = native

    async def remove(self) -> None:
        """The device left, or the guest does: let waits end, then give the memory back."""
        self._native.abandon()
        await self._opened.close()
        self._native.release()
        self._opened.device.memory.free(self._block)


class EntropyDriver(_StreamDriver):
    """Drives ``virtio:4`` devices."""

    abi_type = wire.RNG_TYPE

    async def probe(self, device: ProxyDevice) -> Entropy:
        """Open the device and start its driver."""
        return Entropy(*await self._start(device))


class Entropy(_Stream):
    """The machine's random numbers."""

    def read(self, length: int, timeout: float = TIMEOUT_S) -> bytes:
        """``length`` random bytes.

        Raises:
            DeadlineError: not that many in time. PeerGone: device or host are gone.
        """
        found = b""
        end = time.monotonic() + timeout
        while len(found) < length:
            more = self._native.read(length - len(found), max(end - time.monotonic(), 0))
            if not more:
                raise DeadlineError(f"no entropy within {timeout:g} s", deadline_s=timeout)
            found += more
        return found


class ConsoleDriver(_StreamDriver):
    """Drives ``virtio:3`` devices."""

    abi_type = wire.CONSOLE_TYPE

    async def probe(self, device: ProxyDevice) -> Console:
        """Open the device and start its driver."""
        return Console(*await self._start(device))


class Console(_Stream):
    """A console: bytes from whoever is attached, and to them. One thread may read while another writes."""

    def read(self, limit: int = 4096, timeout: float | None = None) -> bytes:
        """What was typed: up to ``limit`` bytes, or the first to come; none when the time was up.

        Raises:
            PeerGone: device or host are gone.
        """
        return self._native.read(limit, timeout)

    def write(self, data: Buffer, timeout: float = TIMEOUT_S) -> int:
        """Say ``data``; gives how much of it there was time for. What nobody reads is let go of on the host.

        Raises:
            PeerGone: device or host are gone.
        """
        return self._native.write(data, timeout)

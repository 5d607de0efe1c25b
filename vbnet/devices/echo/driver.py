"""The guest half of echo."""

from __future__ import annotations

from vbnet.devices.echo import wire
from vbnet.guestnode.memory import Block
from vbnet.guestnode.proxy import OpenDevice, ProxyDevice, SharedSignal

__all__ = ["Cell", "CellDriver", "Echo", "EchoDriver"]


class EchoDriver:
    """Drives ``echo`` devices of any class."""

    abi_type = wire.ECHO_TYPE

    async def probe(self, device: ProxyDevice) -> Echo:
        """Open it."""
        return Echo(await device.open(wire.VERSION))


class Echo:
    """An echo at the other end of the bus."""

    def __init__(self, opened: OpenDevice) -> None:
        self._opened = opened

    async def echo(self, data: bytes) -> bytes:
        """What the device makes of ``data``."""
        return await self._opened.call(wire.EchoFunction.ECHO, data)

    async def shout(self, data: bytes) -> bytes:
        """``data`` in upper case."""
        return await self._opened.call(wire.EchoFunction.SHOUT, data)

    async def count(self) -> int:
        """Calls made through this open so far."""
        return int(wire.COUNT.unpack(await self._opened.call(wire.EchoFunction.COUNT))[0])

    async def remove(self) -> None:
        """Close it."""
        await self._opened.close()


class CellDriver:
    """Drives ``echo-cell`` devices; needs 4 KiB of the guest's memory for each."""

    abi_type = wire.CELL_TYPE

    def __init__(self, *, with_signal: bool = True) -> None:
        self._with_signal = with_signal

    async def probe(self, device: ProxyDevice) -> Cell:
        """Open it and share a cell, whose last 16 bytes are the doorbell's when there is one."""
        opened = await device.open(wire.VERSION)
        block = device.memory.allocate(wire.CELL_BYTES)
        try:
            signal_offset = block.length - 16 if self._with_signal else -1
            signal = await opened.shm(wire.CELL_REGION, block.offset, block.length, signal_offset=signal_offset)
        except BaseException:
            await opened.close()
            device.memory.free(block)
            raise
        return Cell(opened, block, signal)


class Cell:
    """A piece of memory that the device turns around.

    Attributes:
        block: where it is in the guest's memory.
        signal: rung after each ``reverse``, or None.
    """

    def __init__(self, opened: OpenDevice, block: Block, signal: SharedSignal | None) -> None:
        self._opened = opened
        self.block = block
        self.signal = signal

    def read(self, length: int) -> bytes:
        """The first ``length`` bytes."""
        return bytes(memoryview(self._opened.device.ram.view(self.block.offset, length)))

    def write(self, data: bytes) -> None:
        """Put ``data`` at the start."""
        memoryview(self._opened.device.ram.view(self.block.offset, len(data)))[:] = data

    async def store(self, data: bytes) -> int:
        """Have the device put ``data`` at the start; gives the length."""
        return int(wire.LENGTH.unpack(await self._opened.call(wire.CellFunction.STORE, data))[0])

    async def reverse(self) -> int:
        """Have the device turn it around; gives the number of bytes."""
        return int(wire.LENGTH.unpack(await self._opened.call(wire.CellFunction.REVERSE))[0])

    async def remove(self) -> None:
        """Close it; the memory is free again."""
        await self._opened.close()
        self._opened.device.memory.free(self.block)

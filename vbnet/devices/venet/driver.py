"""The guest half of venet: a network card on two rings, ``vbnet.guestnode.nic.Nic`` like all of them.

Who writes what: the guest owns this memory; see ``rust/core/src/guest/venet.rs``.
"""

from __future__ import annotations

from typing import Final, Self

from vbnet._native import Venet, VenetLayout
from vbnet.devices.venet import wire
from vbnet.errors import BusyError
from vbnet.guestnode.memory import Block
from vbnet.guestnode.nic import Nic, default_slots
from vbnet.guestnode.proxy import OpenDevice, ProxyDevice, SharedSignal
from vbnet.net.mac import MacAddress

__all__ = ["VenetDriver", "VenetNic"]

RAM_HEADER_BYTES: Final = 4096
"""What a layout counts for the header of guest RAM; its parts are aligned to it."""


class VenetNic(Nic, Venet):
    """A network card of the model ``venet``, which can also ask its device what that offers."""

    def __new__(cls, opened: OpenDevice, block: Block, mac: MacAddress, mtu: int, slots: int) -> Self:
        """Format the rings in ``block`` of the guest's memory."""
        nic = Venet.__new__(cls, opened.device.ram, mtu, slots, slots, block.offset)
        nic.belong(opened, block, mac, mtu)
        return nic

    async def link_up(self) -> None:
        """Let frames through; raises ExistsError when they are let through already."""
        await self._opened.call(wire.Function.LINKUP)

    async def link_down(self) -> None:
        """Let none through until :meth:`link_up`."""
        await self._opened.call(wire.Function.LINKDOWN)

    async def flush_receive(self) -> None:
        """Have the host give every posted buffer back empty; they are posted again as they are received."""
        await self._opened.call(wire.Function.FLUSHRX)


class VenetDriver:
    """Drives ``virtual-ethernet`` devices.

    Args:
        slots: of each ring, a power of two; None chooses by the MTU.
        priority: of both signals, 0..7.
    """

    abi_type = wire.ABI_TYPE

    def __init__(self, slots: int | None = None, priority: int = 0) -> None:
        self._slots = slots
        self._priority = priority

    @staticmethod
    def ram_bytes(mtu: int, slots: int) -> int:
        """Bytes of a guest's memory that holds one such card and nothing else."""
        return VenetLayout(mtu, slots, slots).ram_bytes

    async def probe(self, device: ProxyDevice) -> VenetNic:
        """Open the device, share its rings and bring the link up."""
        opened = await device.open(wire.VERSION)
        nic = None
        block = None
        try:
            mac = MacAddress(await opened.call(wire.Function.MACQUERY))
            (mtu,) = wire.MTU.unpack(await opened.call(wire.Function.MTUQUERY))
            slots = self._slots or default_slots(mtu)
            length = VenetLayout(mtu, slots, slots).ram_bytes - RAM_HEADER_BYTES
            block = device.memory.allocate(length, RAM_HEADER_BYTES)
            nic = VenetNic(opened, block, mac, mtu, slots)
            await self._share(opened, nic)
            await nic.link_up()
        except BaseException:
            await opened.close()
            if nic is not None:
                nic.close()
            if block is not None:
                device.memory.free(block)
            raise
        return nic

    async def _share(self, opened: OpenDevice, nic: VenetNic) -> None:
        layout = nic.layout

        async def share(region: wire.Region, offset: int, length: int) -> SharedSignal:
            signal = await opened.shm(
                region, offset, length, priority=self._priority, signal_offset=wire.RING_SIGNAL_OFFSET
            )
            if signal is None:  # a ring is always shared with one
                raise BusyError(f"the host gave region {region.name} no doorbell")
            return signal

        tx = nic.send_signal = await share(wire.Region.TX, layout.tx_offset, layout.tx_length)
        rx = nic.receive_signal = await share(wire.Region.RX, layout.rx_offset, layout.rx_length)
        nic.connect(tx.kick_fd, tx.call_fd, rx.kick_fd, rx.call_fd)

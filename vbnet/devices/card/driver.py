"""The guest half of emulated cards: a network card by registers, ``vbnet.guestnode.nic.Nic`` like all of them.

The native driver lays rings and buffers out in a block of the guest's memory and starts the card, in some hundreds of
traps. Each of its halves reaches the card by a fastcall slot of its own, so no register waits for the interpreter. Who
writes what: see ``rust/core/src/guest/card/mod.rs``.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from typing import Final, Self

from vbnet._native import E1000, FastSlot, NicDriver, Rtl8139
from vbnet.devices.card import wire
from vbnet.errors import BusyError
from vbnet.guestnode.memory import Block
from vbnet.guestnode.nic import Nic, default_slots
from vbnet.guestnode.proxy import OpenDevice, ProxyDevice, SharedSignal
from vbnet.net.mac import MacAddress

__all__ = ["CardNic", "E1000Driver", "E1000Nic", "Rtl8139Driver", "Rtl8139Nic"]

_PAGE_BYTES: Final = 4096
"""Slots and line lie in the first page of a driver's block, the native driver behind it."""
_RAM_HEADER_BYTES: Final = 4096


class Reach:
    """How a driver reaches its card: what it showed to the host.

    Args:
        opened: the card.
        block: of the guest's memory, a page at least.
        spin_us: how long to wait for a register awake.
    """

    def __init__(self, opened: OpenDevice, block: Block, spin_us: int) -> None:
        self.opened = opened
        self.block = block
        self._spin_us = spin_us
        ram = opened.device.ram
        self.slots = (FastSlot(ram, block.offset), FastSlot(ram, block.offset + wire.SLOT_BYTES))

    async def show(self) -> SharedSignal:
        """Show slots and line; gives the line's signal."""
        for region, slot in zip((wire.Region.TRANSMIT_SLOT, wire.Region.RECEIVE_SLOT), self.slots, strict=True):
            offset = self.block.offset + region * wire.SLOT_BYTES
            signal = await self._share(region, offset, wire.SLOT_BYTES, wire.SLOT_SIGNAL_OFFSET)
            slot.connect(signal.kick_fd, signal.call_fd, self._spin_us)
        offset = self.block.offset + 2 * wire.SLOT_BYTES
        return await self._share(wire.Region.LINE, offset, wire.LINE_BYTES, wire.LINE_SIGNAL_OFFSET)

    async def _share(self, region: wire.Region, offset: int, length: int, signal_offset: int) -> SharedSignal:
        signal = await self.opened.shm(region, offset, length, signal_offset=signal_offset)
        if signal is None:  # each is always shared with one
            raise BusyError(f"the host gave region {region.name} no doorbell")
        return signal

    @property
    def start(self) -> int:
        """The first byte of the guest's memory that is the native driver's."""
        return self.block.offset + _PAGE_BYTES

    def abandon(self) -> None:
        """The card is gone: whoever waits for a register waits no more."""
        for slot in self.slots:
            slot.abandon()

    def close(self) -> None:
        """Let go of the slots; raises BusyError while a native guest has the card."""
        for slot in self.slots:
            slot.close()


class CardNic(Nic):
    """A network card that is emulated. Its interrupt is one for both directions: both signals are the same."""

    _reach: Reach

    def become(self, reach: Reach, line: SharedSignal, mac: str, mtu: int) -> None:
        """Take note of what it is made of."""
        self._reach, self._opened, self._block = reach, reach.opened, reach.block
        self.mac, self.mtu, self.name = MacAddress.parse_station(mac), mtu, reach.opened.device.name
        self.receive_signal = self.send_signal = line

    def abandon(self) -> None:
        """The device or the host has ended: whoever waits, for a register too, gets PeerGone."""
        self._reach.abandon()
        NicDriver.abandon(self)

    def close(self) -> None:
        """End the device on this side; raises BusyError while somebody waits or a native guest runs it."""
        NicDriver.close(self)
        self._reach.close()


class E1000Nic(CardNic, E1000):
    """An Intel 82540EM."""

    def __new__(cls, reach: Reach, line: SharedSignal, mtu: int, slots: int, interrupts_per_second: int) -> Self:
        """Reset the card and start it; blocks for some hundreds of traps."""
        nic = E1000.__new__(
            cls,
            reach.opened.device.ram,
            reach.slots,
            reach.opened.serial,
            line.call_fd,
            mtu=mtu,
            tx_slots=slots,
            rx_slots=slots,
            start=reach.start,
            interrupts_per_second=interrupts_per_second,
        )
        nic.become(reach, line, nic.station, mtu)
        return nic


class Rtl8139Nic(CardNic, Rtl8139):
    """A Realtek RTL8139C."""

    def __new__(cls, reach: Reach, line: SharedSignal, mtu: int) -> Self:
        """Reset the card and start it; blocks for some dozens of traps."""
        nic = Rtl8139.__new__(
            cls,
            reach.opened.device.ram,
            reach.slots,
            reach.opened.serial,
            line.call_fd,
            mtu=mtu,
            start=reach.start,
        )
        nic.become(reach, line, nic.station, mtu)
        return nic


class _CardDriver:
    """Drives cards of one model.

    Args:
        slots: of each ring, where the model has rings whose size can be chosen; None chooses by the MTU.
    """

    abi_type: str

    def __init__(self, slots: int | None = None) -> None:
        self._slots = slots

    async def probe(self, device: ProxyDevice) -> CardNic:
        """Open the device, show slots and line, and start the card."""
        opened = await device.open(wire.VERSION)
        block = None
        reach = None
        try:
            mtu, interrupts, spin_us = wire.INFO.unpack(await opened.call(wire.Function.INFO))
            slots = self._slots or default_slots(mtu) // 2  # a buffer is a power of two, 2 KiB at least
            block = device.memory.allocate(_PAGE_BYTES + self._bytes(mtu, slots), _PAGE_BYTES)
            reach = Reach(opened, block, spin_us)
            line = await reach.show()
            return await asyncio.to_thread(self._start, reach, line, mtu, slots, interrupts)
        except BaseException:
            if reach is not None:
                reach.abandon()
            await opened.close()
            with contextlib.suppress(BusyError):  # a thread is on its way out of a register; its memory stays taken
                if reach is not None:
                    reach.close()
                if block is not None:
                    device.memory.free(block)
            raise

    @staticmethod
    @abstractmethod
    def _bytes(mtu: int, slots: int) -> int:
        """Bytes of the guest's memory that the native driver uses."""

    @staticmethod
    @abstractmethod
    def _start(reach: Reach, line: SharedSignal, mtu: int, slots: int, interrupts: int) -> CardNic:
        """Start the card; blocks."""


class E1000Driver(_CardDriver):
    """Drives ``e1000`` devices; slots are a multiple of 8."""

    abi_type = wire.E1000_TYPE

    @staticmethod
    def ram_bytes(mtu: int, slots: int) -> int:
        """Bytes of a guest's memory that holds one such card and nothing else."""
        return _RAM_HEADER_BYTES + _PAGE_BYTES + E1000Driver._bytes(mtu, slots)

    @staticmethod
    def _bytes(mtu: int, slots: int) -> int:
        end = E1000.end_of(mtu, slots, slots, _RAM_HEADER_BYTES)
        return -(-end // _PAGE_BYTES) * _PAGE_BYTES - _RAM_HEADER_BYTES

    @staticmethod
    def _start(reach: Reach, line: SharedSignal, mtu: int, slots: int, interrupts: int) -> CardNic:
        return E1000Nic(reach, line, mtu, slots, interrupts)


class Rtl8139Driver(_CardDriver):
    """Drives ``rtl8139`` devices, whose four slots and one ring are what they are."""

    abi_type = wire.RTL8139_TYPE

    @staticmethod
    def ram_bytes(mtu: int, slots: int) -> int:
        """Bytes of a guest's memory that holds one such card and nothing else."""
        return _RAM_HEADER_BYTES + _PAGE_BYTES + Rtl8139Driver._bytes(mtu, slots)

    @staticmethod
    def _bytes(mtu: int, slots: int) -> int:
        del slots
        end = Rtl8139.end_of(mtu, _RAM_HEADER_BYTES)
        return -(-end // _PAGE_BYTES) * _PAGE_BYTES - _RAM_HEADER_BYTES

    @staticmethod
    def _start(reach: Reach, line: SharedSignal, mtu: int, slots: int, interrupts: int) -> CardNic:
        del slots, interrupts
        return Rtl8139Nic(reach, line, mtu)

"""The guest half of virtio-net: a network card on two virtqueues, ``vbnet.guestnode.nic.Nic`` like all of them.

Registers of trapping transports are reached natively, through two slots of the bus's fastcall device, one for each
half; a bus without one has each access go as a message, which no program on the event loop's own thread can wait for.
Who writes what: the guest owns this memory; see ``rust/core/src/guest/virtio/net.rs``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, Self

from vbnet._native import FASTCALL_SLOT_BYTES, VirtioNet, virtio_net_bytes
from vbnet.devices.virtio_net import wire
from vbnet.errors import BusyError
from vbnet.guestnode.memory import Block
from vbnet.guestnode.nic import Nic, default_slots
from vbnet.guestnode.proxy import FastSlots, OpenDevice, ProxyDevice, SharedSignal
from vbnet.net.mac import MacAddress
from vbnet.net.offload import offloads_named

if TYPE_CHECKING:
    from vbnet._native import FastSlot

__all__ = ["VirtioNetDriver", "VirtioNetNic"]

_PAGE_BYTES: Final = 4096
_FAST_SLOTS: Final = 8
"""Fastcall slots that there should be memory for: of the loop, of both halves, and of some threads."""


class VirtioNetNic(Nic, VirtioNet):
    """A network card of a model ``virtio-net``."""

    lent: FastSlots | None

    def __new__(  # noqa: PLR0917 - what a card is made of
        cls,
        opened: OpenDevice,
        block: Block,
        share: Callable[[int, int, int, int], tuple[int, int]],
        slots: int,
        lent: FastSlots | None,
        wanted: Collection[str] = (),
    ) -> Self:
        """Start the native driver in ``block`` of the guest's memory; not on the event loop's own thread."""
        fast: tuple[int, FastSlot, FastSlot] | None = None
        if lent is not None:
            first, second = lent.slots
            fast = (lent.device, first, second)
        nic = VirtioNet.__new__(
            cls,
            opened.device.ram,
            block.offset,
            block.length,
            opened.fastcall,
            share,
            slots=slots,
            fast=fast,
            wanted=list(wanted),
        )
        nic.belong(opened, block, MacAddress.parse(nic.hardware_address), nic.mtu_told)
        nic.lent = lent
        return nic

    async def remove(self) -> None:
        """The device left, or the guest does."""
        await super().remove()
        if self.lent is not None:
            self.lent.give_back()


class VirtioNetDriver:
    """Drives ``virtio:1`` devices.

    Args:
        slots: of each queue, a power of two, at most 1024; None chooses by the MTU.
        offloads: ask for all that the host can grant, as of ``VenetDriver``, or for these of
            ``vbnet.net.offload.OFFLOADS``; with any of them come frames in several pieces, both ways.
    """

    abi_type = wire.ABI_TYPE

    def __init__(self, slots: int | None = None, *, offloads: bool | Collection[str] = False) -> None:
        self._slots = slots
        self._wanted = offloads_named(offloads)

    @staticmethod
    def ram_bytes(mtu: int, slots: int) -> int:
        """Bytes of a guest's memory that holds one such card and nothing else: header, block, fastcall slots."""
        return (
            _PAGE_BYTES
            + virtio_net_bytes(mtu, slots)
            + -(-_FAST_SLOTS * FASTCALL_SLOT_BYTES // _PAGE_BYTES) * _PAGE_BYTES
        )

    async def probe(self, device: ProxyDevice) -> VirtioNetNic:
        """Open the device and start its driver."""
        opened = await device.open(wire.VERSION)
        block = lent = None
        try:
            _kind, _queues, transport, _bytes = wire.INFO.unpack(await opened.call(wire.Function.INFO))
            answer = await opened.call(*wire.mtu_read(transport))
            mtu = int.from_bytes(answer[:2], "little")
            slots = self._slots or default_slots(mtu)
            length = virtio_net_bytes(mtu, slots, has_offloads=bool(self._wanted))
            block = device.memory.allocate(length, _PAGE_BYTES)
            lent = await opened.fast_slots(2) if transport else None
            signals: dict[int, SharedSignal] = {}
            share = _sharing(opened, signals)
            nic = await asyncio.to_thread(VirtioNetNic, opened, block, share, slots, lent, self._wanted)
        except BaseException:
            await opened.close()
            if lent is not None:
                lent.give_back()
            if block is not None:
                device.memory.free(block)
            raise
        nic.receive_signal, nic.send_signal = signals[wire.RECEIVE], signals[wire.TRANSMIT]
        return nic


def _sharing(opened: OpenDevice, signals: dict[int, SharedSignal]) -> Callable[[int, int, int, int], tuple[int, int]]:
    """Make what shows the memory of a queue, from the thread that starts the driver."""
    loop = asyncio.get_running_loop()

    def share(region: int, offset: int, length: int, signal_offset: int) -> tuple[int, int]:
        work = opened.shm(region, offset, length, signal_offset=signal_offset)
        signal = asyncio.run_coroutine_threadsafe(work, loop).result()
        if signal is None:  # a queue is always shared with one
            raise BusyError(f"the host gave queue {region} no doorbell")
        signals[region] = signal
        return signal.kick_fd, signal.call_fd

    return share

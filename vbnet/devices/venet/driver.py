"""The guest half of venet: a network card on two rings, ``vbnet.guestnode.nic.Nic`` like all of them.

Who writes what: the guest owns this memory; see ``rust/core/src/guest/venet.rs``.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection
from typing import Final, NamedTuple, Self

from vbnet._native import NicGrant, Venet, VenetLayout
from vbnet.devices.venet import wire
from vbnet.errors import BusyError, UsageError
from vbnet.guestnode.memory import Block
from vbnet.guestnode.nic import Nic, default_slots
from vbnet.guestnode.proxy import OpenDevice, ProxyDevice, SharedSignal
from vbnet.net.mac import MacAddress
from vbnet.net.offload import offloads_named

__all__ = ["VenetDriver", "VenetNic"]

_EVERYTHING: Final = wire.Capability(wire.CAPABILITIES[wire.CapabilityGroup.SG])
RAM_HEADER_BYTES: Final = 4096
"""What a layout counts for the header of guest RAM; its parts are aligned to it."""


class VenetNic(Nic, Venet):
    """A network card of the model ``venet``, which can also ask its device what that offers.

    Attributes:
        link_signal: what it raises when the carrier changed; None unless its state is in memory.
        link_block: where that is; None likewise.
    """

    link_signal: SharedSignal | None
    link_block: Block | None

    def __new__(  # noqa: PLR0917 - what a card is made of
        cls, opened: OpenDevice, block: Block, mac: MacAddress, mtu: int, slots: int, granted: Granted
    ) -> Self:
        """Format the rings in ``block`` of the guest's memory."""
        ram, (grant, has_pool) = opened.device.ram, granted
        nic = Venet.__new__(cls, ram, mtu, slots, slots, block.offset, grant, has_pool=has_pool)
        nic.belong(opened, block, mac, mtu)
        nic.link_block = nic.link_signal = None
        return nic

    @property
    def is_link_up(self) -> bool:
        """The carrier, as the host last said."""
        if self.link_block is not None:
            return bool(self._link_word() & 1)
        return super().is_link_up

    @property
    def link_changes(self) -> int:
        """How often the host told of the carrier, in 31 bits; for ``VenetDriver(link_in_memory=True)``."""
        return self._link_word() >> 1

    def _link_word(self) -> int:
        if self.link_block is None:
            raise UsageError("the link's state is not in memory; register VenetDriver(link_in_memory=True)")
        word = memoryview(self._opened.device.ram.view(self.link_block.offset, wire.LINK.size))
        return int(wire.LINK.unpack(word)[0])

    def close(self) -> None:
        """End the device on this side, as ``NicDriver.close``, and give back what it had beside its rings."""
        super().close()
        block, self.link_block = self.link_block, None
        if block is not None:
            self._opened.device.memory.free(block)

    async def link_up(self) -> None:
        """Let frames through; raises ExistsError when they are let through already."""
        await self._opened.call(wire.Function.LINKUP)

    async def link_down(self) -> None:
        """Let none through until :meth:`link_up`."""
        await self._opened.call(wire.Function.LINKDOWN)

    async def flush_receive(self) -> None:
        """Have the host give every posted buffer back empty; they are posted again as they are received."""
        await self._opened.call(wire.Function.FLUSHRX)


def _capabilities(offloads: bool | Collection[str]) -> wire.Capability:
    if offloads is True:
        return _EVERYTHING
    names = offloads_named(offloads)
    bits = (bit for bit, name in wire.OFFLOADS.items() if name in names)
    return functools.reduce(operator.or_, bits, wire.Capability.SG) if names else wire.Capability(0)


class Granted(NamedTuple):
    """What a host granted, and whether descriptions of frames lie in a pool."""

    grant: NicGrant
    has_pool: bool


class VenetDriver:
    """Drives ``virtual-ethernet`` devices.

    Args:
        slots: of each ring, a power of two; None chooses by the MTU.
        priority: of both signals, 0..7.
        offloads: ask for all that the host can grant: frames in several pieces, checksums and segments left to others,
            both ways. False, the default: plain frames, no longer than the MTU, with their checksums. Or the names of
            ``vbnet.net.offload.OFFLOADS``, or the bits of ``wire.Capability``, to ask for.
        link_in_memory: have the host keep the carrier in shared memory too, where a thread without the bus can look,
            and wait for ``nic.link_signal.call_fd``.
    """

    abi_type = wire.ABI_TYPE

    def __init__(
        self,
        slots: int | None = None,
        priority: int = 0,
        *,
        offloads: bool | wire.Capability | Collection[str] = False,
        link_in_memory: bool = False,
    ) -> None:
        self._link_in_memory = link_in_memory
        self._slots = slots
        self._priority = priority
        self._wanted = offloads if isinstance(offloads, wire.Capability) else _capabilities(offloads)

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
            granted = await self._negotiate(opened)
            slots = self._slots or default_slots(mtu)
            layout = VenetLayout(mtu, slots, slots, grant=granted.grant, has_pool=granted.has_pool)
            block = device.memory.allocate(layout.ram_bytes - RAM_HEADER_BYTES, RAM_HEADER_BYTES)
            nic = VenetNic(opened, block, mac, mtu, slots, granted)
            await self._share(opened, nic)
            if self._link_in_memory:
                await self._share_events(opened, nic)
            await nic.link_up()
        except BaseException:
            await opened.close()
            if nic is not None:
                nic.close()
            if block is not None:
                device.memory.free(block)
            raise
        return nic

    async def _negotiate(self, opened: OpenDevice) -> Granted:
        """Ask for what is wanted; a driver that wants plain frames asks for nothing."""
        if not self._wanted:
            return Granted(NicGrant(), has_pool=False)
        bits: dict[wire.CapabilityGroup, wire.Capability] = {}
        for group in (wire.CapabilityGroup.SG, wire.CapabilityGroup.L4RO):
            answer = await opened.call(wire.Function.NEGCAP, wire.NEGCAP.pack(group, self._wanted))
            bits[group] = wire.Capability(*wire.NEGCAP_ANSWER.unpack(answer))
        sent, received = bits[wire.CapabilityGroup.SG], bits[wire.CapabilityGroup.L4RO]
        grant = NicGrant(
            [name for bit, name in wire.OFFLOADS.items() if bit in sent],
            [name for bit, name in wire.OFFLOADS.items() if bit in received],
            is_scattered=wire.Capability.SG in sent,
            is_merged=wire.Capability.SG in received,
        )
        return Granted(grant, has_pool=wire.Capability.PMTD in sent)

    async def _share_events(self, opened: OpenDevice, nic: VenetNic) -> None:
        """Show the host where to keep the carrier; one that does not grant it goes on telling the bus."""
        wanted = wire.NEGCAP.pack(wire.CapabilityGroup.EVENTQ, wire.EventCapability.LINKSTATE)
        (granted,) = wire.NEGCAP_ANSWER.unpack(await opened.call(wire.Function.NEGCAP, wanted))
        if not granted:
            return
        (region,) = wire.REGION_ID.unpack(await opened.call(wire.Function.EVQQUERY))
        memory = opened.device.memory
        nic.link_block = block = memory.allocate(wire.EVENTS_BYTES)
        memoryview(opened.device.ram.view(block.offset, block.length))[:] = bytes(block.length)
        nic.link_signal = await opened.shm(
            region, block.offset, block.length, priority=self._priority, signal_offset=wire.RING_SIGNAL_OFFSET
        )

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
        if layout.pool is not None:
            (region,) = wire.REGION_ID.unpack(await opened.call(wire.Function.PMTDQUERY))
            await opened.shm(region, *layout.pool)
        nic.connect(tx.kick_fd, tx.call_fd, rx.kick_fd, rx.call_fd)

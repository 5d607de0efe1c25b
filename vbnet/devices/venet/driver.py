"""The guest half of venet: ``Nic`` sends and receives Ethernet frames.

    nic.send([frame, frame])           # all of them, waiting for room if need be; gives the number sent
    for frame in nic.recv(32, 1.0):    # up to 32 that are there, or the first to come within a second
    frames = await nic.recv_async()    # the same in any asyncio program
    for view in nic.recv_views():      # without copying: memoryview(view), then view.release()
    with nic.claim(1500) as room:      # without copying: write into memoryview(room), sent at the end

One thread may send while another receives; two threads doing the same get BusyError. Who writes what: the guest owns
this memory; see ``rust/core/src/guest/venet.rs``. When the host or the device is gone every call raises PeerGone, also
those that wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Self

from vbnet._native import Venet, VenetLayout
from vbnet.devices.venet import wire
from vbnet.errors import BusyError, PeerGone, VbnetError
from vbnet.guestnode.memory import Block
from vbnet.guestnode.proxy import OpenDevice, ProxyDevice, SharedSignal
from vbnet.net.mac import MacAddress

__all__ = ["Nic", "VenetDriver"]

DEFAULT_SLOTS: Final = 256
"""Slots of each ring, unless the MTU is so large that fewer must do."""
_BUFFER_BYTES: Final = 1 << 20
"""What a ring's buffers should not exceed when nobody says how many slots there are to be."""
_SLOTS_MIN: Final = 16
DRAIN_S: Final = 0.5
"""How long a leaving guest waits for the host to take its last frames; an idle host needs some 50 µs."""
RAM_HEADER_BYTES: Final = 4096
"""What a layout counts for the header of guest RAM; its parts are aligned to it."""


def default_slots(mtu: int) -> int:
    """Slots of each ring for devices of this MTU: 256, or as many as fill a mebibyte, at least 16."""
    slots = DEFAULT_SLOTS
    while slots > _SLOTS_MIN and slots * mtu > _BUFFER_BYTES:
        slots //= 2
    return slots


class Nic(Venet):
    """A network card, ready to use. Made by :class:`VenetDriver`; ``guest.nic("eth0")`` gives it.

    ``send``, ``send_frame``, ``claim``, ``recv``, ``recv_frame``, ``recv_views`` and ``fileno`` are native; see
    ``vbnet/_native.pyi``. ``timeout`` is in seconds everywhere: None waits for as long as it takes, 0 not at all.

    Attributes:
        receive_signal: what the host raises when frames came; an interrupt controller may be bound to it.
        send_signal: what it raises when room came back.
        mac: this end's address.
        mtu: largest packet in bytes, Ethernet header not counted.
        name: as the host calls the interface, for instance ``"eth0"``.
    """

    mac: MacAddress
    mtu: int
    name: str
    receive_signal: SharedSignal
    send_signal: SharedSignal
    _opened: OpenDevice
    _block: Block

    def __new__(cls, opened: OpenDevice, block: Block, mac: MacAddress, mtu: int, slots: int) -> Self:
        """Format the rings in ``block`` of the guest's memory."""
        nic = super().__new__(cls, opened.device.ram, mtu, slots, slots, block.offset)
        nic.mac, nic.mtu, nic.name = mac, mtu, opened.device.name
        nic._opened, nic._block = opened, block
        return nic

    @property
    def is_link_up(self) -> bool:
        """The carrier, as the host last said."""
        return bool(self._opened.device.is_link_up)

    async def send_async(self, frames: Sequence[bytes], timeout: float | None = None) -> int:  # noqa: ASYNC109
        """Send all frames, waiting on the running event loop for room; gives the number sent within ``timeout``."""
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while (sent := sent + self.send(frames[sent:], 0)) < len(frames):
                    if self.arm_send():
                        await _readable(self.send_fileno())
        return sent

    async def recv_async(self, max: int = 32, timeout: float | None = None) -> list[bytes]:  # noqa: A002, ASYNC109
        """Receive up to ``max`` frames, waiting on the running event loop; an empty list when the time was up."""
        frames: list[bytes] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not (frames := self.recv(max, 0)):
                    if self.arm_receive():
                        await _readable(self.fileno())
        return frames

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Every frame, one at a time, until the device is gone."""
        while True:
            for frame in await self.recv_async():
                yield frame

    def serve(self, on_frames: Callable[[list[bytes]], object], budget: int = 64) -> Callable[[], None]:
        """Make what serves ``receive_signal`` at an interrupt controller: it hands frames on until there are none.

            await intc.bind(nic.receive_signal, nic.serve(on_frames))

        Args:
            on_frames: called with up to ``budget`` frames, on the thread that serves the signal's priority.
            budget: how many at a time, >= 1.
        """

        def drain() -> None:
            while True:
                frames = self.recv(budget, 0)
                if frames:
                    on_frames(frames)
                elif self.arm_receive():
                    return

        drain()
        return drain

    async def link_up(self) -> None:
        """Let frames through; raises ExistsError when they are let through already."""
        await self._opened.call(wire.Function.LINKUP)

    async def link_down(self) -> None:
        """Let none through until :meth:`link_up`."""
        await self._opened.call(wire.Function.LINKDOWN)

    async def flush_receive(self) -> None:
        """Have the host give every posted buffer back empty; they are posted again as they are received."""
        await self._opened.call(wire.Function.FLUSHRX)

    async def remove(self) -> None:
        """The device left, or the guest does: let the host take what was sent, then give the memory back."""
        if isinstance(self._opened.ended_by, PeerGone):
            self.abandon()
        else:
            await self._drain()
        await self._opened.close()
        with contextlib.suppress(BusyError):  # a thread is on its way out of a wait; its memory stays taken
            self.close()
            self._opened.device.memory.free(self._block)

    async def _drain(self) -> None:
        """Wait a moment for the host to take the last frames; nothing is lost that a living host had room for."""
        with contextlib.suppress(TimeoutError, VbnetError):
            async with asyncio.timeout(DRAIN_S):
                while self.pending():
                    if self.arm_send():
                        await _readable(self.send_fileno())


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

    async def probe(self, device: ProxyDevice) -> Nic:
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
            nic = Nic(opened, block, mac, mtu, slots)
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

    async def _share(self, opened: OpenDevice, nic: Nic) -> None:
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


async def _readable(fd: int) -> None:
    """Wait until ``fd`` is readable."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def settle() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, settle)
    try:
        await ready
    finally:
        loop.remove_reader(fd)

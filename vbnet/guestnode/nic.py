"""A guest's network card, whatever its model: ``Nic`` sends and receives Ethernet frames.

    nic.send([frame, frame])           # all of them, waiting for room if need be; gives the number sent
    for frame in nic.recv(32, 1.0):    # up to 32 that are there, or the first to come within a second
    frames = await nic.recv_async()    # the same in any asyncio program
    for view in nic.recv_views():      # without copying: memoryview(view), then view.release()
    with nic.claim(1500) as room:      # without copying: write into memoryview(room), sent at the end

    nic.send_pieces([head, body])      # one frame that lies in several pieces; REQUEST says what is left to be done
    for frame, request in nic.recv_requests():  # the same from the other end

One thread may send while another receives; two threads doing the same get BusyError. Which model it is, a program need
not know: each is a class of its device's ``driver.py``, made of :class:`Nic` and its native half. Who writes what: the
guest owns this memory; see ``rust/core/src/guest/nic.rs``. When the host or the device is gone every call raises
PeerGone, also those that wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Protocol

from vbnet._native import NicDriver
from vbnet.errors import BusyError, PeerGone, VbnetError
from vbnet.guestnode.driver import Driver
from vbnet.guestnode.memory import Block
from vbnet.guestnode.proxy import OpenDevice, SharedSignal
from vbnet.net.mac import MacAddress

__all__ = ["Nic", "NicDriverClass", "default_slots"]

DEFAULT_SLOTS: Final = 256
"""Slots of each queue, unless the MTU is so large that fewer must do."""
_BUFFER_BYTES: Final = 1 << 20
"""What a queue's buffers should not exceed when nobody says how many slots there are to be."""
_SLOTS_MIN: Final = 16
DRAIN_S: Final = 0.5
"""How long a leaving guest waits for the host to take its last frames; an idle host needs some 50 µs."""


def default_slots(mtu: int) -> int:
    """Slots of each queue for devices of this MTU: 256, or as many as fill a mebibyte, at least 16."""
    slots = DEFAULT_SLOTS
    while slots > _SLOTS_MIN and slots * mtu > _BUFFER_BYTES:
        slots //= 2
    return slots


class NicDriverClass(Protocol):
    """What a model's driver class is, so that a lab can give it little memory, or much."""

    def __call__(self, slots: int | None = None) -> Driver:
        """A driver whose queues have so many slots; None chooses by the MTU."""

    def ram_bytes(self, mtu: int, slots: int) -> int:
        """Bytes of a guest's memory that holds one such card and nothing else."""


class Nic(NicDriver):
    """A network card, ready to use. Made by its model's driver; ``guest.nic("eth0")`` gives it.

    ``send``, ``send_frame``, ``claim``, ``recv``, ``recv_frame``, ``recv_views`` and ``fileno`` are native; see
    ``vbnet/_native.pyi``. ``timeout`` is in seconds everywhere: None waits for as long as it takes, 0 not at all.

    Where the model's driver was registered with ``offloads=True``, and the host agreed, a frame may be longer than the
    MTU and lack its checksum, each way: ``grant`` says what was agreed on. ``send_pieces(pieces, request)`` sends one
    frame that lies in several pieces. Pieces in the guest's own memory are sent from where they lie, and must stay as
    they are until ``pending()`` gives 0; all others are copied. ``request``, packed by ``vbnet.net.offload.REQUEST``,
    says what is left to be done. ``recv_requests`` gives pairs of a frame and its request, empty when nothing is left;
    ``recv`` gives the frames alone, and ``recv_views`` cannot be used. Without a grant pieces are put together, and
    requests refused.

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

    def belong(self, opened: OpenDevice, block: Block, mac: MacAddress, mtu: int) -> None:
        """Note what it is the card of, and which part of the guest's memory it has: for the driver that makes it."""
        self.mac, self.mtu, self.name = mac, mtu, opened.device.name
        self._opened, self._block = opened, block

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

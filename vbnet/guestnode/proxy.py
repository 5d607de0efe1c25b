"""Devices as a guest has them: seen (ProxyDevice) and opened (OpenDevice).

Neither knows what carries its requests: in a guest process that is the session, in a driver author's tests the device
itself, in the same process.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, Self

from vbnet.errors import ClosedError, PeerGone, VbnetError
from vbnet.guestnode.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vbnet._native import FastSlot
    from vbnet.guestnode.driver import DriverInstance
    from vbnet.sharedmem import Ram

__all__ = ["Carrier", "FastSlots", "OpenDevice", "ProxyDevice", "RegionSpec", "SharedSignal", "nothing_but_calls"]


_SERIAL_SHIFT: Final = 32
"""The upper half of a handle is its serial."""


@dataclass(frozen=True, slots=True)
class SharedSignal:
    """The guest's ends of a signal. Owned by the OpenDevice that shared the region; closed with it.

    Attributes:
        handle: its number, for a kick by message.
        kick_fd: write 8 bytes to wake the device.
        call_fd: readable when the device wants the guest.
    """

    handle: int
    kick_fd: int
    call_fd: int

    def close(self) -> None:
        """Close both descriptors."""
        os.close(self.kick_fd)
        os.close(self.call_fd)


class FastSlots:
    """Fastcall slots for native code that calls one open device by itself.

    Args:
        device: the number by which the slots name it.
        slots: the slots, each for one thread at a time.
        free: where they go when they are given back.
    """

    def __init__(self, device: int, slots: Sequence[FastSlot], free: Callable[[FastSlot], object]) -> None:
        self.device = device
        self.slots = tuple(slots)
        self._free = free

    def give_back(self) -> None:
        """Nobody calls through them any more: others may."""
        slots, self.slots = self.slots, ()
        for slot in slots:
            self._free(slot)


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """What ``OpenDevice.shm`` was asked for; the fields are its arguments."""

    id: int
    offset: int
    length: int
    flags: int
    priority: int
    signal_offset: int


class Carrier(Protocol):
    """What carries a device's requests to the host half."""

    memory: Memory

    @property
    def ram(self) -> Ram:
        """The guest's memory."""

    async def open_device(self, dev_id: int, version: int) -> int:
        """Open; gives the handle."""

    async def call_device(self, handle: int, function: int, data: bytes, deadline_s: float | None) -> bytes:
        """Run a function of the device."""

    def fastcall_device(self, handle: int, function: int, data: bytes, deadline_s: float | None) -> bytes:
        """Run a function of the device and wait for it, in whichever thread this is."""

    async def fast_slots(self, handle: int, count: int) -> FastSlots | None:
        """Fastcall slots for native code that calls this open device; None: there are not that many."""

    async def share(self, handle: int, region: RegionSpec) -> SharedSignal | None:
        """Show a region; gives the guest's ends of its signal."""

    async def close_device(self, handle: int) -> None:
        """Close a handle; when it returns, no region of it is in use."""

    async def give_fd(self, ticket: int, fd: int) -> None:
        """Hand the host a descriptor that the device takes by ``ticket``."""

    def new_ticket(self) -> int:
        """A ticket under which nothing was given yet."""

    async def take_fd(self, ticket: int, deadline_s: float | None) -> int:
        """Take a descriptor that the host lent under ``ticket``."""


class ProxyDevice:
    """A device on the guest's bus.

    Attributes:
        dev_id: its number on this bus, never given again.
        abi_type: what drivers match.
        name: as the device calls this interface, for instance ``"eth0"``.
        is_present: False once it left the bus.
        is_link_up: the carrier as the host last said, None if it never did.
        on_link: called with that whenever the host says it; for the driver to set, on the guest's event loop.
        instance: the driver at work on it, or None.
        probe_error: what the driver's ``probe`` raised, or None.
    """

    def __init__(self, carrier: Carrier, dev_id: int, abi_type: str, name: str) -> None:
        self._carrier = carrier
        self.dev_id = dev_id
        self.abi_type = abi_type
        self.name = name
        self.is_present = True
        self.is_link_up: bool | None = None
        self.on_link: Callable[[bool], object] | None = None
        self.instance: DriverInstance | None = None
        self.probe_error: BaseException | None = None
        self._opens: list[OpenDevice] = []

    def __repr__(self) -> str:
        return f"<device {self.dev_id} {self.name} ({self.abi_type}){'' if self.is_present else ', gone'}>"

    @property
    def ram(self) -> Ram:
        """The guest's memory; raises UsageError when the guest joined without any."""
        return self._carrier.ram

    @property
    def memory(self) -> Memory:
        """Who uses which part of it."""
        return self._carrier.memory

    async def open(self, version: int = 1) -> OpenDevice:
        """Connect with this version of the device's ABI.

        Raises:
            PeerGone: it left the bus, or the host ended. UsageError: not this version.
            BusyError: it lets in one at a time. UnsupportedError: not from this machine.
        """
        if not self.is_present:
            raise PeerGone(f"device {self.name!r} left the bus", dev_id=self.dev_id)
        handle = await self._carrier.open_device(self.dev_id, version)
        opened = OpenDevice(self, self._carrier, handle)
        self._opens.append(opened)
        return opened

    async def give_fd(self, ticket: int, fd: int) -> None:
        """Hand the host a descriptor for this device to take; ``fd`` stays the caller's.

        Args:
            ticket: 0..2⁶⁴-1, told to the device by one of its calls.
            fd: what to hand over.
        """
        await self._carrier.give_fd(ticket, fd)

    async def give_new_fd(self, fd: int) -> int:
        """Hand the host a descriptor under a new ticket, and give the ticket; ``fd`` stays the caller's."""
        ticket = self._carrier.new_ticket()
        await self._carrier.give_fd(ticket, fd)
        return ticket

    async def take_fd(self, ticket: int, *, deadline_s: float | None = None) -> int:
        """Take a descriptor that this device lent; the caller owns and closes it.

        Args:
            ticket: as the device told it.
            deadline_s: how long to wait for it to arrive; None: as the node was made.

        Raises:
            DeadlineError: nothing came under this ticket. BusyError: somebody else waits for it.
            PeerGone: the host ended. UnsupportedError: it is on another machine.
        """
        return await self._carrier.take_fd(ticket, deadline_s)

    def link_changed(self, *, is_up: bool) -> None:
        """The host said how the carrier is."""
        self.is_link_up = is_up
        if self.on_link is not None:
            self.on_link(is_up)

    def forget(self, opened: OpenDevice) -> None:
        """An open of this device was closed."""
        if opened in self._opens:
            self._opens.remove(opened)

    def void(self, reason: VbnetError) -> None:
        """It left: every later use of it or its opens raises ``reason``. Descriptors live until each open is closed."""
        self.is_present = False
        for opened in self._opens:
            opened.void(reason)


def nothing_but_calls(opened: Any, name: str) -> AttributeError:  # noqa: ANN401 - an open device, or what stands for one
    """The error for whoever looks for a driver's methods at a device that was only opened.

    Args:
        opened: the open device; its ``device`` has the name.
        name: what it does not have.
    """
    text = f"{type(opened).__name__!r} object has no attribute {name!r}"
    if not name.startswith("_"):
        text += (
            f": it takes calls and regions only; close it, and bind({opened.device.name!r}) gives a driver's methods"
        )
    return AttributeError(text, name=name, obj=opened)


class OpenDevice:
    """One open of a device; also an async context manager.

    Attributes:
        device: what was opened.
    """

    def __init__(self, device: ProxyDevice, carrier: Carrier, handle: int) -> None:
        self.device = device
        self._carrier = carrier
        self._handle = handle
        self._signals: list[SharedSignal] = []
        self._void: VbnetError | None = None
        self._is_closed = False

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            """Say where to find what an open device does not have, such as ``read``."""
            raise nothing_but_calls(self, name)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    @property
    def serial(self) -> int:
        """The number by which fastcall slots name it, unique among this guest's opens."""
        return self._handle >> _SERIAL_SHIFT

    @property
    def ended_by(self) -> VbnetError | None:
        """Why the host half is gone: PeerGone, or ClosedError when the guest itself left; None while it is there."""
        return self._void

    async def call(self, function: int, data: bytes = b"", *, deadline_s: float | None = None) -> bytes:
        """Run a function of the device.

        Args:
            function: its number, by the device's ABI.
            data: its argument.
            deadline_s: how long to wait; None: as the node was made.

        Raises:
            PeerGone: device or host are gone. DeadlineError: no answer. ClosedError: closed here.
            VbnetError: whatever the device refuses with.
        """
        self._check()
        return await self._carrier.call_device(self._handle, function, bytes(data), deadline_s)

    def fastcall(self, function: int, data: bytes = b"", *, deadline_s: float | None = None) -> bytes:
        """Run a function of the device and wait for its answer here, in whichever thread this is.

        With a ``fastcall`` device on the bus, and a device that has a fast handler, that handler answers, and the call
        goes through shared memory: no message, and no system call while both sides are awake. Otherwise, and for more
        than 368 bytes, it is an ordinary call that the thread waits for. On the event loop's own thread the loop stands
        still meanwhile, so that it hears of the host's end only when the deadline has passed.

        Args:
            function: its number, by the device's ABI.
            data: its argument.
            deadline_s: how long to wait; None: as the node was made.

        Raises:
            UsageError: on the event loop's own thread, and the call must go the ordinary way: ``await call()`` instead.
            PeerGone: device or host are gone. DeadlineError: no answer. ClosedError: closed here.
            VbnetError: whatever the device refuses with.
        """
        self._check()
        return self._carrier.fastcall_device(self._handle, function, bytes(data), deadline_s)

    async def fast_slots(self, count: int) -> FastSlots | None:
        """Fastcall slots for native code that calls this device by itself, as trapping registers want it.

        They are the caller's until it gives them back. None: the bus has no ``fastcall`` device, or too few slots are
        left; make ordinary fastcalls instead.

        Args:
            count: how many, one for each thread.

        Raises:
            PeerGone: device or host are gone. ClosedError: closed here.
        """
        self._check()
        return await self._carrier.fast_slots(self._handle, count)

    async def shm(
        self,
        id: int,  # noqa: A002 - the word of the wire
        offset: int,
        length: int,
        *,
        flags: int = 0,
        priority: int = 0,
        signal_offset: int = -1,
    ) -> SharedSignal | None:
        """Show a region of the guest's memory to the device.

        Args:
            id: what the region is for, by the device's ABI.
            offset: of the region in the guest's memory, bytes.
            length: bytes, >= 1.
            flags: by the device's ABI.
            priority: 0..7, 7 the most urgent.
            signal_offset: of the doorbell words in the region, a multiple of 4; -1 for none.

        Returns:
            The guest's ends of the signal, or None without one.

        Raises:
            UnsupportedError: from another machine. UsageError: bounds. ResourceError: over the quota.
        """
        self._check()
        region = RegionSpec(id, offset, length, flags, priority, signal_offset)
        signal = await self._carrier.share(self._handle, region)
        if signal is not None:
            self._signals.append(signal)
        return signal

    async def close(self) -> None:
        """End the connection; when it returns the device uses no region of it, and its signals are closed.

        That the other side is gone already is no error here.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self.device.forget(self)
        try:
            if self._void is None:
                with contextlib.suppress(PeerGone, ClosedError):
                    await self._carrier.close_device(self._handle)
        finally:
            for signal in self._signals:
                signal.close()
            self._signals.clear()

    def void(self, reason: VbnetError) -> None:
        """The host half is gone: calls raise ``reason`` from now on."""
        self._void = reason

    def _check(self) -> None:
        if self._is_closed:
            raise ClosedError(f"this open of {self.device.name!r} is closed")
        if self._void is not None:
            raise self._void

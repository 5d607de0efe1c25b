"""A guest for plain functions: no asyncio in sight.

    with vbnet.Guest("app") as guest:
        echo = guest.open("echo0")
        print(echo.call(1, b"hello"))
        nic = guest.nic("eth0")
        disk = guest.disk("disk0")  # or guest.open("disk0"): a file

The bus runs in a thread of its own; every method waits until it is done or its deadline has passed. What a driver
offers as a coroutine, ``guest.run`` awaits there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from vbnet.bus.closing import Closing
from vbnet.bus.limits import DEFAULT_RAM_BYTES, REQUEST_DEADLINE_S
from vbnet.bus.link import Address, Secrets
from vbnet.bus.loopthread import LoopThread
from vbnet.errors import DeadlineError, VbnetError
from vbnet.guestnode.driver import Driver
from vbnet.guestnode.node import GuestNode, GuestSession
from vbnet.guestnode.proxy import OpenDevice, ProxyDevice, SharedSignal, nothing_but_calls

if TYPE_CHECKING:
    from vbnet.sharedmem.programs import ProgramCounters

__all__ = ["Guest", "SyncOpenDevice"]

T = TypeVar("T")


class Guest(Closing):
    """One guest on a bus; a context manager.

    Args:
        name: of the guest, unique on the host.
        bus: its name; None makes a private one.
        address: the host node: its run directory, ``tcp://HOST:PORT``, or None for this user's default one.
        ram_bytes: memory to share with devices; 0 for none.
        kind: a word for lists.
        secrets: keys, for tcp.
        deadline_s: how long each request may take unless it says otherwise.

    Raises:
        What ``GuestNode.connect`` and ``GuestNode.join`` raise.
    """

    def __init__(
        self,
        name: str,
        bus: str | None = None,
        *,
        address: Address = None,
        ram_bytes: int = DEFAULT_RAM_BYTES,
        kind: str = "python",
        secrets: Secrets | None = None,
        deadline_s: float = REQUEST_DEADLINE_S,
    ) -> None:
        self._thread = LoopThread(f"vbnet-{name}")
        try:
            self._node = self._thread.run(GuestNode.connect(address, name, secrets=secrets, deadline_s=deadline_s))
            try:
                self._session = self._thread.run(self._node.join(name, bus, ram_bytes=ram_bytes, kind=kind))
            except BaseException:
                self._thread.run(self._node.close())
                raise
        except BaseException:
            self._thread.close()
            raise

    @property
    def session(self) -> GuestSession:
        """The asyncio guest behind this one; use it only on its own loop."""
        return self._session

    @property
    def name(self) -> str:
        """Of the guest."""
        return self._session.name

    @property
    def bus(self) -> str:
        """The bus it is on."""
        return self._session.bus

    @property
    def devices(self) -> list[ProxyDevice]:
        """Everything on its bus now; look, but open with ``open``."""

        async def look() -> list[ProxyDevice]:
            return self._session.devices

        return self._thread.run(look())

    def register(self, driver: Driver) -> None:
        """Drive every device of the driver's ABI type, those here and those to come."""

        async def register() -> None:
            self._session.register(driver)

        self._thread.run(register())

    def wait_device(self, name_or_type: str, timeout: float | None = None) -> ProxyDevice:
        """The first device with this name or ABI type, now or when it comes; raises DeadlineError."""
        return self._thread.run(self._session.wait_device(name_or_type, timeout))

    def open(self, name_or_type: str, version: int = 1, *, timeout: float | None = None) -> Any:  # noqa: ANN401
        """Wait for a device and connect to it: a ``SyncOpenDevice``, to speak its ABI; a disk is opened as a file."""
        opened = self._thread.run(self._session.open(name_or_type, version, timeout))
        return SyncOpenDevice(self._thread, opened) if isinstance(opened, OpenDevice) else opened

    def bind(self, name_or_type: str, timeout: float | None = None) -> Any:  # noqa: ANN401 - the driver's own class
        """A device's driver at work; waits for the device, loads a driver if none is registered."""
        return self._thread.run(self._session.bind(name_or_type, timeout))

    def run(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Await something of a driver or session, which live on the bus's loop, and give its result.

            intc = guest.bind("intc0")
            tick = guest.run(intc.create("tick", on_tick, priority=5))

        Args:
            work: the coroutine.
            timeout: seconds it may take; None: as long as its own deadlines let it.

        Raises:
            DeadlineError: it took longer, and was cancelled. ClosedError: this guest is closed.
            UsageError: called by a coroutine of the bus's own loop, which would wait for itself.
            Whatever ``work`` raises.
        """
        return self._thread.run(_limited(work, timeout))

    def nic(self, name: str | None = None, timeout: float | None = None) -> Any:  # noqa: ANN401
        """The network interface ``name``, ready to send and receive."""
        return self._thread.run(self._session.nic(name, timeout))

    def disk(self, name: str = "virtio:2", timeout: float | None = None) -> Any:  # noqa: ANN401
        """The disk ``name`` as a file: ``read``, ``write``, ``seek``, ``flush``, ``discard``."""
        return self._thread.run(self._session.disk(name, timeout))

    @property
    def counters(self) -> ProgramCounters:
        """What the program in this guest counts, for the host's exporter: see ``GuestSession.counters``."""
        return self._session.counters

    def list_devices(self) -> list[tuple[int, str, str]]:
        """Ask the host what is on the bus: dev-id, ABI type and name of each."""
        return self._thread.run(self._session.list_devices())

    def reset(self) -> None:
        """Start again on the same connection."""
        self._thread.run(self._session.reset())

    def close(self) -> None:
        """Leave the bus; harmless when closed already."""
        if self._thread.is_open:
            try:
                self._thread.run(self._node.close())
            finally:
                self._thread.close()


async def _limited(work: Coroutine[Any, Any, T], timeout: float | None) -> T:  # noqa: ASYNC109 - a caller's, handed on
    try:
        async with asyncio.timeout(timeout):
            return await work
    except TimeoutError as error:
        if isinstance(error, VbnetError):
            raise
        raise DeadlineError(f"not done within {timeout:g} s; it was cancelled", deadline_s=timeout) from error


class SyncOpenDevice(Closing):
    """An open device for plain functions; a context manager. Made by ``Guest.open``."""

    def __init__(self, thread: LoopThread, opened: OpenDevice) -> None:
        self._thread = thread
        self._opened = opened

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            """Say where to find what an open device does not have, such as ``read``."""
            raise nothing_but_calls(self, name)

    @property
    def device(self) -> ProxyDevice:
        """What was opened."""
        return self._opened.device

    def call(self, function: int, data: bytes = b"", *, deadline_s: float | None = None) -> bytes:
        """See ``OpenDevice.call``."""
        return self._thread.run(self._opened.call(function, data, deadline_s=deadline_s))

    def fastcall(self, function: int, data: bytes = b"", *, deadline_s: float | None = None) -> bytes:
        """See ``OpenDevice.fastcall``; never on the loop's own thread."""
        return self._opened.fastcall(function, data, deadline_s=deadline_s)

    def shm(
        self,
        id: int,  # noqa: A002 - the word of the wire
        offset: int,
        length: int,
        *,
        flags: int = 0,
        priority: int = 0,
        signal_offset: int = -1,
    ) -> SharedSignal | None:
        """See ``OpenDevice.shm``."""
        return self._thread.run(
            self._opened.shm(id, offset, length, flags=flags, priority=priority, signal_offset=signal_offset)
        )

    def close(self) -> None:
        """End the connection; harmless when closed already, or when the guest is."""
        if self._thread.is_open:
            self._thread.run(self._opened.close())

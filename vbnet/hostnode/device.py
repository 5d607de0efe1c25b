"""What the author of a device implements on the host.

    DeviceClass ── create() ──> Device ── plug(bus) ──> Interface… ── connect(opener, version) ──> Connection

A *device* exists once and may be plugged into many buses; each plug shows interfaces; each open of an interface
makes a *connection*, which answers calls and is shown regions of the guest's memory. The host checks names,
versions, exclusivity, handles, quotas and bounds before any of these methods is called, and calls them on its event
loop: none may block for longer than about a millisecond. Nothing here may trust what is in a guest's memory.

A method that refuses raises a class of ``vbnet.errors``; any other exception is a bug of the device: it is logged and
the guest is refused with EIO, while everyone else goes on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from vbnet.clock import Clock
from vbnet.errors import BusyError, NotFoundError, PeerFault, UnsupportedError, UsageError
from vbnet.hostnode.fabric import Fabric
from vbnet.hostnode.portfaults import PortFaults
from vbnet.hostnode.rows import Row, open_row
from vbnet.hostnode.signals import SignalBook
from vbnet.metric import MetricBlock

if TYPE_CHECKING:
    from vbnet._native import FastHandler
    from vbnet.hostnode.fastcalls import Fastcalls
    from vbnet.sharedmem import Ram

__all__ = [
    "Attribute",
    "AttributeTable",
    "Connection",
    "Device",
    "DeviceClass",
    "Fast",
    "HostServices",
    "Interface",
    "Log",
    "OneBusDevice",
    "Opener",
    "SharedRegion",
    "SignalEnds",
]

T = TypeVar("T")
Fast: TypeAlias = "FastHandler | Callable[[int, bytes], bytes]"
"""What answers fastcalls: see ``Connection.fast``."""


class Log(Protocol):
    """Where a device writes what an operator should read; structlog's loggers fit."""

    def debug(self, event: str, **fields: Any) -> Any:  # noqa: ANN401 - a logger's shape
        """Write for whoever is debugging."""

    def info(self, event: str, **fields: Any) -> Any:  # noqa: ANN401
        """Write what happened."""

    def warning(self, event: str, **fields: Any) -> Any:  # noqa: ANN401
        """Write what should not have happened."""

    def error(self, event: str, **fields: Any) -> Any:  # noqa: ANN401
        """Write what someone must look into."""

    def exception(self, event: str, **fields: Any) -> Any:  # noqa: ANN401
        """Write what someone must look into, with the exception being handled."""


@dataclass(frozen=True, slots=True)
class HostServices:
    """What the host lends to its devices.

    Attributes:
        clock: the only source of time.
        log: bound to the host node.
        publish: ``publish(topic, **fields)`` tells an event to everyone who subscribed, and to the history.
        fabric: switches and ports; None when this host runs without them.
        counters: the host's counter file; None when this host runs without one.
        signals: lines, their routes and grants, and guests' interrupt controllers.
        fastcalls: answers calls through shared memory; None on a bench without a host.
        refused: ``refused(door, whose, error)`` takes note of a refusal; for the host's own desks.
        port_faults: what was told last about each port.
    """

    clock: Clock
    log: Log
    publish: Callable[..., None]
    fabric: Fabric | None = None
    counters: Any = None
    signals: SignalBook = field(default_factory=SignalBook)
    fastcalls: Fastcalls | None = None
    refused: Callable[[str, str, Exception], None] = lambda _door, _whose, _error: None
    port_faults: PortFaults = field(default_factory=PortFaults)

    def row(self, block: MetricBlock, **labels: str) -> Row:
        """A row of counters that a device writes from Python; the device closes it when it is released.

        Args:
            block: its declaration, from the kind's ``metrics.py``.
            labels: whose it is: a value for each of the block's labels.
        """
        return open_row(block, labels, self.counters)

    def need_fabric(self) -> Fabric:
        """The fabric.

        Raises:
            UsageError: this host node was started without one.
        """
        if self.fabric is None:
            raise UsageError("this host node was started without a switch fabric")
        return self.fabric


# ---- attributes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attribute(Generic[T]):
    """One typed attribute of a device, set and shown as text.

    Args:
        name: lower case, as the operator writes it.
        help: one sentence.
        parse: text → value; raises UsageError or ValueError for text that is none.
        default: value until it is set.
        format: value → text; ``parse(format(v)) == v``.
        is_read_only: only the device changes it.
        is_locked_while_open: refused while any guest has the device open.
    """

    name: str
    help: str
    parse: Callable[[str], T]
    default: T
    format: Callable[[T], str] = str
    is_read_only: bool = False
    is_locked_while_open: bool = False


class AttributeTable:
    """The attributes of one device, with their values.

    Args:
        declared: the attributes, in the order they are shown.
        on_change: called with name and new value after an operator's change; raises to refuse it.
    """

    def __init__(
        self, declared: Iterable[Attribute[Any]] = (), on_change: Callable[[str, Any], None] | None = None
    ) -> None:
        self._declared = {attribute.name: attribute for attribute in declared}
        self._values: dict[str, Any] = {name: attribute.default for name, attribute in self._declared.items()}
        self._on_change = on_change

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - the declaration knows the type
        """The typed value of an attribute; raises NotFoundError."""
        return self._values[self.declaration(name).name]

    def declaration(self, name: str) -> Attribute[Any]:
        """How an attribute was declared.

        Raises:
            NotFoundError: the device has none of this name.
        """
        try:
            return self._declared[name]
        except KeyError:
            known = ", ".join(self._declared) or "none"
            raise NotFoundError(f"no attribute {name!r}; there are: {known}", attribute=name) from None

    def publish(self, name: str, value: object) -> None:
        """Change a value from the device's side, read-only or not, without ``on_change``."""
        self._values[self.declaration(name).name] = value

    def set_text(self, name: str, text: str, *, is_open: bool) -> None:
        """Change a value from the operator's side.

        Args:
            name: of the attribute.
            text: what the operator wrote.
            is_open: whether any guest has the device open.

        Raises:
            NotFoundError: no such attribute.
            UsageError: read-only, or the text is no value of its type.
            BusyError: locked while open.
        """
        attribute = self.declaration(name)
        if attribute.is_read_only:
            raise UsageError(f"attribute {name!r} is read-only", attribute=name)
        if attribute.is_locked_while_open and is_open:
            raise BusyError(f"attribute {name!r} cannot change while a guest has the device open", attribute=name)
        try:
            value = attribute.parse(text)
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"{text!r} is no value for {name!r}: {error}", attribute=name, got=text) from error
        before = self._values[name]
        self._values[name] = value
        if self._on_change is not None:
            try:
                self._on_change(name, value)
            except BaseException:
                self._values[name] = before
                raise

    def texts(self) -> dict[str, str]:
        """Every attribute as the operator sees it."""
        return {name: attribute.format(self._values[name]) for name, attribute in self._declared.items()}


# ---- what a connection is given ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SignalEnds:
    """The two eventfds of a signal; the host's session owns and closes them, after ``Connection.close``.

    The guest shares both open files and can make any write to them block: a device rings with ``Opener.ring``, or gives
    the descriptors to the fabric, and never writes to them itself.

    Attributes:
        kick_fd: the guest rings, the device waits.
        call_fd: the device rings, the guest waits.
    """

    kick_fd: int
    call_fd: int


@dataclass(frozen=True, slots=True)
class SharedRegion:
    """Memory the guest shows to a device: bounds are checked, the contents are not.

    Attributes:
        id: what the region is for, by the device's own ABI.
        ram: the guest's memory; lives at least until ``Connection.close`` returned.
        offset: of the region in ``ram``, bytes.
        length: bytes, >= 1; ``offset + length <= ram.size``.
        flags: by the device's own ABI.
        priority: 0..7, 7 the most urgent.
        cookie: the guest's own token.
        signal_offset: of the doorbell words in the region, or None.
        signal: the doorbell's descriptors, or None.
    """

    id: int
    ram: Ram
    offset: int
    length: int
    flags: int
    priority: int
    cookie: int
    signal_offset: int | None = None
    signal: SignalEnds | None = None

    def signal_at(self, offset: int) -> SignalEnds:
        """The signal, which by the device's ABI has its doorbell words at ``offset`` in the region.

        Raises:
            UsageError: it has none, or has it elsewhere; the guest's fault.
        """
        if self.signal is None or self.signal_offset != offset:
            raise UsageError(
                f"region {self.id} carries its signal at {offset:#x}; got {self.signal_offset}",
                got=self.signal_offset,
                limit=offset,
            )
        return self.signal


class Opener(ABC):
    """Who opened an interface, and what the device may ask of them."""

    guest: str
    bus: str
    pid: int
    uid: int
    dev_id: int
    is_remote: bool
    ram: Ram | None

    @abstractmethod
    def take_fd(self, ticket: int) -> int:
        """Take a descriptor the guest gave under ``ticket``; the caller owns and closes it.

        Raises:
            NotFoundError: nothing was given under it, or it was taken.
        """

    @abstractmethod
    def lend_fd(self, fd: int) -> int:
        """Hand the guest a descriptor, and so whatever it refers to, for as long as the guest likes.

        It cannot be taken back: lend what may outlive the connection, and no right that the guest should not have.

        Args:
            fd: what to lend; stays the caller's, who may close it at once.

        Returns:
            The ticket by which the guest takes it, 1..2⁶⁴-1; the device tells it, for instance as a call's answer.

        Raises:
            UnsupportedError: the guest is on another machine. PeerGone: it ended.
            ResourceError: it does not read what it is sent, or this process has no descriptor left.
        """

    @abstractmethod
    def link_state(self, *, is_up: bool) -> None:
        """Tell the guest that the carrier of this device went up or down."""

    @abstractmethod
    def ring(self, signal: SignalEnds) -> None:
        """Wake the guest that waits on ``signal.call_fd``: soon, and without ever blocking.

        Several rings may become one. When the guest made its doorbell block, ``fault`` is called with the rule
        ``doorbell_blocked``, and none of its signals is rung any more, nor is one whose connection was closed.

        Args:
            signal: of a region that this opener's connection was shown.

        Raises:
            ResourceError: the machine has no thread or descriptor left for it.
        """

    @abstractmethod
    def line(self, signal: SignalEnds) -> int:
        """The line that calls the guest for ``signal``: what native code raises, and what may be routed elsewhere.

        It leads to ``signal.call_fd`` at first, has the region's priority, and ends with it; ``ring`` raises it.

        Args:
            signal: of a region that this opener's connection was shown.

        Raises:
            ResourceError: the machine has no thread, descriptor or room for it left.
        """

    @abstractmethod
    def signal_of(self, handle: int) -> SignalEnds:
        """The signal that the guest knows by ``handle``, whichever of its devices it belongs to.

        Raises:
            NotFoundError: this guest has none of that number.
        """

    @abstractmethod
    def fault(self, fault: PeerFault) -> None:
        """Report a rule this guest broke: it is counted, logged, published. Quarantine is the device's own to do."""

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Within, what is found wrong with the guest's memory is reported as its fault, and refused."""
        try:
            yield
        except PeerFault as fault:
            self.fault(fault)
            raise


class Connection(ABC):
    """One opener's use of one interface.

    Attributes:
        fast: answers ``OpenDevice.fastcall`` for as long as this is open; None: such calls come to ``call``. Called
            with function and data, it gives the answer, at most 368 bytes, or raises as ``call`` does. It runs on
            another thread than everything else here, must take no longer than some microseconds, and must not wait
            for the event loop. Set it before ``Interface.connect`` returns.
    """

    fast: Fast | None = None

    def call(self, function: int, data: bytes) -> bytes:
        """Run a function of the device's ABI.

        Args:
            function: its number, 0..2³²-1.
            data: at most ``Limits.call_bytes``, not validated.

        Raises:
            UsageError: no such function, or the data does not fit it (the guest's mistake).
        """
        raise UsageError(f"no function {function} ({len(data)} bytes given)", function=function)

    def shm(self, region: SharedRegion) -> None:
        """Take a region into use.

        Raises:
            UsageError: the ABI has no such region, or its length is wrong (the guest's mistake).
        """
        raise UsageError(f"no region {region.id}", region=region.id)

    @abstractmethod
    def close(self) -> None:
        """Let go of every region; memory and descriptors vanish when this returns. Called exactly once."""


class Interface(ABC):
    """What a guest sees on its bus and can open.

    Attributes:
        name: as the guest sees it, for instance ``"eth0"``.
        abi_type: what a driver matches, for instance ``"virtual-ethernet"``.
        versions: of the ABI that can be opened.
        exclusive: whether a second open is refused as busy while the first lasts.
        needs_memory: whether nothing can be done with it without memory or descriptors of the guest; guests of other
            machines are then refused before they hold it.
    """

    name: str
    abi_type: str
    versions: Sequence[int] = (1,)
    exclusive: bool = True
    needs_memory: bool = False

    @abstractmethod
    def connect(self, opener: Opener, version: int) -> Connection:
        """Let ``opener`` use it with ABI ``version``, one of ``versions``.

        Raises:
            BusyError: not now. NotPermittedError: not for this opener.
        """


class Device(ABC):
    """One device: made by the operator, alive until deleted."""

    attributes: AttributeTable

    @abstractmethod
    def plug(self, bus: str) -> Sequence[Interface]:
        """Give the interfaces to show on ``bus``, at least one.

        Raises:
            BusyError: not on another bus (a device for one bus only). Whatever is raised, nothing is plugged.
        """

    def insert(self, fd: int, name: str, *, is_read_only: bool) -> None:
        """An operator puts an open file into this device, as a disk into a drive. Nobody has the device open.

        Args:
            fd: the file, which is closed when this returns; duplicate what is to be kept.
            name: of the file, for people.
            is_read_only: it is to be read only.

        Raises:
            UnsupportedError: devices of this class take no file. UsageError: not such a one.
        """
        raise UnsupportedError("devices of this class take no file", name=name, fd=fd, is_read_only=is_read_only)

    def unplug(self, bus: str) -> None:  # noqa: B027 - most devices have nothing to do
        """It was taken off ``bus``; all connections through that plug are closed already. Must not raise."""

    def release(self) -> None:  # noqa: B027
        """It was deleted; let go of everything. Must not raise."""


class OneBusDevice(Device):
    """A device that is on one bus at a time, with one interface, named after the last part of the device's name."""

    name: str
    why_one_bus: ClassVar[str]
    """What an operator is told who plugs it twice."""

    _bus: str | None = None

    @abstractmethod
    def interface(self) -> Interface:
        """Make what guests open."""

    def plug(self, bus: str) -> Sequence[Interface]:
        """Show one interface."""
        if self._bus is not None:
            raise BusyError(f"device {self.name!r} is plugged into {self._bus!r}; {self.why_one_bus}", bus=self._bus)
        self._bus = bus
        return [self.interface()]

    def unplug(self, bus: str) -> None:
        """It may be plugged elsewhere now."""
        if self._bus == bus:
            self._bus = None


class DeviceClass(ABC):
    """Makes devices of one class.

    Attributes:
        name: what the operator writes as ``type``.
        abi_types: what its devices show, for lists.
    """

    name: str
    abi_types: Sequence[str]

    @abstractmethod
    def create(self, services: HostServices, name: str) -> Device:
        """Make a device named ``name``."""

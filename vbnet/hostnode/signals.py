"""Signals of a host by name, and who may do what with them.

    device's region ──┐                                  ┌─▶ the region's own eventfd (as it begins)
    named by a guest ─┼─▶ line ── priority ── route ─────┼─▶ a vector of a guest's controller
    named by operator ┘                                  ├─▶ an eventfd in anybody's hands
                                                         └─▶ nowhere: latched

The lines themselves, and every raise, are native (``rust/core/src/signals``); this is the book of owners, names and
grants above them, used from the host's event loop alone. A guest acts on its own lines only, and raises another's only
with a grant; an operator may do everything. What a guest owns goes with its session.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from vbnet.errors import ExistsError, NotFoundError, NotPermittedError, ResourceError, UsageError, VbnetError

if TYPE_CHECKING:
    from vbnet._native import Apics, SchedCoordinator, Signals

__all__ = ["OPERATOR", "SignalBook", "Vector"]

OPERATOR: Final = ""
"""The owner of lines that no guest owns."""
_BY_HAND: Final = "signal"
"""What stands in place of the device for lines that come from none."""
_COUNTER_BYTES: Final = 1 << 20
_LINES_PER_GUEST: Final = 1 << 17


@dataclass(frozen=True, slots=True)
class Vector:
    """A place in a guest's controller: which guest, which of its vCPUs, which vector."""

    guest: str
    vcpu: int
    vector: int


@dataclass(slots=True)
class _Line:
    id: int
    owner: str
    name: str
    device: str
    on_blocked: Callable[[], None] | None = None
    granted: set[str] = field(default_factory=set)
    sources: dict[int, Callable[[int], None]] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}" if self.owner else self.name


class SignalBook:
    """Every signal of one host node.

    Args:
        counters: the host's counter file; None: the table makes one of its own.
        publish: ``publish(topic, **fields)`` tells whoever subscribed.
    """

    def __init__(self, counters: Any = None, publish: Callable[..., None] = lambda _topic, **_fields: None) -> None:  # noqa: ANN401 - native
        self._counters = counters
        self._publish = publish
        self._native: Signals | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lines: dict[int, _Line] = {}
        self._names: dict[str, int] = {}
        self._owned: dict[str, set[int]] = {}
        self._controllers: dict[str, int] = {}
        self._apics: dict[str, Apics] = {}
        self._boosters: dict[str, tuple[SchedCoordinator, int]] = {}
        self._event_lines: dict[str, int] = {}
        self._outboxes: dict[str, int] = {}
        self._connected: dict[str, dict[int, int]] = {}

    @property
    def native(self) -> Signals:
        """The native table; made when it is first needed.

        Raises:
            ResourceError: the machine has no descriptor left for it.
        """
        if self._native is None:
            from vbnet._native import CounterFile, Signals  # noqa: PLC0415 - hosts without signals do without

            counters = self._counters if self._counters is not None else CounterFile.create(None, _COUNTER_BYTES)
            self._native = Signals(counters)
            with contextlib.suppress(RuntimeError):  # on a bench there is no loop, and nobody to tell
                self._loop = asyncio.get_running_loop()
                self._loop.add_reader(self._native.events_fd(), self._take_events)
        return self._native

    def close(self) -> None:
        """End the native table; harmless when it was never made."""
        if self._native is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._native.events_fd())
            self._native.close()
            self._native = None
            self._lines.clear()
            self._names.clear()

    # ---- lines -----------------------------------------------------------------------------------------------------

    def create(
        self,
        owner: str,
        name: str,
        priority: int = 0,
        *,
        device: str = _BY_HAND,
        on_blocked: Callable[[], None] | None = None,
    ) -> int:
        """Make a line that leads nowhere yet; gives its number.

        Args:
            owner: the guest, or ``OPERATOR``.
            name: unique among the owner's.
            priority: 0..7, 7 the most urgent.
            device: where it comes from, for lists and to attribute coalescing.
            on_blocked: called when the guest made the doorbell behind it block.

        Raises:
            ExistsError: the name is taken. UsageError: a name or priority that cannot be.
            ResourceError: the owner has as many as it may.
        """
        if len(self._owned.get(owner, ())) >= _LINES_PER_GUEST:
            raise ResourceError("too many signals; destroy some", limit=_LINES_PER_GUEST)
        if "/" in name and device == _BY_HAND:
            raise UsageError(f"a signal's name has no slash; got {name!r}", got=name)
        number = self.native.create(owner, device, name, priority)
        line = _Line(number, owner, name, device, on_blocked)
        self._lines[number] = line
        self._names[line.full_name] = number
        self._owned.setdefault(owner, set()).add(number)
        return number

    def destroy(self, number: int, by: str = OPERATOR) -> None:
        """Remove a line with its grants and sources.

        Raises:
            NotFoundError: there is none. NotPermittedError: it is not ``by``'s.
        """
        line = self._own(number, by)
        del self._lines[number]
        self._names.pop(line.full_name, None)
        owned = self._owned.get(line.owner)
        if owned is not None:
            owned.discard(number)
            if not owned:
                del self._owned[line.owner]
        if self._event_lines.get(line.owner) == number:
            del self._event_lines[line.owner]
        for connected in self._connected.values():
            for place in [place for place, raised in connected.items() if raised == number]:
                del connected[place]
        self.native.destroy(number)
        for source, on_gone in line.sources.items():
            on_gone(source)

    def find(self, text: str) -> int:
        """The line that ``text`` names: its number, ``GUEST/NAME``, or an operator's ``NAME``.

        Raises:
            NotFoundError: none.
        """
        if text in self._names:
            return self._names[text]
        if text.isascii() and text.isdigit() and int(text) in self._lines:
            return int(text)
        raise NotFoundError(f"there is no signal {text!r}; `vbnet signal list` shows all", signal=text)

    def owner_of(self, number: int) -> str | None:
        """Whose line it is; None when there is none of that number."""
        line = self._lines.get(number)
        return None if line is None else line.owner

    def route_to_fd(self, number: int, fd: int, by: str = OPERATOR) -> None:
        """Lead a line to an eventfd, which stays the caller's."""
        self._own(number, by)
        self.native.route_to_fd(number, fd)

    def route_to_vector(self, number: int, to: Vector, by: str = OPERATOR) -> None:
        """Lead a line to a vector of a guest's controller; a guest leads its own lines to its own only.

        Raises:
            NotFoundError: no such line, controller or vCPU. NotPermittedError: not ``by``'s.
        """
        self._own(number, by)
        if by not in {OPERATOR, to.guest}:
            raise NotPermittedError(
                f"guest {by!r} may lead signals to itself, not to {to.guest!r}; ask for a grant and connect to one",
                guest=by,
            )
        apics = self._apics.get(to.guest)
        if apics is not None:
            self.native.route_to_apic(number, apics, to.vcpu, to.vector)
        else:
            self.native.route_to_vector(number, self.controller_of(to.guest), to.vcpu, to.vector)

    def route_nowhere(self, number: int, by: str = OPERATOR) -> None:
        """Lead a line nowhere: its raises are kept as one until it is routed again."""
        self._own(number, by)
        self.native.route_nowhere(number)

    def set_priority(self, number: int, priority: int, by: str = OPERATOR) -> None:
        """Change a line's priority for raises to come; raises UsageError for one that is not 0..7."""
        self._own(number, by)
        self.native.set_priority(number, priority)

    def set_masked(self, number: int, *, is_masked: bool, by: str = OPERATOR) -> None:
        """Keep a line's raises back, or deliver what was kept as one."""
        self._own(number, by)
        self.native.set_masked(number, is_masked)

    def raise_soon(self, number: int, by: str = OPERATOR) -> None:
        """Raise a line from the host's event loop; several may become one."""
        self._own(number, by)
        self.native.raise_soon(number)

    def rows(self) -> list[dict[str, Any]]:
        """Every line with its route and counts, oldest first."""
        if self._native is None:
            return []
        rows = self._native.list()
        for row in rows:
            line = self._lines.get(row["id"])
            row["granted"] = sorted(line.granted) if line is not None else []
            row["sources"] = len(line.sources) if line is not None else 0
        return rows

    def row(self, number: int) -> dict[str, Any]:
        """One line as ``rows`` shows it."""
        return next(row for row in self.rows() if row["id"] == number)

    def is_devices(self, number: int) -> bool:
        """Whether a line belongs to a device, and not to somebody who named it."""
        return self._own(number, OPERATOR).device != _BY_HAND

    # ---- events of the bus -------------------------------------------------------------------------------------------

    def tell_events(self, guest: str, number: int) -> None:
        """Raise a line for each event of the bus that a guest is sent from now on, until the line is destroyed."""
        self._event_lines[guest] = number

    def event_posted(self, guest: str) -> None:
        """A guest was sent an event."""
        number = self._event_lines.get(guest)
        if number is not None:
            self.native.raise_soon(number)

    # ---- who may raise another's line --------------------------------------------------------------------------------

    def grant(self, number: int, guest: str, by: str = OPERATOR) -> None:
        """Let ``guest`` connect its outbox to a line."""
        self._own(number, by).granted.add(guest)

    def revoke(self, number: int, guest: str, by: str = OPERATOR) -> None:
        """Take a grant back; what the guest connected by it is disconnected."""
        line = self._own(number, by)
        line.granted.discard(guest)
        connected = self._connected.get(guest, {})
        for place in [place for place, raised in connected.items() if raised == number]:
            self.disconnect(guest, place)

    def connect(self, guest: str, place: int, name: str) -> int:
        """Let number ``place`` of a guest's outbox raise the line ``name``; gives the line.

        Raises:
            NotFoundError: no such line, or the guest has no outbox.
            NotPermittedError: nobody granted it. ExistsError: the place is taken.
        """
        outbox = self._outboxes.get(guest)
        if outbox is None:
            raise NotFoundError(f"guest {guest!r} has no outbox", guest=guest)
        number = self.find(name)
        line = self._lines[number]
        if guest != line.owner and guest not in line.granted:
            raise NotPermittedError(
                f"guest {guest!r} was not granted signal {line.full_name!r}; its owner or an operator can "
                f"(vbnet signal grant {line.full_name} {guest})",
                guest=guest,
                signal=line.full_name,
            )
        self.native.grant(outbox, place, number)
        self._connected.setdefault(guest, {})[place] = number
        return number

    def disconnect(self, guest: str, place: int) -> None:
        """Take a place of an outbox back; raises NotFoundError when nothing is connected there."""
        if self._connected.get(guest, {}).pop(place, None) is None:
            raise NotFoundError(f"nothing is connected at place {place} of {guest!r}'s outbox", place=place)
        outbox = self._outboxes.get(guest)
        if outbox is not None:
            self.native.revoke(outbox, place)

    # ---- eventfds in and out ---------------------------------------------------------------------------------------

    def export(self, number: int, by: str = OPERATOR) -> int:
        """Lead a line to a new eventfd; gives the descriptor, which is the caller's to hand on and to close."""
        self._own(number, by)
        fd = _new_eventfd()
        try:
            self.native.route_to_fd(number, fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def drive(
        self, number: int, fd: int, by: str = OPERATOR, *, on_gone: Callable[[int], None] = lambda _source: None
    ) -> int:
        """Let an eventfd or socket raise a line; gives the number of the source. ``fd`` stays the caller's.

        Args:
            number: of the line.
            fd: the eventfd or connected socket.
            by: the owner of the line, or ``OPERATOR``.
            on_gone: called with the source's number when it ended by itself: it hung up, or the line was destroyed.

        Raises:
            UsageError: the descriptor is neither.
        """
        line = self._own(number, by)
        source = self.native.source_attach(number, fd)
        line.sources[source] = on_gone
        return source

    def undrive(self, number: int, source: int, by: str = OPERATOR) -> None:
        """Let go of a source; raises NotFoundError when the line has none of that number."""
        line = self._own(number, by)
        if line.sources.pop(source, None) is None:
            raise NotFoundError(f"signal {line.full_name!r} has no source {source}", source=source)
        self.native.source_detach(source)

    # ---- controllers ---------------------------------------------------------------------------------------------

    def attach_controller(self, guest: str, ram: Any, vcpus: list[list[tuple[int, int, int]]]) -> None:  # noqa: ANN401
        """Take a guest's controller into use; raises ExistsError when it has one, PeerFault for its memory."""
        if guest in self._controllers:
            raise ExistsError(f"guest {guest!r} has a controller already", guest=guest)
        self._controllers[guest] = self.native.controller_attach(guest, ram, vcpus)
        if guest in self._boosters:
            self.native.controller_boost(self._controllers[guest], *self._boosters[guest])

    def boost(self, guest: str, coordinator: SchedCoordinator, member: int) -> None:
        """Have a guest's urgent signals raise the threads that serve them, from when it has a controller.

        Raises ExistsError when a coordinator does so already.
        """
        if guest in self._boosters:
            raise ExistsError(f"guest {guest!r} takes part in another coordinator's scheduling", guest=guest)
        self._boosters[guest] = (coordinator, member)
        if guest in self._controllers:
            self.native.controller_boost(self._controllers[guest], coordinator, member)
        if guest in self._apics:
            self._apics[guest].boost(coordinator, member)

    def boost_no_more(self, guest: str, coordinator: SchedCoordinator) -> None:
        """End that; harmless when another coordinator does it, or none."""
        if self._boosters.get(guest, (None, 0))[0] is not coordinator:
            return
        del self._boosters[guest]
        if guest in self._controllers and self._native is not None:
            self._native.controller_boost(self._controllers[guest])
        if guest in self._apics:
            self._apics[guest].boost()

    def detach_controller(self, guest: str) -> None:
        """Let go of it; lines that led there are latched from now on. Harmless when there is none."""
        apics = self._apics.pop(guest, None)
        if apics is not None:
            apics.boost()  # a line may still lead there
        controller = self._controllers.pop(guest, None)
        if controller is not None and self._native is not None:
            self._native.controller_detach(controller)

    def attach_apics(self, guest: str, call_fds: list[int]) -> Apics:
        """Lead what is led to a guest's vectors to emulated controllers, a vCPU for each doorbell.

        Raises ExistsError when it has others.
        """
        if guest in self._controllers or guest in self._apics:
            raise ExistsError(f"guest {guest!r} has a controller already", guest=guest)
        apics = self._apics[guest] = self.native.apics(guest, call_fds)
        if guest in self._boosters:
            apics.boost(*self._boosters[guest])
        return apics

    def attach_outbox(self, guest: str, ram: Any, place: tuple[int, int], kick_fd: int) -> None:  # noqa: ANN401
        """Take a guest's outbox into use; raises ExistsError when it has one, PeerFault for its memory."""
        if guest in self._outboxes:
            raise ExistsError(f"guest {guest!r} has an outbox already", guest=guest)
        offset, length = place
        self._outboxes[guest] = self.native.outbox_attach(guest, ram, offset, length, kick_fd)

    def detach_outbox(self, guest: str) -> None:
        """Let go of it, and of what was connected there. Harmless when there is none."""
        outbox = self._outboxes.pop(guest, None)
        self._connected.pop(guest, None)
        if outbox is not None and self._native is not None:
            self._native.outbox_detach(outbox)

    def has_controller(self, guest: str) -> bool:
        """Whether signals can be led to vectors of a guest."""
        return guest in self._controllers or guest in self._apics

    def controlled(self) -> list[str]:
        """Guests with a controller whose levels can be looked at."""
        return list(self._controllers)

    def controller_of(self, guest: str) -> int:
        """The number of a guest's controller; raises NotFoundError when it has none."""
        try:
            return self._controllers[guest]
        except KeyError:
            raise NotFoundError(f"guest {guest!r} has no interrupt controller in use", guest=guest) from None

    def levels(self, guest: str) -> list[Mapping[str, Any]]:
        """How each level of a guest's controller is doing, [] when it has none."""
        controller = self._controllers.get(guest)
        if controller is None or self._native is None:
            return []
        return list(self._native.controller_status(controller))

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _own(self, number: int, by: str) -> _Line:
        line = self._lines.get(number)
        if line is None or (by not in {OPERATOR, line.owner}):
            # To a stranger another guest's line and none at all look alike.
            raise NotFoundError(f"there is no signal {number}", signal=number)
        return line

    def _take_events(self) -> None:
        if self._native is None:
            return
        for event in self._native.take_events():
            line = self._lines.get(event["line"])
            if line is None:
                continue
            if event["event"] == "source_gone":
                if (on_gone := line.sources.pop(event["source"], None)) is not None:
                    on_gone(event["source"])
                self._publish("signal.source_gone", signal=line.full_name, source=event["source"])
                continue
            guest = event["guest"]
            self._publish("signal.blocked", signal=line.full_name, guest=guest, rule=event["rule"], text=event["text"])
            if line.on_blocked is not None and guest == line.owner:  # not when it led to another's doorbell
                with contextlib.suppress(VbnetError):
                    line.on_blocked()


def _new_eventfd() -> int:
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        raise ResourceError(f"no eventfd for the signal: {error.strerror}", errno=error.errno or 0) from error

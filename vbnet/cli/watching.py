"""What `vbnet capture` and `vbnet trace` have in common: which ports, which frames, and when it is over."""

from __future__ import annotations

import enum
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated

import typer

from vbnet.bus.capture import CaptureLink
from vbnet.bus.operator import SyncOperator
from vbnet.bus.rundir import RunDir
from vbnet.cli.connection import connect, resolve
from vbnet.errors import NotFoundError, UnsupportedError, VbnetError, did_you_mean


@dataclass(frozen=True, slots=True)
class Port:
    """A port to look at: its name, its number now, and what a reader of the capture should know of it."""

    name: str
    number: int
    description: str


def complete_port(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of ports and guests that begin so."""
    with suppress(VbnetError), connect(ctx.params.get("node")) as operator:
        names = [str(port["name"]) for port in operator.port_list()]
        names += [guest.name for guest in operator.guest_list()]
        return [name for name in names if name.startswith(incomplete)]
    return []


PortArgument = Annotated[
    str,
    typer.Argument(
        metavar="PORT|GUEST",
        help="Name of a port, or of a guest: all its ports. Several with commas.",
        autocompletion=complete_port,
        show_default=False,
    ),
]
FilterArgument = Annotated[
    str,
    typer.Argument(metavar="[FILTER]", help="Which frames, as tcpdump has it: 'udp port 53'.", show_default=False),
]
ForOption = Annotated[
    str | None, typer.Option("--for", metavar="TIME", help="End after 10s, 500ms, 2m.", show_default=False)
]


def local_host(node: str | None) -> RunDir:
    """Return where the host node is, whose memory this process can share.

    Raises:
        UnsupportedError: it is on another machine.
    """
    where = resolve(node)
    if isinstance(where, str):
        raise UnsupportedError(
            f"frames are shown through shared memory, and {where} is on another machine; run this there"
        )
    return where


def find_ports(operator: SyncOperator, names: str) -> list[Port]:
    """Return the ports that are meant: by name, or all of a guest's.

    Args:
        operator: of the host node.
        names: ports and guests, with commas between.

    Raises:
        NotFoundError: there is no port or guest of a name, or that guest has no port.
    """
    ports = {str(port["name"]): port for port in operator.port_list()}
    buses = {guest.name: guest.bus for guest in operator.guest_list()}
    devices = {bus.name: bus.devices for bus in operator.bus_list()}
    guests = {name: [port for port in ports if port in devices.get(bus, ())] for name, bus in buses.items()}
    owners = {port: guest for guest, own in guests.items() for port in own}
    found: dict[str, Port] = {}
    for name in filter(None, names.split(",")):
        own = [name] if name in ports else guests.get(name)
        if own is None:
            fix = did_you_mean(name, [*ports, *guests], otherwise="`vbnet port list` shows all")
            raise NotFoundError(f"there is no port or guest {name!r}; {fix}", name=name)
        if not own:
            raise NotFoundError(f"guest {name!r} has no port that is up; `vbnet port list` shows all", guest=name)
        for port in own:
            facts = {"guest": owners.get(port), "switch": ports[port]["switch"], "kind": ports[port]["kind"]}
            description = ", ".join(f"{what} {value}" for what, value in facts.items() if value)
            found[port] = Port(port, int(ports[port]["id"]), description)
    if not found:
        raise NotFoundError("no port was named; `vbnet port list` shows all")
    return list(found.values())


class Wake(enum.Enum):
    """Why waiting ended."""

    NEWS = enum.auto()
    STOPPED = enum.auto()
    TIME_UP = enum.auto()
    HOST_GONE = enum.auto()
    READER_GONE = enum.auto()
    ENOUGH = enum.auto()


class Stop:
    """Ctrl-C and SIGTERM as something to wait for: the first asks for an orderly end, the second is not waited for."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.is_asked = False

    def ask(self, *_signal: object) -> None:
        """Have the capture end."""
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
        os.eventfd_write(self.fd, 1)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Take SIGINT and SIGTERM for the time of a capture."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(stop.fd)


class Waiting:
    """Waits for frames, and for whatever ends a capture.

    Args:
        link: to the host node.
        bells: doorbells of the captures.
        stop: the user's wish.
        seconds: how long the capture lasts; None: for ever.
    """

    def __init__(self, link: CaptureLink, bells: Sequence[int], stop: Stop, seconds: float | None) -> None:
        self._link, self._stop = link, stop
        self._reader_fd = -1
        self._ends_at = None if seconds is None else time.monotonic() + seconds
        self._poll = select.poll()
        for fd in (link.fileno(), stop.fd, *bells):
            self._poll.register(fd, select.POLLIN)

    def watch_reader(self, fd: int) -> None:
        """Also end when whoever reads this pipe hangs up."""
        self._reader_fd = fd
        self._poll.register(fd, 0)

    def over(self) -> Wake | None:
        """Say why it is over, if it is; never waits."""
        return self._reason({fd for fd, _ in self._poll.poll(0)})

    def wait(self, arm: Callable[[], bool], at_most_s: float | None = None) -> Wake:
        """Sleep until there may be frames, or it is over, or ``at_most_s`` seconds passed.

        Args:
            arm: asks for the doorbells; False: there are frames already.
            at_most_s: None: as long as the capture lasts.
        """
        if not arm():
            return self.over() or Wake.NEWS
        left = [] if self._ends_at is None else [max(0.0, self._ends_at - time.monotonic())]
        seconds = min([*left, *([] if at_most_s is None else [at_most_s])], default=None)
        ready = self._poll.poll(None if seconds is None else int(seconds * 1000) + 1)
        return self._reason({fd for fd, _ in ready}) or Wake.NEWS

    def _reason(self, ready: set[int]) -> Wake | None:
        if self._stop.is_asked:
            return Wake.STOPPED
        if self._link.fileno() in ready:
            return Wake.HOST_GONE
        if self._reader_fd in ready:
            return Wake.READER_GONE
        if self._ends_at is not None and time.monotonic() >= self._ends_at:
            return Wake.TIME_UP
        return None

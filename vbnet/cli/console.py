"""`vbnet console`: attach to a guest's console."""

from __future__ import annotations

import fcntl
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer

from vbnet.bus.admin import DeviceInfo
from vbnet.cli import output
from vbnet.cli.connection import NodeOption, connect
from vbnet.errors import BusyError, NotFoundError, ResourceError, did_you_mean

CLASS: Final = "virtio-console"
DETACH: Final = b"\x1d"
"""Ctrl-]."""
_CHUNK_BYTES: Final = 4096

app = output.application(
    "Attach to a guest's console: what it says is shown, what is typed is its own, until Ctrl-] or the end of input. "
    "One at a time; what the guest said last while nobody was attached is shown first.",
    [
        ("vbnet console app", "the console of guest app"),
        ("vbnet console console0", "by the device's name"),
        ("echo status | vbnet console app", "say something, and show what is said at once"),
    ],
)


@app.command()
def console(
    name: Annotated[str, typer.Argument(help="A guest, or a device of type virtio-console.", show_default=False)],
    *,
    node: NodeOption = None,
) -> None:
    """Attach to a guest's console."""
    with connect(node) as operator:
        path = _terminal(name, operator.device_list(), {guest.name: guest.bus for guest in operator.guest_list()})
    with _attached(path) as terminal, _raw_input() as is_typed:
        if is_typed:
            output.note(f"attached to {name}; Ctrl-] detaches")
        _relay(terminal)


def _terminal(name: str, devices: list[DeviceInfo], buses: dict[str, str]) -> str:
    """The terminal of the console of this name, or of this guest's.

    Raises:
        NotFoundError: there is none.
    """
    consoles = {device.name: device for device in devices if device.type == CLASS}
    found = consoles.get(name)
    if found is None and name in buses:
        plugged = (each for each in consoles.values() if any(plug.bus == buses[name] for plug in each.plugs))
        found = next(plugged, None)
    if found is None:
        fix = did_you_mean(name, [*consoles, *buses], otherwise="`vbnet device list` shows all")
        raise NotFoundError(f"{name!r} is no console, and no guest that has one; {fix}", name=name)
    return found.attributes["terminal"]


@contextmanager
def _attached(path: str) -> Iterator[int]:
    """The terminal end, for as long as nobody else has it.

    Raises:
        BusyError: somebody is attached. ResourceError: it cannot be opened.
    """
    try:
        terminal = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ResourceError(f"cannot open {path}: {error.strerror}", errno=error.errno or 0, path=path) from error
    try:
        try:
            fcntl.flock(terminal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"somebody is attached to {path} already", path=path) from None
        yield terminal
    finally:
        os.close(terminal)


@contextmanager
def _raw_input() -> Iterator[bool]:
    """Hand on each key as it is typed, if input is a terminal, and put that back in the end."""
    if not sys.stdin.isatty():
        yield False
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _relay(terminal: int) -> None:
    """Hand bytes on in both directions until the detach key, the end of input or of the terminal."""
    poll = select.poll()
    typed = sys.stdin.fileno()
    for fd in (terminal, typed):
        poll.register(fd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if terminal in ready and not _show(terminal):
            return
        if typed in ready:
            data = os.read(typed, _CHUNK_BYTES)
            kept, detach, _ = data.partition(DETACH)
            _say(terminal, kept)
            if detach or not data:
                _show(terminal)
                return


def _show(terminal: int) -> bool:
    """Show what the guest said; whether the terminal is there still."""
    try:
        said = os.read(terminal, _CHUNK_BYTES)
    except BlockingIOError:
        return True
    except OSError:
        return False
    sys.stdout.buffer.write(said)
    sys.stdout.buffer.flush()
    return bool(said)


def _say(terminal: int, data: bytes) -> None:
    """Type for the guest; what it has no room for is waited for."""
    while data:
        try:
            data = data[os.write(terminal, data) :]
        except BlockingIOError:
            select.select([], [terminal], [])

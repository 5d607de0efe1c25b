"""What the processes of a test run: a host node with its fabric, and guests that do as they are told.

They are started from a fork server that has loaded everything, so one costs milliseconds. A guest serves requests from
a pipe, one at a time: the name of a method of its NIC (or of ``GuestProgram``) and its arguments; the answer is what
came of it, or the exception. A request that waits for ever is answered when what it waits for happens, or never.
"""

from __future__ import annotations

import inspect
import itertools
import os
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.support.waiting import PATIENCE
from vbnet import Guest
from vbnet._native import CounterFile, Fabric
from vbnet.bus.limits import Limits
from vbnet.bus.operator import SyncOperator
from vbnet.bus.rundir import RunDir
from vbnet.devices.venet.driver import VenetDriver, VenetNic
from vbnet.errors import UsageError
from vbnet.hostnode.node import HostOptions
from vbnet.hostnode.process import run_host

__all__ = [
    "COUNTERS",
    "GuestProgram",
    "drive_all_program",
    "driving_program",
    "host_program",
    "make_fabric",
    "nic_program",
    "open_all_program",
    "serving_program",
]

COUNTERS = "host.counters"


def make_fabric(run_dir: RunDir) -> Fabric:
    """Make a fabric that counts into the run directory; one worker, as tests share few cores."""
    return Fabric(CounterFile.create(run_dir.counters / COUNTERS), 1)


def host_program(path: Path, limits: Limits, ready: Connection) -> None:
    """Run a host node in ``path`` until SIGTERM; say so on ``ready`` when guests can connect."""
    run_dir = RunDir(path)
    options = HostOptions(run_dir=run_dir, name="test", limits=limits)
    run_host(options, make_fabric=lambda: make_fabric(run_dir), on_ready=lambda: ready.send("ready"))


def open_all_program(path: Path, name: str, bus: str, ready: Connection) -> None:
    """Join a bus, open everything on it, say how much that was, and wait to be killed."""
    guest = Guest(name, bus, address=RunDir(path), ram_bytes=1 << 20)
    opened = [guest.open(device.name) for device in guest.devices]
    ready.send(len(opened))
    threading.Event().wait()


def drive_all_program(path: Path, name: str, bus: str, ready: Connection) -> None:
    """Join a bus, have a driver at work on every device that one takes here, say so, and wait to be killed."""
    guest = Guest(name, bus, address=RunDir(path))
    for device in guest.devices:
        with suppress(UsageError):  # a TAP, say, is driven in a namespace only
            guest.bind(device.name, PATIENCE)
    ready.send("driving")
    threading.Event().wait()


def serving_program(path: Path, name: str, bus: str, ready: Connection) -> None:
    """Join a bus, raise a signal of its own by its outbox, and say so in the handler, which waits to be killed."""
    guest = Guest(name, bus, address=RunDir(path), ram_bytes=1 << 20)
    intc = guest.bind("intc0", PATIENCE)

    def serve() -> None:
        ready.send("serving")
        threading.Event().wait()

    guest.run(intc.create("knock", serve, priority=3))
    guest.run(intc.connect(f"{name}/knock")).ring()
    threading.Event().wait()


def driving_program(path: Path, ready: Connection) -> None:
    """Be an operator that drives ``alarm`` and was handed the eventfd of ``bell``; say so, and wait to be killed."""
    operator = SyncOperator(path)
    fds = [operator.signal_export("bell"), os.eventfd(0)]
    operator.signal_drive("alarm", fds[1])
    ready.send("driving")
    threading.Event().wait()


def nic_program(path: Path, name: str, bus: str, ready: Connection) -> None:
    """Join a bus, bring its NIC up, say so, and wait to be killed."""
    guest = Guest(name, bus, address=RunDir(path))
    guest.nic("eth0", 10)
    ready.send("up")
    threading.Event().wait()


def state_program(path: Path, name: str, bus: str, ready: Connection) -> None:
    """Join a bus, claim record 0 of its state device, say so, and publish rising numbers until killed."""
    guest = Guest(name, bus, address=RunDir(path))
    publisher = guest.run(guest.bind("publish0").publisher(0))
    publisher.publish(1, 1, 1)
    ready.send("claimed")
    for number in itertools.count(2):
        publisher.publish(number, number, number)


class GuestProgram:
    """A guest process: joins, brings its NIC up, and serves.

    Args:
        path: run directory of the host.
        name: of the guest and of its bus.
        pipe: where requests come from.
    """

    def __init__(self, path: Path, name: str, pipe: Connection) -> None:
        self._pipe = pipe
        self._guest = Guest(name, name, address=RunDir(path), ram_bytes=8 << 20)
        self._guest.register(VenetDriver())
        self._nic: VenetNic = self._guest.nic("eth0", 10)

    @classmethod
    def run(cls, path: Path, name: str, pipe: Connection) -> None:
        """Serve until the pipe is closed or ``quit`` is asked for."""
        program = cls(path, name, pipe)
        pipe.send(bytes(program._nic.mac))
        while (request := program._next()) is not None:
            method, arguments, options = request
            try:
                pipe.send((True, program._do(method, arguments, options)))
            except Exception as error:  # noqa: BLE001 - whatever it is, the test wants to see it
                pipe.send((False, error))
        program._guest.close()

    def _next(self) -> tuple[str, tuple[Any, ...], dict[str, Any]] | None:
        try:
            request: tuple[str, tuple[Any, ...], dict[str, Any]] | None = self._pipe.recv()
        except EOFError:
            return None
        return request

    def _do(self, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        owner = self if method.startswith("do_") else self._nic
        result = getattr(owner, method)(*arguments, **options)
        return self._guest._thread.run(result) if inspect.iscoroutine(result) else result

    def do_gather(self, count: int, patience: float) -> list[bytes]:
        """Receive so many frames; fewer when none came for ``patience`` seconds."""
        frames: list[bytes] = []
        while len(frames) < count:
            batch = self._nic.recv(count - len(frames), patience)
            if not batch:
                break
            frames += batch
        return frames

    def do_mirror(self, window: int) -> list[int]:
        """Answer the last frame of every ``window`` frames, until one says stop; give the numbers of all of them.

        A frame's number stands behind its header, 8 bytes big-endian; 2⁶⁴-1 says stop.
        """
        numbers: list[int] = []
        while True:
            for frame in self._nic.recv(window, 10):
                number = int.from_bytes(frame[14:22], "big")
                if number == (1 << 64) - 1:
                    return numbers
                numbers.append(number)
                if len(numbers) % window == 0:
                    self._nic.send_frame(frame[6:12] + frame[:6] + frame[12:], 10)

    def do_pid(self) -> int:
        """Its process id."""
        return os.getpid()

"""Processes that a test starts, talks to and kills: host nodes and guests, each in an operating system process.

Every wait has a deadline: a process that does not answer fails its test instead of hanging it.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Self

from tests.support.programs import GuestProgram, host_program
from tests.support.waiting import PATIENCE, eventually
from vbnet.bus.limits import Limits

__all__ = ["Child", "GuestProcess", "HostProcess", "ProcessState", "warm_up"]

_HAS_NO_FILE = re.compile(r"^(?:\S+ +){5}(?:\[.*)?$")
"""Of a line of ``/proc/PID/maps``: nothing, or a word of the kernel's own such as ``[heap]``, where a path would be."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.programs", "vbnet.guestnode.node", "vbnet.devices.echo.driver"])


def warm_up() -> None:
    """Start the fork server, whose descriptors in this process would otherwise appear with the first child."""
    forkserver.ensure_running()


class Child:
    """A process running ``program(*arguments, pipe)``; a context manager that leaves nothing running."""

    def __init__(self, program: Callable[..., None], *arguments: object) -> None:
        self.pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=program, args=(*arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()
        self.pipe.close()
        self._process.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    def hear(self, patience: float = PATIENCE) -> Any:
        """The next object it sends; raises EOFError when it ended, TimeoutError when it says nothing."""
        if not self.pipe.poll(patience):
            raise TimeoutError(f"process {self.pid} said nothing for {patience} s")
        return self.pipe.recv()

    def kill(self) -> None:
        """``kill -9``, unless it ended before; returns when it is dead."""
        self._process.kill()
        self._process.join(PATIENCE)

    def pause(self) -> None:
        """Stop it where it is; returns when every thread of it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        eventually(lambda: thread_states(self.pid) == {"T"}, "every thread stands still")

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)


class HostProcess(Child):
    """A host node with its fabric, ready when made.

    Args:
        path: its run directory, to be made.
        limits: what it grants its guests.
    """

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        super().__init__(host_program, path, limits or Limits())
        assert self.hear() == "ready"

    def __exit__(self, *exc: object) -> None:
        if self.is_alive:
            self.resume()
            self._process.terminate()
            self._process.join(PATIENCE)
        super().__exit__(*exc)


class GuestProcess(Child):
    """A guest with a NIC that is up when this is made.

    Args:
        path: run directory of the host.
        name: of the guest and of its bus.
    """

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(GuestProgram.run, path, name)
        self.mac: bytes = self.hear()

    def begin(self, method: str, *arguments: object, **options: object) -> None:
        """Ask for a method of the NIC or the program, without waiting for what comes of it."""
        self.pipe.send((method, arguments, options))

    def end(self, patience: float = PATIENCE) -> Any:
        """What came of the request begun first; an exception there is raised here."""
        is_result, outcome = self.hear(patience)
        if is_result:
            return outcome
        raise outcome

    def do(self, method: str, *arguments: object, **options: object) -> Any:
        """Ask, and wait for what comes of it."""
        self.begin(method, *arguments, **options)
        return self.end()


def thread_states(pid: int) -> set[str]:
    """Return the state letters of a process's threads; empty when it ended."""
    letters = set()
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        match = re.search(r"^State:\s*(\w)", status.read_text(), re.MULTILINE)
        letters.add(match[1] if match is not None else "?")
    return letters


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What the kernel says a process has: descriptors, mappings and resident KiB.

    Mappings of files and of shared memory are the process's own doing. Anonymous ones are also its allocators', which
    take and merge them as they like: Python's takes another one of 1 MiB when the objects happen to lie badly.
    """

    fds: int
    shared: int
    anonymous: int
    rss_kib: int

    @classmethod
    def of(cls, pid: int) -> ProcessState:
        """Look at it now."""
        folder = Path(f"/proc/{pid}")
        mapped = (folder / "maps").read_text().splitlines()
        anonymous = sum(_HAS_NO_FILE.search(line) is not None for line in mapped)
        resident = re.search(r"^VmRSS:\s*(\d+)", (folder / "status").read_text(), re.MULTILINE)
        return cls(
            len(list((folder / "fd").iterdir())),
            len(mapped) - anonymous,
            anonymous,
            int(resident[1]) if resident is not None else 0,
        )

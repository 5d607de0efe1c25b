"""What a running lab writes down, so that any other shell can see, enter and end it.

One folder a lab in the run directory (mode 0700, owned by the user). ``lab.json`` is replaced whole on every change,
so a reader never sees half of it, and holds only what is needed after the supervisor was killed: who its processes
are, which namespace a guest is in, what was made outside of the folder.

Who writes what: the supervisor writes ``lab.json`` and holds a lock on ``lab.lock`` as long as it lives (the kernel
releases it however the supervisor ends). Everybody else only reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vbnet.bus.filelock import hold, is_held
from vbnet.bus.rundir import run_folders, run_root
from vbnet.cluster.process import Identity, is_alive
from vbnet.errors import BusyError, NotFoundError, UsageError

STATE_FILE = "lab.json"
LOCK_FILE = "lab.lock"
LAUNCH = "launch"
STATE_LENGTH_MAX_BYTES = 64 << 20


class GuestState(msgspec.Struct, kw_only=True):
    """One guest as `vbnet ps` shows it. ``state``: starting, ready, ended, failed, restarting, given-up, stopped."""

    name: str
    kind: str
    process: str
    state: str = "starting"
    detail: str = ""
    ips: list[str] = []
    macs: list[str] = []


class FrontEndState(msgspec.Struct, kw_only=True):
    """A port that a virtual machine or a DPDK application connects to: the lab starts none of them.

    ``macs``: the card's address, if the lab file says one.
    """

    name: str
    macs: list[str] = []


class ProcessState(msgspec.Struct, kw_only=True):
    """One process of the lab. ``exit_code`` is set once it has ended; negative: the signal that ended it."""

    name: str
    kind: str
    identity: Identity | None = None
    restart: str = "no"
    restarts: int = 0
    exit_code: int | None = None


class LabState(msgspec.Struct, kw_only=True):
    """One lab.

    Attributes:
        instance: random name of this run of the lab; every descendant process carries it as a mark.
        phase: starting, up, stopping.
        since_s: wall-clock time of the start, in seconds since the epoch.
        taps: TAP devices that this lab uses on the machine itself.
        front_ends: ports that wait for somebody else's programs.
    """

    lab: str
    instance: str
    file: str
    phase: str
    since_s: float
    supervisor: Identity
    host: ProcessState | None = None
    processes: dict[str, ProcessState] = {}
    guests: dict[str, GuestState] = {}
    taps: list[str] = []
    front_ends: list[FrontEndState] = []

    def identities(self) -> Iterator[Identity]:
        """Every process that was recorded, the supervisor last."""
        for process in [*self.processes.values(), *([self.host] if self.host else [])]:
            if process.identity is not None:
                yield process.identity
        yield self.supervisor


class Lock:
    """The supervisor's claim on a lab's folder; the kernel drops it when the supervisor ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        fd = hold(folder / LOCK_FILE)
        if fd is None:
            raise BusyError(f"lab `{folder.name}` is up already; end it with `vbnet down {folder.name}`")
        self._fd = fd

    def release(self) -> None:
        """Give the folder free."""
        os.close(self._fd)


def is_locked(folder: Path) -> bool:
    """Say whether a living supervisor holds this lab."""
    return is_held(folder / LOCK_FILE) is True


def write_state(folder: Path, state: LabState) -> None:
    """Replace the lab's state file in one step."""
    new = folder / f"{STATE_FILE}.new"
    new.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=1))
    new.replace(folder / STATE_FILE)


def read_state(folder: Path) -> LabState:
    """Read a lab's state file.

    Raises:
        NotFoundError: there is none.
        UsageError: it is not ours to understand (damaged, or another version's).
    """
    try:
        with (folder / STATE_FILE).open("rb") as stream:
            content = stream.read(STATE_LENGTH_MAX_BYTES)
    except OSError as error:
        raise NotFoundError(f"there is no lab `{folder.name}`; `vbnet ps --all` lists what there is") from error
    try:
        return msgspec.json.decode(content, type=LabState)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{folder / STATE_FILE} cannot be understood ({error}); `vbnet clean` removes it once nothing of it runs"
        ) from error


def lab_folders(root: Path | None = None) -> list[Path]:
    """Return the folders of every lab there is or was, by name.

    Raises:
        ResourceError: the folder of run directories cannot be read.
    """
    return [entry for entry in run_folders(root or run_root()) if (entry / STATE_FILE).is_file()]


def choose_lab(name: str | None, root: Path | None = None) -> Path:
    """Return the folder of the lab ``name``, or of the only one when no name is given.

    Raises:
        NotFoundError: no such lab, or no lab at all.
        UsageError: several labs and no name.
    """
    folders = lab_folders(root)
    if name is not None:
        for folder in folders:
            if folder.name == name:
                return folder
        there = f"there is: {', '.join(folder.name for folder in folders)}" if folders else "no lab is up"
        raise NotFoundError(f"there is no lab `{name}`; {there}", lab=name)
    if not folders:
        raise NotFoundError("no lab is up; start one with `vbnet up FILE`")
    if len(folders) > 1:
        raise UsageError(f"several labs are up; name one of {', '.join(folder.name for folder in folders)}")
    return folders[0]


def shown_state(state: LabState, process: ProcessState, guest: GuestState) -> str:
    """Return a guest's state as it is now: what the supervisor wrote, unless it cannot know any more."""
    if is_alive(process.identity):
        return guest.state
    return "dead" if guest.state in {"starting", "ready"} and not is_alive(state.supervisor) else guest.state

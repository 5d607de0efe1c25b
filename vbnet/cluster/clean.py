"""What dead labs left, and its removal.

A lab is dead when nobody holds its lock. Then whatever its state file records, and whatever carries its mark, is a
leftover: processes (compared by start time, so a recycled number is never touched), TAP devices, sockets, files. A
host node that was run by itself is dead when nobody holds ``host.lock``.

A folder is removed only when it is ours, is a folder and no link, and holds nothing but names that vbnet makes.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from vbnet.bus.rundir import HOST_LOCK, host_lives, run_folders, run_root
from vbnet.cluster import process, uplinks
from vbnet.cluster.monitor import FOLDER as MONITOR_FOLDER
from vbnet.cluster.monitor import is_abandoned
from vbnet.cluster.state import LOCK_FILE, STATE_FILE, LabState, Lock, is_locked, read_state
from vbnet.errors import BusyError, ResourceError, VbnetError

OUR_NAMES = frozenset(
    {
        *(f"{stem}.sock" for stem in ("bus", "admin", "events", "attach", "operate")),
        *("counters", "logs", "launch", "host.json", "host.new", HOST_LOCK, STATE_FILE, f"{STATE_FILE}.new", LOCK_FILE),
        *("keys", "host.log", "events.jsonl", "events.1.jsonl", "errors.log"),
    }
)
END_WAIT_S = 5.0


class Leftover(msgspec.Struct, frozen=True):
    """One thing that a dead lab left, or a dead monitor. ``kind``: process, tap, folder, monitor."""

    lab: str
    kind: str
    name: str
    detail: str = ""


def find_leftovers(root: Path | None = None) -> list[Leftover]:
    """List what dead labs and host nodes left, without touching anything."""
    found: list[Leftover] = []
    for folder in _folders(root or run_root()):
        if _is_in_use(folder):
            continue
        lab_state = _state(folder)
        if lab_state is not None:
            found += [
                Leftover(folder.name, "process", str(identity.pid), _command_line(identity.pid))
                for identity in _processes(lab_state)
            ]
            found += [
                Leftover(folder.name, "tap", tap)
                for tap in lab_state.taps
                if uplinks.is_made_by(tap, lab_state.instance)
            ]
        found.append(Leftover(folder.name, "folder", str(folder), _owner_note(folder)))
    monitored = (root or run_root()) / MONITOR_FOLDER
    if is_abandoned(monitored):
        found.append(Leftover("", "monitor", str(monitored), _owner_note(monitored)))
    return found


def clean(root: Path | None = None) -> list[Leftover]:
    """Remove what dead labs and host nodes left.

    Returns:
        What was there.

    Raises:
        ResourceError: something could not be removed; the rest was.
    """
    root = root or run_root()
    found = find_leftovers(root)
    for folder in _folders(root):
        if not _is_in_use(folder):
            with suppress(BusyError):
                clean_folder(folder)
    if is_abandoned(root / MONITOR_FOLDER):
        shutil.rmtree(root / MONITOR_FOLDER, ignore_errors=True)
    remaining = find_leftovers(root)
    if remaining:
        names = ", ".join(f"{item.kind} {item.name}" for item in remaining)
        raise ResourceError(f"could not remove {names}; look at them by hand")
    if root == run_root({**os.environ, "VBNET_RUN_DIR": ""}):  # a folder of the user's own choosing is the user's
        with suppress(OSError):
            root.rmdir()
    return found


def clean_folder(folder: Path, *, is_ours: bool = False) -> None:
    """Remove what a dead lab left in and around its folder.

    Args:
        folder: the lab's run directory.
        is_ours: the caller holds its lock and goes on using the folder, so lock and folders stay.

    Raises:
        BusyError: somebody brought the lab up in this moment.
    """
    lock = None if is_ours else Lock(folder)
    try:
        lab_state = _state(folder)
        if lab_state is not None:
            end_processes(list(_processes(lab_state)))
            remove_taps(lab_state)
        if is_ours:
            (folder / STATE_FILE).unlink(missing_ok=True)
            shutil.rmtree(folder / "launch", ignore_errors=True)
            for counters in (folder / "counters").glob("*.counters"):
                counters.unlink()
            for told in ("events.jsonl", "events.1.jsonl", "errors.log"):
                (folder / told).unlink(missing_ok=True)
            for log in (folder / "logs").glob("[!_]*.log"):  # the supervisor's own log is being written already
                log.unlink()
        elif {entry.name for entry in folder.iterdir()} <= OUR_NAMES:
            shutil.rmtree(folder)
    finally:
        if lock is not None:
            lock.release()


def end_marked(instance: str) -> None:
    """End every process that carries the mark of this lab, the caller excepted."""
    end_processes(list(process.marked_processes(instance)))


def remove_taps(lab_state: LabState) -> None:
    """Remove the TAPs that this lab made; one that merely has such a name is left alone."""
    for tap in lab_state.taps:
        if uplinks.is_made_by(tap, lab_state.instance):
            uplinks.remove_tap(tap)


def end_processes(identities: list[process.Identity]) -> None:
    """Kill exactly these processes and wait for their end."""
    for identity in identities:
        if identity.pid != os.getpid():
            process.send_signal(identity, signal.SIGKILL)
    for identity in identities:
        if identity.pid != os.getpid():
            process.wait_ended(identity, END_WAIT_S)


def _folders(root: Path) -> Iterator[Path]:
    """Yield folders that look like a run directory of this user."""
    for entry in run_folders(root):
        if entry.is_symlink() or not entry.is_dir() or entry.lstat().st_uid != os.geteuid():
            continue
        names = {child.name for child in entry.iterdir()}
        if names <= OUR_NAMES and names & {LOCK_FILE, HOST_LOCK, STATE_FILE}:
            yield entry


def _is_in_use(folder: Path) -> bool:
    if is_locked(folder):
        return True
    has_lab = (folder / STATE_FILE).exists()
    return not has_lab and host_lives(folder)


def _state(folder: Path) -> LabState | None:
    try:
        return read_state(folder)
    except VbnetError:
        return None


def _processes(lab_state: LabState) -> Iterator[process.Identity]:
    recorded = {identity for identity in lab_state.identities() if process.is_alive(identity)}
    yield from sorted(
        {
            identity
            for identity in recorded | set(process.marked_processes(lab_state.instance))
            if identity.pid != os.getpid()
        },
        key=lambda identity: identity.pid,
    )


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80].strip()
    return ""


def _owner_note(folder: Path) -> str:
    count = sum(1 for _ in folder.rglob("*"))
    return f"{count} file{'s' * (count != 1)}"

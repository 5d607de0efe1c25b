"""Finds, and on request ends, the processes that one test run started; outlives pytest to clean up after its death.

Every process started under pytest inherits the variable VBNET_TEST_RUN with a value unique to the run: /proc shows
it, so a daemon that left its parent is found as surely as a child. As a program (``reaper.py MARK``) it waits until
its standard input closes, which happens when pytest ends in whatever way, and then kills what still carries the mark.
Danger: process ids are re-used; a process is therefore pinned by a pidfd and looked at again before it is signalled.
"""

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

MARK_VARIABLE = "VBNET_TEST_RUN"


def carries_mark(pid: int, mark: str) -> bool:
    """Say whether process ``pid`` was started by the run ``mark``; a process of another user or a dead one was not."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{MARK_VARIABLE}={mark}".encode() in environment.split(b"\0")


def parents() -> dict[int, int]:
    """Return the parent of every living process; zombies have ended and are left out."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError):
            # The name in parentheses may hold anything, so fields are counted from the last closing one.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] not in "ZX":
                found[int(entry.name)] = int(fields[1])
    return found


def started_by(mark: str, root: int) -> set[int]:
    """Return the ids of living processes that descend from ``root`` or carry ``mark``; ``root`` is not among them."""
    parent_of = parents()
    family = {pid for pid in parent_of if carries_mark(pid, mark)}
    grew = True
    while grew:
        children = {pid for pid, parent in parent_of.items() if parent in family or parent == root}
        grew = not children <= family
        family |= children
    return family - {root, os.getpid()}


def command_line(pid: int) -> str:
    """Return the command line of ``pid`` for a message, or a placeholder when it has ended."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        return b" ".join(words).decode(errors="replace") or "(no command line)"
    return "(ended)"


def wait_gone(pids: set[int], seconds: float) -> set[int]:
    """Wait until the processes have ended, at most ``seconds`` in all; return those that have not."""
    deadline = time.monotonic() + seconds
    staying: set[int] = set()
    for pid in sorted(pids):
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                staying.add(pid)
        finally:
            os.close(pidfd)
    return staying


def end(pids: set[int], mark: str) -> None:
    """Kill the processes by id: only those that carry ``mark``, checked again once a pidfd pins the id."""
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if carries_mark(pid, mark):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def main() -> None:
    """Wait for standard input to close, then end whatever still carries the mark given as the only argument."""
    mark = sys.argv[1]
    sys.stdin.buffer.read()
    for _ in range(3):  # a killed supervisor may have been about to start one more
        pids = {pid for pid in parents() if carries_mark(pid, mark)} - {os.getpid()}
        end(pids, mark)
        wait_gone(pids, 2.0)


if __name__ == "__main__":
    main()

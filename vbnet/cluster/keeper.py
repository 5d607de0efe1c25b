"""Runs somebody else's program so that it, and whatever it starts, ends with the process that wanted it.

    `vbnet monitor` ──lifeline (a pipe)──▶ keeper ──parent-death signal──▶ program ──▶ what that starts

The lifeline closes when its owner ends, however it ends. Then the keeper asks the program to end, insists after a
while, and ends every descendant: orphans come to the keeper (it is a subreaper), so none is out of its sight. Is the
keeper itself killed, the kernel kills the program.

Run as ``python -m vbnet.cluster.keeper LIFELINE_FD COMMAND...``; its exit code is the program's.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["keep", "main"]

END_DEADLINE_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_NOT_STARTED: Final = 127


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep a program; see the module's head."""
    lifeline, *command = sys.argv[1:] if arguments is None else arguments
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    keeper = os.getpid()

    def die_with_keeper() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(_NOT_STARTED)

    try:
        return keep(int(lifeline), command, die_with_keeper)
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error.strerror}\n")
        return _NOT_STARTED
    finally:
        _end_descendants()


def keep(lifeline: int, command: Sequence[str], before: Callable[[], None]) -> int:
    """Run a command until it ends or the lifeline closes; return its exit code.

    Raises:
        OSError: it cannot be run.
    """
    # Nothing else runs in this process, so nothing can hold a lock that the child would find locked.
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=before)  # noqa: S603, PLW1509
    ended = os.pidfd_open(process.pid)
    poll = select.poll()
    poll.register(lifeline, select.POLLIN | select.POLLHUP)
    poll.register(ended, select.POLLIN)
    if all(fd != ended for fd, _ in poll.poll()):
        process.terminate()
        try:
            process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def _end_descendants() -> None:
    """Kill children until there are none: those of a killed child become children here."""
    while children := list(_children()):
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> list[int]:
    own, found = str(os.getpid()).encode(), []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and (entry / "stat").read_bytes().rpartition(b")")[2].split()[1] == own:
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    sys.exit(main())

"""A machine of the test's own: a network namespace in which it runs whole labs, so that the real one stays as it is.

One process holds the namespace; it ends when the pipe to it closes, and with it everything that was made inside.
Programs enter with ``nsenter``. ``/sys`` still shows the real machine's interfaces in there, as it does wherever a
namespace is entered without remounting it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import Any, Self

LIMIT_S = 50.0


class Machine:
    """A context manager; inside, ``command`` turns any command into one that runs in the namespace."""

    def __init__(self) -> None:
        flags = ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]
        self._holder = subprocess.Popen(
            ["unshare", *flags, "sh", "-c", "ip link set lo up && echo ready && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self.prefix = nsenter(self._holder.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._holder.communicate(timeout=LIMIT_S)

    def run(self, *command: str, code: int = 0, **how: Any) -> str:
        """Run a program in the namespace, expect its exit code, and return what it printed."""
        return run([*self.prefix, *command], code, **how)

    def start(self, *command: str, **how: Any) -> subprocess.Popen[str]:
        """Start a program in the namespace, its output on a pipe."""
        return subprocess.Popen([*self.prefix, *command], **{"stdout": subprocess.PIPE, "text": True, **how})


def nsenter(pid: int) -> list[str]:
    """Return the command under which another one runs in the network namespace of a process."""
    entered = ["--net"] if os.geteuid() == 0 else ["--user", "--preserve-credentials", "--net"]
    return ["nsenter", f"--target={pid}", *entered, "--"]


def run(command: Sequence[str], code: int = 0, **how: Any) -> str:
    """Run a program, expect its exit code, and return what it printed."""
    options = {"capture_output": True, "text": True, "timeout": LIMIT_S, **how}
    finished = subprocess.run(command, check=False, **options)
    assert code == finished.returncode, f"{command}: {finished.stdout}{finished.stderr}"
    return str(finished.stdout)

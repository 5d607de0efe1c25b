"""The kernel's own switch as a peer: a bridge between two network namespaces, joined to it by veth pairs.

```text
   namespace        namespace         namespace
   eth0 ═══ veth ═══ veth0  bridge  veth1 ═══ veth ═══ eth0
```

Each namespace is held by a process that ends when the pipe to it closes, and everything in it ends with it. Programs
are started inside with ``nsenter``; as an ordinary user all of it is in a user namespace of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from vbnet.errors import ResourceError, UnsupportedError

__all__ = ["Bridge", "entering", "why_not_installed"]

_PROGRAMS: Final = ("ip", "nsenter", "unshare")
_READY: Final = "ready\n"
_END_SECONDS: Final = 5.0
_ENDS: Final = ("10.65.0.1", "10.65.0.2")


def why_not_installed() -> str | None:
    """Tell what to install to have this peer; ``None``: it is there."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(missing)} is not installed (Debian: iproute2 util-linux)" if missing else None


def entering(pid: int) -> list[str]:
    """Return the command under which another one runs in the network namespace of the process ``pid``."""
    entered = ["--net"] if os.geteuid() == 0 else ["--user", "--preserve-credentials", "--net"]
    return ["nsenter", f"--target={pid}", *entered, "--"]


class Bridge:
    """A bridge with two namespaces on it, MTU 1500, offloads as the kernel sets them up. A context manager.

    Raises:
        UnsupportedError: a program is missing. ResourceError: the kernel refused.
    """

    label = "kernel bridge, veth"
    address = _ENDS[1]
    """Of the second end."""

    def __init__(self) -> None:
        missing = why_not_installed()
        if missing is not None:
            raise UnsupportedError(missing)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            middle = self._hold(first=True)
            within = (
                [] if os.geteuid() == 0 else ["nsenter", f"--target={middle}", "--user", "--preserve-credentials", "--"]
            )
            self.pids = tuple(self._hold(*within) for _ in _ENDS)
            self._run(middle, "ip link add bridge0 type bridge && ip link set bridge0 up")
            for number, (pid, address) in enumerate(zip(self.pids, _ENDS, strict=True)):
                port = f"veth{number}"
                self._run(middle, f"ip link add {port} type veth peer name eth0 netns {pid}")
                self._run(middle, f"ip link set {port} master bridge0 && ip link set {port} up")
                self._run(pid, f"ip link set lo up && ip address add {address}/24 dev eth0 && ip link set eth0 up")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _hold(self, *prefix: str, first: bool = False) -> int:
        """Make a namespace: the process that holds it."""
        flags = ["--user", "--map-root-user", "--net"] if first and os.geteuid() != 0 else ["--net"]
        holder = subprocess.Popen(  # noqa: S603 - programs of the system
            [*prefix, "unshare", *flags, "sh", "-c", "echo ready && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(holder.communicate, timeout=_END_SECONDS)
        assert holder.stdout is not None  # noqa: S101 - asked for
        if holder.stdout.readline() != _READY:
            raise ResourceError("cannot make a network namespace; run as root, or allow user namespaces", errno=0)
        return holder.pid

    def _run(self, pid: int, line: str) -> None:
        command: Sequence[str] = [*entering(pid), "sh", "-c", line]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_END_SECONDS)  # noqa: S603
        if done.returncode != 0:
            raise ResourceError(f"cannot build the kernel's bridge: {line} ({done.stderr.strip()})", errno=0)

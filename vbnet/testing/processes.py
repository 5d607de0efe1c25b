"""Real processes for tests: a host node, and guests that a test may kill at any point."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from vbnet.bus.rundir import RunDir

__all__ = ["HostProcess", "PythonProcess", "count_fds", "count_own_fds"]

_PATIENCE_S = 20.0


def count_fds(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def count_own_fds() -> int:
    """How many descriptors this process has open, before a test opens more.

    Garbage is collected first: what an earlier test left of it may hold some, and would give them back while this one
    counts.
    """
    gc.collect()
    return count_fds(os.getpid())


class PythonProcess:
    """A Python program that tells its test, line by line, how far it is; a context manager that leaves nothing running.

    Args:
        source: the program; it prints lines and may wait for one on its standard input.
        arguments: its ``sys.argv[1:]``.
        prefix: a command to run it under, for instance ``["ip", "netns", "exec", "a"]``.
    """

    def __init__(self, source: str, arguments: Sequence[str] = (), *, prefix: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
            [*prefix, sys.executable, "-c", source, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(_PATIENCE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def line(self) -> str:
        """The next line it prints, without its end; empty when it ended."""
        return (self._process.stdout.readline() if self._process.stdout is not None else "").rstrip("\n")

    def tell(self, line: str) -> None:
        """Send it a line."""
        if self._process.stdin is not None:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """``kill -9``; returns when it is dead."""
        self._process.kill()
        self._process.wait(_PATIENCE_S)

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.send_signal(signal.SIGTERM)

    def pause(self) -> None:
        """Stop it where it is."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(_PATIENCE_S)


class HostProcess:
    """A host node process; a context manager that leaves nothing running. Ready when made.

    Args:
        run_root: folder for its run directory.
        arguments: more arguments for ``python -m vbnet.hostnode``.
        prefix: a command to run it under.
    """

    def __init__(self, run_root: Path, arguments: Sequence[str] = (), *, prefix: Sequence[str] = ()) -> None:
        self.run_dir = RunDir.for_node("host", run_root)
        ready, tell = os.pipe()
        program = [sys.executable, "-m", "vbnet.hostnode", "--node", "host", "--run-root", str(run_root)]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [*prefix, *program, "--ready-fd", str(tell), *arguments], pass_fds=[tell]
            )
        finally:
            os.close(tell)
        with os.fdopen(ready, "rb") as pipe:
            if pipe.read() != b"ready\n":
                code = self._process.wait(_PATIENCE_S)
                raise ChildProcessError(f"the host node did not start; exit code {code}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(_PATIENCE_S)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def kill(self) -> None:
        """``kill -9``; returns when it is dead."""
        self._process.kill()
        self._process.wait(_PATIENCE_S)

    def terminate(self) -> int:
        """Ask it to end; gives its exit code."""
        self._process.terminate()
        return self._process.wait(_PATIENCE_S)

"""A program with a prompt (DPDK's testpmd): started on one core, spoken to line by line, ended in any case.

Its output goes through a pseudo-terminal, because programs hold back what they print into a pipe. Everything it says is
kept, bounded, for the error message when it fails.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import time
import tty
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from vbnet.errors import DeadlineError, PeerGone
from vbnet.load.bench.side import child_command, child_environment, ends_in_time

__all__ = ["Program"]

_GRACE_SECONDS: Final = 3.0
_READ_BYTES: Final = 1 << 16
_KEPT_CHARS: Final = 1 << 18
_TAIL_CHARS: Final = 1500


class Program:
    """A running program with a prompt.

    Args:
        command: program and arguments.
        core: the core its main thread starts on; what it does later is its own affair. None: any.
        environment: variables it gets besides our own.
    """

    def __init__(self, command: Sequence[str], core: int | None, environment: Mapping[str, str] | None = None) -> None:
        self._name = command[0]
        self._said = ""
        self._screen, terminal = pty.openpty()
        try:
            tty.setraw(terminal)
            self._process = subprocess.Popen(  # noqa: S603 - a benchmark's own peer, found by its package
                child_command("become", "" if core is None else str(core), *command),
                stdin=subprocess.PIPE,
                stdout=terminal,
                stderr=subprocess.STDOUT,
                env={**child_environment(), **(environment or {})},
            )
        except BaseException:
            os.close(self._screen)
            raise
        finally:
            os.close(terminal)

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._process.pid

    def say(self, line: str) -> None:
        """Type ``line``.

        Raises:
            PeerGone: the program has ended.
        """
        stdin = self._process.stdin
        try:
            if stdin is not None:
                stdin.write(line.encode() + b"\n")
                stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def hear(self, pattern: str, seconds: float) -> str:
        """Wait until the output matches ``pattern``; answer everything up to its end and forget it.

        Raises:
            DeadlineError: it did not within ``seconds``.
            PeerGone: the program ended first.
        """
        expected = re.compile(pattern)
        deadline = time.monotonic() + seconds
        while (match := expected.search(self._said)) is None:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._screen], [], [], left)[0]:
                raise DeadlineError(
                    f"{self._name} did not say {pattern!r} in {seconds:g} s; last: {self._said[-_TAIL_CHARS:]}",
                    program=self._name,
                )
            try:
                chunk = os.read(self._screen, _READ_BYTES)
            except OSError:  # the terminal of a program that has ended
                chunk = b""
            if not chunk:
                raise self._gone()
            self._said = (self._said + chunk.decode(errors="replace").replace("\r", ""))[-_KEPT_CHARS:]
        heard, self._said = self._said[: match.end()], self._said[match.end() :]
        return heard

    def ask(self, line: str, pattern: str, seconds: float) -> str:
        """Type ``line`` and wait for ``pattern``; raises as :meth:`say` and :meth:`hear`."""
        self.say(line)
        return self.hear(pattern, seconds)

    def close(self, farewell: str = "") -> None:
        """End the program: with ``farewell`` if that helps, and by force otherwise."""
        if farewell:
            with contextlib.suppress(PeerGone):
                self.say(farewell)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._drain(_GRACE_SECONDS)
        ends_in_time(self._process, 0.1)
        os.close(self._screen)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drain(self, seconds: float) -> None:
        """Keep reading, or a program that says much on leaving never gets to it."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            if select.select([self._screen], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    os.read(self._screen, _READ_BYTES)

    def _gone(self) -> PeerGone:
        ends_in_time(self._process, _GRACE_SECONDS)
        return PeerGone(
            f"{self._name} ended with code {self._process.returncode}; last: {self._said[-_TAIL_CHARS:]}",
            program=self._name,
            code=self._process.returncode,
        )

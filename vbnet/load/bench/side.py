"""A process of its own for one side of a bench: pinned, asked by its parent, gone with it.

```text
   parent                              child (pinned to one core)
   Side("module:Class", core, …)  ──►  Class(**params)
   begin("push", count=…)         ──►  .push(count=…)          one request at a time, JSON lines over two pipes
   finish()                       ◄──  what it answered
   close(), or the parent's death ──►  end of input, then SIGKILL
```

Who is trusted: both are this user's; the child is ours. It is asked to die with its parent (PR_SET_PDEATHSIG), so
that a killed bench leaves nothing behind, and every answer has a deadline. Between requests a child sleeps in a read:
it takes nothing from a measurement that it has no part in.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import msgspec

from vbnet.errors import DeadlineError, PeerGone, ResourceError, UsageError

__all__ = ["Side", "become", "child_command", "child_environment", "ends_in_time", "serve"]

_PR_SET_PDEATHSIG: Final = 1
_GRACE_SECONDS: Final = 2.0
_START_SECONDS: Final = 30.0
_READ_BYTES: Final = 1 << 16
_TAIL_BYTES: Final = 2000


class _Request(msgspec.Struct):
    method: str
    arguments: dict[str, Any]


class _Reply(msgspec.Struct):
    result: Any = None
    error: str | None = None


class Side:
    """One side of a bench, running ``target`` in a process of its own.

    Args:
        target: ``module:Class``; the class is made with ``params`` and its public methods can be called.
        core: the core the process stays on.
        params: keyword arguments of the class; plain values.
        pass_fds: descriptors the child keeps, under the same numbers.

    Raises:
        PeerGone: the child ended before it was ready; the message carries the end of what it said.
        DeadlineError: it was not ready in time.
    """

    def __init__(
        self, target: str, core: int, params: dict[str, Any] | None = None, pass_fds: Sequence[int] = ()
    ) -> None:
        self._target = target
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._rest = b""
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            child_command("serve", str(core), target, msgspec.json.encode(params or {}).decode()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            pass_fds=pass_fds,
            env=child_environment(),
        )
        try:
            self.finish(_START_SECONDS)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def begin(self, method: str, **arguments: object) -> None:
        """Ask the child to run ``method``; :meth:`finish` gets its answer. One at a time.

        Raises:
            PeerGone: the child has ended.
        """
        stdin = self._process.stdin
        if stdin is None:
            raise PeerGone("this side was started without a way to ask it", target=self._target)
        try:
            stdin.write(msgspec.json.encode(_Request(method, dict(arguments))) + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def finish(self, seconds: float) -> Any:  # noqa: ANN401 - whatever the method answered, as JSON has it
        """Wait for the answer of the method begun last.

        Raises:
            DeadlineError: none came within ``seconds``.
            PeerGone: the child ended.
            ResourceError: the method failed; the message is the child's.
        """
        line = self._line(time.monotonic() + seconds)
        reply = msgspec.json.decode(line, type=_Reply)
        if reply.error is not None:
            raise ResourceError(f"{self._target} failed: {reply.error}", target=self._target)
        return reply.result

    def call(self, method: str, seconds: float, **arguments: object) -> Any:  # noqa: ANN401 - as finish
        """Run ``method`` in the child and wait for its answer; raises as :meth:`begin` and :meth:`finish`."""
        self.begin(method, **arguments)
        return self.finish(seconds)

    def close(self) -> None:
        """End the child: politely, then not. Harmless when it has ended."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        ends_in_time(self._process, _GRACE_SECONDS)
        self._words.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self, deadline: float) -> bytes:
        stdout = self._process.stdout
        if stdout is None:
            raise PeerGone("this side was started without a way to answer", target=self._target)
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                raise DeadlineError(f"{self._target} did not answer in time", target=self._target)
            chunk = os.read(stdout.fileno(), _READ_BYTES)
            if not chunk:
                raise self._gone()
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _gone(self) -> PeerGone:
        ends_in_time(self._process, _GRACE_SECONDS)
        size = self._words.seek(0, os.SEEK_END)
        self._words.seek(max(0, size - _TAIL_BYTES))
        words = self._words.read().decode(errors="replace").strip()
        return PeerGone(
            f"{self._target} ended with code {self._process.returncode}: {words or 'it said nothing'}",
            target=self._target,
            code=self._process.returncode,
        )


def ends_in_time(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for ``process`` to end; kill it after ``seconds``, and reap it either way."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def child_command(entry: str, *arguments: str) -> list[str]:
    """Build the command line that runs ``entry`` of this module in a process of its own."""
    return [sys.executable, "-c", f"from vbnet.load.bench.side import {entry}; {entry}()", *arguments]


def child_environment() -> dict[str, str]:
    """Build the environment in which a child finds the modules its parent found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}


def _settle(core: int | None) -> None:
    """Stay on one core, if it is given, and die with the parent."""
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise ResourceError("the system does not tell of a parent's death", errno=ctypes.get_errno())
    if os.getppid() != parent:
        raise PeerGone("the bench ended while this side came up")
    if core is not None:
        os.sched_setaffinity(0, {core})


def become() -> NoReturn:
    """Turn into another program, on one core and mortal: ``CORE PROGRAM ARGUMENT…`` (entry of a child process).

    An empty ``CORE`` leaves it on all of them.
    """
    core, program, *arguments = sys.argv[1:]
    _settle(int(core) if core else None)
    os.execvp(program, [program, *arguments])  # noqa: S606 - the point of it: no shell in between


def serve() -> None:
    """Answer a parent's requests until it closes the pipe: ``CORE TARGET PARAMS`` (entry of a child process)."""
    core, target, params = sys.argv[1:]
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    _settle(int(core))
    subject = _load(target)(**msgspec.json.decode(params))
    answers.write(msgspec.json.encode(_Reply()) + b"\n")
    for line in sys.stdin.buffer:
        answers.write(_answer(subject, msgspec.json.decode(line, type=_Request)) + b"\n")
    close = getattr(subject, "close", None)
    if close is not None:
        close()


def _answer(subject: object, request: _Request) -> bytes:
    if request.method.startswith("_"):
        return msgspec.json.encode(_Reply(error=f"{request.method} is not for others to call"))
    try:
        return msgspec.json.encode(_Reply(result=getattr(subject, request.method)(**request.arguments)))
    except Exception as error:  # noqa: BLE001 - told to the parent, who decides
        return msgspec.json.encode(_Reply(error=f"{type(error).__name__}: {error}"))


def _load(target: str) -> Any:  # noqa: ANN401 - any class the parent names
    module, separator, name = target.partition(":")
    if not separator:
        raise UsageError(f"a side is named module:Class; got {target!r}", target=target)
    return getattr(importlib.import_module(module), name)

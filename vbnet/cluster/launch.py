"""Guest processes: started in milliseconds, and never outliving the lab.

A *fork server* (``multiprocess``) is started once with everything a guest needs already imported; each guest process
is a fork of it. The chain of lives is: supervisor → (a pipe closes) → fork server → (parent-death signal) → every
guest process. Whoever is killed, with whatever signal, those behind it end too.

The child reports on a socket made for it: one short message a guest (``ready``, ``failed``). The supervisor reads it
without blocking and with a length limit; a process that writes nonsense there harms only its own standing.

Danger: the fork server's own lifeline is inherited by its children. A child that kept it open would keep the fork
server alive after the supervisor's death, so the first thing a child does is to close it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import msgspec

from vbnet.bus.rundir import RunDir
from vbnet.cluster.plan import ProcessPlan
from vbnet.cluster.process import MARK, Identity, identify, is_alive, send_signal
from vbnet.cluster.state import LAUNCH
from vbnet.errors import ResourceError, VbnetError

ENTRIES = {
    "host": "vbnet.cluster.guests.host:run",
    "python": "vbnet.cluster.guests.python:run",
    "stack": "vbnet.cluster.guests.stack:run",
    "netns": "vbnet.cluster.guests.netns:run",
    "traffic": "vbnet.cluster.guests.traffic:run",
}
"""The function that runs each kind of process, as ``module:function``; it gets a :class:`Job`."""

PRELOAD_ALWAYS = ("vbnet.cluster.launch", "vbnet.guestnode", "asyncio", "zmq.asyncio")
REPORT_LENGTH_MAX_BYTES = 4096
REPORTS_PER_TURN = 1024
ORDER_LENGTH_MAX_BYTES = 64 << 10
GO = b"go"
HOST_GONE = 7
"""Exit code of a guest whose host node ended, the same as the command line's."""
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a guest process tells its supervisor about one guest."""

    guest: str
    state: str
    detail: str = ""


class Order(msgspec.Struct, frozen=True):
    """What a new process is told: its plan, and where the host node is."""

    process: ProcessPlan
    folder: str
    entry: str
    workers: int = 1


class Job:
    """A process's view of its order, with the way to report back."""

    def __init__(self, order: Order, reports: socket.socket) -> None:
        self.process = order.process
        self.folder = Path(order.folder)
        self.workers = order.workers
        self.entry = order.entry
        self.reports = reports

    def report(self, guest: str, state: str, detail: str = "") -> None:
        """Tell the supervisor about one guest. A supervisor that is gone is not an error: this process ends anyway."""
        message = msgspec.json.encode(Report(guest, state, detail[: REPORT_LENGTH_MAX_BYTES // 8]))
        with suppress(OSError):
            self.reports.send(message)

    async def gone_ahead(self) -> None:
        """Wait until the supervisor says that every guest of the lab is ready.

        A program may then expect its peers to answer. Without a deadline on purpose: the supervisor has one, and
        when it gives up or dies, this process ends with it.
        """
        import asyncio  # noqa: PLC0415 -- loaded by every guest that waits

        self.reports.settimeout(0)
        await asyncio.get_running_loop().sock_recv(self.reports, len(GO))

    async def order(self) -> bytes:
        """Wait for what the supervisor wants next, after it has said go; what it means is the guest's own matter."""
        import asyncio  # noqa: PLC0415 -- loaded by every guest that waits

        return await asyncio.get_running_loop().sock_recv(self.reports, ORDER_LENGTH_MAX_BYTES)

    def wait_gone_ahead(self) -> None:
        """Like :meth:`gone_ahead`, for a process without an event loop of its own."""
        self.reports.settimeout(None)
        self.reports.recv(len(GO))


class Process:
    """A started process, seen from the supervisor."""

    def __init__(self, process: Any, reports: socket.socket) -> None:  # noqa: ANN401 -- multiprocess has no types
        self._process = process
        self.reports = reports
        self.identity: Identity | None = identify(process.pid)
        self.has_hung_up = False

    @property
    def pid(self) -> int:
        """Its process number."""
        return int(self._process.pid)

    @property
    def sentinel(self) -> int:
        """A descriptor that becomes readable when the process has ended."""
        return int(self._process.sentinel)

    def exit_code(self) -> int | None:
        """Return its exit code (negative: the signal that ended it), or None while it runs."""
        self._process.join(0)
        code = self._process.exitcode
        return None if code is None else int(code)

    def take_reports(self) -> Iterable[Report]:
        """Yield the reports that have come, a bounded number at a turn; what is no report is skipped."""
        for _ in range(REPORTS_PER_TURN):
            try:
                message = self.reports.recv(REPORT_LENGTH_MAX_BYTES)
            except BlockingIOError:
                return
            except ConnectionError:
                message = b""
            if not message:
                self.has_hung_up = True
                return
            with suppress(msgspec.DecodeError, UnicodeDecodeError):
                yield msgspec.json.decode(message, type=Report)

    def signal(self, number: int) -> None:
        """Signal the process and what it started in its session; nothing happens when it has ended."""
        if is_alive(self.identity):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
        if self.identity is not None:
            send_signal(self.identity, number)

    def go(self) -> None:
        """Tell the process that the whole lab can pass traffic, so that its own work may begin."""
        with suppress(OSError):
            self.reports.send(GO)

    def order(self, message: bytes) -> None:
        """Tell the process what to do next, at most :data:`ORDER_LENGTH_MAX_BYTES` at once.

        Raises:
            ResourceError: it has not taken many orders before, or the message is too long.
        """
        try:
            self.reports.send(message)
        except ConnectionError:
            return  # it is ending, and its end is told in another way
        except OSError as error:
            raise ResourceError(
                f"cannot tell process {self.pid} what to do: {error}", errno=error.errno or 0
            ) from error

    def close(self) -> None:
        """Free what the supervisor holds for it, once it has ended."""
        self.reports.close()
        with suppress(ValueError):
            self._process.close()


class Launcher:
    """Starts the processes of one lab. Made before anything else of the lab runs.

    Args:
        folder: the lab's folder; logs and the fork server's own socket live there.
        instance: the lab's instance, the mark of every descendant.
        kinds: kinds of process this lab will have; what they import is loaded once, ahead.
        entries: other functions for some kinds, as ``module:function``.
    """

    def __init__(
        self, folder: Path, instance: str, kinds: Iterable[str], entries: Mapping[str, str] | None = None
    ) -> None:
        import multiprocess  # noqa: PLC0415 -- only a supervisor pays for it
        from multiprocess import process as current  # noqa: PLC0415

        self.folder = folder
        self.entries = {**ENTRIES, **(entries or {})}
        (folder / LAUNCH).mkdir(mode=0o700, exist_ok=True)
        current.current_process()._config["tempdir"] = str(folder / LAUNCH)  # noqa: SLF001 -- no public way
        os.environ[MARK] = instance
        self._context = multiprocess.get_context("forkserver")
        modules = [self.entries[kind].partition(":")[0] for kind in sorted(set(kinds))]
        extra = ["pyroute2"] if "netns" in set(kinds) else []
        self._context.set_forkserver_preload([*PRELOAD_ALWAYS, *modules, *extra])

    def start(self, plan: ProcessPlan, workers: int = 1) -> Process:
        """Start a process.

        Raises:
            ResourceError: the machine has no room for another process.
        """
        order = Order(plan, str(self.folder), self.entries[plan.kind], workers)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        process = self._context.Process(target=_child, args=(msgspec.json.encode(order), theirs), daemon=False)
        try:
            with _without_main():
                process.start()
        except (OSError, EOFError) as error:
            ours.close()
            number = getattr(error, "errno", None) or 0
            raise ResourceError(
                f"cannot start process {plan.name} ({error}); see `vbnet doctor` for this machine's limits",
                errno=number,
            ) from error
        finally:
            theirs.close()
        return Process(process, ours)

    def close(self) -> None:
        """End the fork server (with it, whatever of the lab still runs)."""
        from multiprocess import forkserver, resource_tracker  # noqa: PLC0415

        with suppress(OSError):
            forkserver._forkserver._stop()  # noqa: SLF001 -- the module has no public way to end it
        with suppress(OSError, AttributeError):
            resource_tracker._resource_tracker._stop()  # noqa: SLF001 -- same
        os.environ.pop(MARK, None)


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the program that runs the lab while a child is described.

    ``multiprocess`` would import that program again in every child, which costs time and, in a script without a
    ``__main__`` guard, would run the lab again. Nothing that a guest runs comes from there.
    """
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


def die_with_parent() -> None:
    """End this process when the one that started it ends, however that happens."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise ResourceError("the kernel refused a parent-death signal", errno=ctypes.get_errno())


def _child(encoded: bytes, reports: socket.socket) -> NoReturn:
    """Run in the new process: tie its life to the lab's, send its output to its log, run its entry."""
    from multiprocess import forkserver, process  # noqa: PLC0415

    die_with_parent()
    for name in ("_forkserver_alive_fd",):
        fd = getattr(forkserver._forkserver, name)  # noqa: SLF001 -- see the module's head: this lifeline is not for us
        if fd is not None:
            os.close(fd)
            setattr(forkserver._forkserver, name, None)  # noqa: SLF001
    parent = process.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(1)
    os.setsid()
    order = msgspec.json.decode(encoded, type=Order)
    redirect_output(RunDir(Path(order.folder)).logs / f"{order.process.name}.log")
    ctypes.CDLL(None).prctl(_PR_SET_NAME, f"vb:{order.process.name}".encode()[:15], 0, 0, 0)
    signal.signal(signal.SIGTERM, _ended_by_signal)
    code = run_job(Job(order, reports))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _ended_by_signal(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


def run_job(job: Job) -> int:
    """Run a job's entry in this process and return the exit code; failures go to the log and to the supervisor."""
    try:
        module, _, function = job.entry.partition(":")
        entry: Callable[[Job], int] = getattr(importlib.import_module(module), function)
        return entry(job)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        return 130
    except VbnetError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201 -- this is the guest's log
        _report_failure(job, str(error))
        return 1
    except BaseException as error:  # noqa: BLE001 -- the last door of a process: everything goes to its log
        traceback.print_exc()
        _report_failure(job, f"{type(error).__name__}: {error}")
        return 1


def _report_failure(job: Job, detail: str) -> None:
    for guest in job.process.guests:
        job.report(guest.name, "failed", detail)


def redirect_output(log: Path) -> None:
    """Send everything this process prints, also from native code and children, to the end of ``log``."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(log, flags, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

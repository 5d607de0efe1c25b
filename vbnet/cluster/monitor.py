"""Prometheus and Grafana beside running labs: found, configured, started, and gone when whoever wanted them is.

    run directories ◀── exporter ◀── Prometheus (rules and alerts of vbnet) ◀── Grafana (dashboards of vbnet)

All three listen at this machine's loopback and are children of one process: the exporter by the parent-death signal,
the two others by a keeper each (keeper.py). Their configuration (monitor_files.py) and data are in one folder with mode
0700, which belongs to one monitor at a time; keepers inherit its lock, so it is held until the last of them is gone.
Danger: the folder is removed at the end, so only one that a monitor made, and was not told to keep, is.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

import msgspec

from vbnet.bus.filelock import hold, is_held
from vbnet.cluster.monitor_files import LOOPBACK, grafana_command, grafana_configuration, prometheus_configuration
from vbnet.errors import (
    BusyError,
    DeadlineError,
    NotFoundError,
    NotPermittedError,
    PeerGone,
    ResourceError,
    UsageError,
    VbnetError,
)
from vbnet.telemetry import shipped

__all__ = ["FOLDER", "Interrupted", "Missing", "Monitor", "Options", "Program", "is_abandoned", "missing_programs"]

FOLDER: Final = ".monitor"
"""Of the data in the folder of run directories; no node can have a name that begins with a dot."""

LOCK: Final = "monitor.lock"
READY_DEADLINE_S: Final = 60.0
_END_DEADLINE_S: Final = 10.0
_ANSWER_DEADLINE_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.05
_PORTS: Final = {"prometheus": 9090, "grafana": 3000}
_LOG_LINES: Final = 3


class Interrupted(VbnetError):  # noqa: N818 -- a decision of the user, no fault
    """The user stopped before everything was ready. What was started has ended again."""

    exit_code = 130


class Missing(msgspec.Struct, frozen=True):
    """A program that is not installed, and what to do about it."""

    program: str
    fix: str


class Program(msgspec.Struct, frozen=True):
    """One of the three that answers, and where."""

    program: str
    address: str


@dataclass(frozen=True, slots=True)
class Options:
    """What to monitor and how.

    Attributes:
        root: the folder of run directories.
        labs: only these; empty: every host node there is or will be.
        data: folder to keep data in; None: in ``root``, removed at the end.
        prometheus_port, grafana_port: ports at loopback; None: the usual one if it is free, else another.
        exporter: ``ADDRESS:PORT`` of one that runs already; None: start one.
    """

    root: Path
    labs: Sequence[str] = ()
    data: Path | None = None
    prometheus_port: int | None = None
    grafana_port: int | None = None
    exporter: str | None = None


def missing_programs() -> list[Missing]:
    """Return what is not on the path, with how to install it."""
    missing = []
    if shutil.which("prometheus") is None:
        missing.append(
            Missing(
                "prometheus",
                "on Debian or Ubuntu `apt-get install prometheus`; else unpack a release of the Prometheus project and "
                "put its `prometheus` on PATH. Until then there is the exporter alone",
            )
        )
    if grafana_command() is None:
        missing.append(
            Missing(
                "grafana",
                "Debian has none: take the package or the archive that Grafana Labs offers for your system, 11.6 or "
                "newer, and put its `grafana` on PATH. Until then Prometheus' own pages show what there is",
            )
        )
    return missing


def is_abandoned(folder: Path) -> bool:
    """Say whether a monitor made this folder and none uses it any more."""
    return (folder / LOCK).is_file() and not folder.is_symlink() and is_held(folder / LOCK) is False


class Monitor:
    """The programs of one monitor; a context manager that leaves nothing running.

    Args:
        options: what to monitor and how.
        stopped: set when the user has had enough, also while programs start.

    Raises:
        Interrupted: stopped before all were ready. NotFoundError: no exporter is where one should be.
        BusyError: the folder or a port is another's. UsageError: the folder holds something else.
        ResourceError: a program ended instead of starting. DeadlineError: it did not answer in time.
    """

    def __init__(self, options: Options, stopped: threading.Event) -> None:
        self.options = options
        self._stopped = stopped
        self.data = options.root / FOLDER if options.data is None else options.data.absolute()
        self._stack = ExitStack()
        self._kept: dict[str, _Kept] = {}
        self._exporter = options.exporter or ""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self.options.data is None:
                _make_root(self.options.root)
            lock = _claim(self.data)
            stack.callback(os.close, lock)
            if self.options.data is None:
                # Before the lock is let go of, and after every program has ended.
                stack.callback(shutil.rmtree, self.data, ignore_errors=True)
            (self.data / "logs").mkdir(mode=0o700, exist_ok=True)
            if not self._exporter:
                self._exporter = self._start_exporter(stack)
            elif _get(f"http://{self._exporter}/sd") is None:
                raise NotFoundError(
                    f"no exporter answers at http://{self._exporter}/sd; start one with `vbnet metrics serve`, or "
                    "leave the option --exporter out",
                    exporter=self._exporter,
                )
            if shutil.which("prometheus") is not None:
                prometheus = self._start_prometheus(stack, lock)
                if (command := grafana_command()) is not None:
                    self._start_grafana(stack, lock, command, prometheus)
            for kept in self._kept.values():
                kept.wait_ready(self._stopped)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def programs(self) -> list[Program]:
        """Every program that was started, or found running."""
        exporter = Program("exporter", f"http://{self._exporter}")
        return [exporter, *(Program(kept.name, kept.address) for kept in self._kept.values())]

    def check(self) -> None:
        """Look whether all of them still run.

        Raises:
            PeerGone: one has ended.
        """
        for kept in self._kept.values():
            if (code := kept.exit_code()) is not None:
                raise PeerGone(f"{kept.name} ended (exit code {code}): {kept.last_words()}")

    def scraped(self) -> dict[str, str] | None:
        """Which labs Prometheus reads, each `up`, `down`, or `unknown` before the first time; None: it is silent."""
        answer = self._ask("/api/v1/targets?state=active")
        if answer is None:
            return None
        targets = [target for target in answer.get("activeTargets", []) if target["labels"]["job"] == "vbnet"]
        return {target["labels"].get("lab", "?"): target["health"] for target in targets}

    def firing(self) -> list[str] | None:
        """Names of the alerts that fire; None: Prometheus does not say."""
        answer = self._ask("/api/v1/alerts")
        if answer is None:
            return None
        firing = (alert for alert in answer.get("alerts", []) if alert.get("state") == "firing")
        return sorted({str(alert["labels"].get("alertname", "?")) for alert in firing})

    def _ask(self, path: str) -> dict[str, Any] | None:
        prometheus = self._kept.get("prometheus")
        body = None if prometheus is None else _get(f"{prometheus.address}{path}")
        if body is None:
            return None
        try:
            answer = json.loads(body)
        except ValueError:
            return None
        return answer["data"] if answer.get("status") == "success" else None

    # ---- the three ---------------------------------------------------------------------------------------------------

    def _start_exporter(self, stack: ExitStack) -> str:
        from vbnet.telemetry.serve import ExporterProcess  # noqa: PLC0415 -- whoever has one does without

        log = self.data / "logs" / "exporter.log"
        exporter = stack.enter_context(
            ExporterProcess(f"{LOOPBACK}:0", web_config=None, node=None, root=self.options.root, log=log)
        )
        return exporter.address

    def _start_prometheus(self, stack: ExitStack, lock: int) -> str:
        configuration = self.data / "prometheus.yml"
        configuration.write_text(json.dumps(prometheus_configuration(self._exporter, self.options.labs), indent=1))
        port = _free_port(stack, "prometheus", self.options.prometheus_port)
        # What is removed at the end need not be kept for long, and may be in memory: the run directory often is.
        retention = ["2h", "256MB"] if self.options.data is None else ["15d", "0"]
        command = [
            "prometheus",
            f"--config.file={configuration}",
            f"--storage.tsdb.path={self.data / 'prometheus'}",
            f"--storage.tsdb.retention.time={retention[0]}",
            f"--storage.tsdb.retention.size={retention[1]}",
            f"--web.listen-address={LOOPBACK}:{port}",
            "--log.level=warn",
        ]
        return self._keep(stack, lock, _Kept("prometheus", command, port, ready="/-/ready", logs=self.data / "logs"))

    def _start_grafana(self, stack: ExitStack, lock: int, command: list[str], prometheus: str) -> None:
        port = _free_port(stack, "grafana", self.options.grafana_port)
        home = self.data / "grafana"
        home.mkdir(mode=0o700, exist_ok=True)
        (home / "grafana.ini").write_text(grafana_configuration(home, port))
        dashboards = str(shipped.DEPLOY / "grafana" / "dashboards")
        variables = {"VBNET_DASHBOARDS": dashboards, "PROMETHEUS_URL": prometheus}
        whole = [*command, f"--config={home / 'grafana.ini'}"]
        kept = _Kept("grafana", whole, port, ready="/api/health", logs=self.data / "logs", variables=variables)
        self._keep(stack, lock, kept)

    def _keep(self, stack: ExitStack, lock: int, kept: _Kept) -> str:
        stack.callback(kept.end)
        kept.start(lock)
        self._kept[kept.name] = kept
        return kept.address


class _Kept:
    """A program under a keeper.

    Args:
        name: what it is called here.
        command: how it is started.
        port: where it answers.
        ready: path that answers well once it is ready.
        logs: folder of its log.
        variables: for its environment.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        *,
        ready: str,
        logs: Path,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.name, self.address = name, f"http://{LOOPBACK}:{port}"
        self._command, self._variables = command, variables
        self._ready, self._log = f"{self.address}{ready}", logs / f"{name}.log"
        self._lifeline = -1
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, lock: int) -> None:
        """Start it; the lock is held by its keeper too."""
        theirs, self._lifeline = os.pipe()
        # Settings of another Grafana in the environment would come before those in the file.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GF_")}
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 -- the program that was found on the user's path
                    [sys.executable, "-m", "vbnet.cluster.keeper", str(theirs), *self._command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs, lock),
                    env={**environment, **self._variables},
                    start_new_session=True,
                )
        finally:
            os.close(theirs)

    def wait_ready(self, stopped: threading.Event) -> None:
        """Wait until it answers.

        Raises:
            Interrupted: stopped first. ResourceError: it ended. DeadlineError: it does not answer.
        """
        deadline = time.monotonic() + READY_DEADLINE_S
        while _get(self._ready) is None:
            if (code := self.exit_code()) is not None:
                raise ResourceError(f"{self.name} ended (exit code {code}) instead of starting: {self.last_words()}")
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"{self.name} does not answer at {self._ready} after {READY_DEADLINE_S:g} s: {self.last_words()}"
                )
            if stopped.wait(_LOOK_EVERY_S):
                raise Interrupted(f"stopped before {self.name} answered; everything was ended again")

    def exit_code(self) -> int | None:
        """Return its exit code, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def last_words(self) -> str:
        """Return the end of its log."""
        with suppress(OSError):
            lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            return " | ".join(line.strip()[:200] for line in lines) or "it said nothing"
        return "it left no log"

    def end(self) -> None:
        """End it and what it started; harmless when it has ended."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self._process is not None:
            try:
                self._process.wait(_END_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()  # the keeper: the kernel kills the program
                self._process.wait()


# ---- folder and ports ------------------------------------------------------------------------------------------------


def _make_root(root: Path) -> None:
    """Make the folder of run directories as a host node would: it refuses one that is open to others."""
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot make {root}: {error.strerror}", errno=error.errno or 0) from error


def _claim(folder: Path) -> int:
    """Make the folder or take it over, and return its lock."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        is_foreign = any(folder.iterdir()) and not (folder / LOCK).is_file()
    except FileExistsError:
        raise NotPermittedError(f"{folder} is no folder; nothing was changed", path=str(folder)) from None
    except OSError as error:
        raise ResourceError(f"cannot use {folder}: {error.strerror}", errno=error.errno or 0) from error
    if folder.is_symlink() or status.st_uid != os.geteuid():
        raise NotPermittedError(f"{folder} is a link or another user's; it was not used", path=str(folder))
    if is_foreign:
        raise UsageError(
            f"{folder} holds something else than data of `vbnet monitor`; name an empty folder, or one that is not "
            "there yet",
            path=str(folder),
        )
    folder.chmod(0o700)
    fd = hold(folder / LOCK)
    if fd is None:
        raise BusyError(
            f"a `vbnet monitor` (process {_holder(folder)}) uses {folder} already; look at what it printed, end it, or "
            "name another folder with --data",
            path=str(folder),
        )
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _holder(folder: Path) -> str:
    try:
        with (folder / LOCK).open("rb") as file:
            return file.read(32).decode(errors="replace").strip()
    except OSError:  # it has ended in this moment
        return "?"


def _free_port(stack: ExitStack, program: str, wanted: int | None) -> int:
    """Return the wanted port, or the program's usual one, or any; it is free, and no other monitor takes it meanwhile.

    Raises:
        BusyError: the wanted one is taken. NotPermittedError: this user may not use it.
    """
    for candidate in (_PORTS[program], 0) if wanted is None else (wanted,):
        # The program listens a while later. Until then a name that only one process of this machine can have, and
        # that goes with it, keeps monitors that start at the same time from choosing the same port.
        claim = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, candidate))
            except PermissionError as error:
                claim.close()
                raise NotPermittedError(
                    f"not permitted to listen at port {candidate}; choose one above 1023"
                ) from error
            port = int(probe.getsockname()[1])
            claim.bind(f"\0vbnet-monitor-{port}")
            stack.enter_context(claim)
            return port
        claim.close()
    raise BusyError(
        f"port {wanted} of {LOOPBACK} is taken; choose another with --{program}-port, or leave the option out",
        port=wanted,
    )


def _get(url: str) -> bytes | None:
    """Return the body of a good answer, or None."""
    import urllib.request  # noqa: PLC0415 -- takes long to load, and `vbnet clean` asks nobody

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no business on this machine
    try:
        with opener.open(url, timeout=_ANSWER_DEADLINE_S) as answer:
            return bytes(answer.read()) if answer.status == 200 else None  # noqa: PLR2004 -- HTTP's word for yes
    except (OSError, ValueError):
        return None

"""The exporter as a process: by itself (`vbnet metrics serve`), or as the child of a host node or a lab.

A child gets the listening socket from its parent, so that a taken port is told at once and a restart loses no client.
It ends with its parent, however that ended and whatever state the child is in: the kernel kills it (parent-death
signal).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from vbnet.bus.closing import Closing
from vbnet.errors import DeadlineError, VbnetError
from vbnet.telemetry.server import Listen, MetricsServer, check_exposure
from vbnet.telemetry.webconfig import WebConfigFile

__all__ = ["EXPORTER_LOG", "ExporterProcess", "main", "prepare", "serve"]

EXPORTER_LOG: Final = "_metrics.log"
"""In the folder of logs."""

_PR_SET_PDEATHSIG: Final = 1
_READY_DEADLINE_S: Final = 15.0
_END_DEADLINE_S: Final = 2.0
_RESTART_MIN_S, _RESTART_MAX_S = 0.5, 30.0


def prepare(listen: str, web_config: Path | None) -> tuple[socket.socket, WebConfigFile]:
    """Read the web configuration, hold to the rule about who may reach it, and listen.

    Raises:
        UsageError: the address or the configuration is none. NotPermittedError: others could read.
        BusyError: the port is taken.
    """
    where = Listen.parse(listen)
    web = WebConfigFile(web_config, partial(check_exposure, where))
    return where.open(), web


def serve(server: MetricsServer, on_ready: Callable[[], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_serve(server, on_ready))


async def _serve(server: MetricsServer, on_ready: Callable[[], None] | None) -> None:
    task = asyncio.ensure_future(server.serve())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    if on_ready is not None:
        on_ready()
    await task


class ExporterProcess(Closing):
    """An exporter in a process of its own, started again when it dies; a context manager. Returns before it serves.

    Args:
        listen: ``ADDRESS:PORT``.
        web_config: TLS and users, or None.
        node: the node it serves; None: every node of ``root``.
        root: where run directories are.
        log: what it prints goes to the end of this file.

    Raises:
        UsageError, NotPermittedError, BusyError: as ``prepare``.
    """

    def __init__(self, listen: str, *, web_config: Path | None, node: str | None, root: Path, log: Path) -> None:
        self._listening, _ = prepare(listen, web_config)
        host, port = self._listening.getsockname()[:2]
        self.address = str(Listen(host, port))
        self._command = [sys.executable, "-m", "vbnet.telemetry.serve", f"--root={root.absolute()}"]
        if node is not None:
            self._command.append(f"--node={node}")
        if web_config is not None:
            self._command.append(f"--web-config={web_config.absolute()}")
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready, self._is_stopping = threading.Event(), threading.Event()
        self._changing = threading.Lock()
        # The kernel ends the child with the thread that started it, so one thread does that, and lives as long.
        self._thread = threading.Thread(target=self._keep, name="vbnet-exporter", daemon=True)
        self._thread.start()

    def wait_ready(self) -> None:
        """Wait until it serves.

        Raises:
            DeadlineError: it did not start in time.
        """
        if not self._is_ready.wait(_READY_DEADLINE_S):
            raise DeadlineError(f"the metrics exporter did not start within {_READY_DEADLINE_S:g} s; see {self._log}")

    @property
    def pid(self) -> int | None:
        """Its process number, while there is one."""
        process = self._process
        return None if process is None else process.pid

    def close(self) -> None:
        """End it; harmless when it was ended before."""
        self._is_stopping.set()
        with self._changing:
            if self._process is not None:
                _end(self._process)
        self._thread.join()
        self._listening.close()

    def _keep(self) -> None:
        pause_s = _RESTART_MIN_S
        while not self._is_stopping.is_set():
            with self._changing:
                if self._is_stopping.is_set():
                    return
                self._process, ready = self._start()
            with os.fdopen(ready, "rb") as pipe:
                if pipe.read():
                    self._is_ready.set()
                    pause_s = _RESTART_MIN_S
            self._process.wait()
            self._is_stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _RESTART_MAX_S)

    def _start(self) -> tuple[subprocess.Popen[bytes], int]:
        reader, writer = os.pipe()
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fds = (self._listening.fileno(), writer)
        own = [f"--listen-fd={fds[0]}", f"--ready-fd={fds[1]}", f"--parent={os.getpid()}"]
        try:
            process = subprocess.Popen(  # noqa: S603 -- our own program
                [*self._command, *own],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                start_new_session=True,
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
            os.close(log)
        return process, reader


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_DEADLINE_S)
    except subprocess.TimeoutExpired:  # stopped, or hung
        process.kill()
        process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m vbnet.telemetry.serve``, for parents: 0 when it ended as asked, 1 when it could not start."""
    parser = argparse.ArgumentParser(prog="python -m vbnet.telemetry.serve", description="Serve metrics for a parent.")
    parser.add_argument("--listen-fd", type=int, required=True, help="the listening socket")
    parser.add_argument("--ready-fd", type=int, required=True, help="told 'ready', then closed")
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    parser.add_argument("--node", default=None, help="the node to serve; all when left out")
    parser.add_argument("--root", type=Path, required=True, help="folder of run directories")
    parser.add_argument("--web-config", type=Path, default=None, help="TLS and users")
    chosen = parser.parse_args(arguments)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != chosen.parent:
        return 1
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("vbnet-metrics", encoding="ascii")
    try:
        listening = socket.socket(fileno=chosen.listen_fd)
        web = WebConfigFile(chosen.web_config, partial(check_exposure, Listen(*listening.getsockname()[:2])))
        server = MetricsServer(listening, web, chosen.node, chosen.root)
        serve(server, lambda: _tell_ready(chosen.ready_fd))
    except VbnetError as error:
        sys.stderr.write(f"vbnet metrics: {error}\n")
        return 1
    return 0


def _tell_ready(fd: int) -> None:
    with os.fdopen(fd, "wb") as pipe:
        pipe.write(b"ready\n")


if __name__ == "__main__":
    sys.exit(main())

"""The life of a supervisor: bring a lab up, watch it, and take it down whatever ends it.

Also the way in for other processes: start a supervisor in the background, ask a running one to stop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from vbnet.bus.rundir import RunDir
from vbnet.cluster import clean, process
from vbnet.cluster.lab import Lab, LabEvent
from vbnet.cluster.state import is_locked, read_state
from vbnet.errors import BusyError, VbnetError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SUPERVISOR_LOG = "_supervisor.log"


class Interrupted(VbnetError):  # noqa: N818 -- a decision of the user, no fault
    """The user stopped a lab before it was ready. Everything of it was taken down again."""

    exit_code = 130


async def supervise(lab: Lab, timeout_s: float, on_ready: Callable[[], None] | None = None) -> int:
    """Run a lab until its guests have ended or somebody stops it; nothing of it is left then.

    Args:
        lab: the lab.
        timeout_s: how long bring-up may take.
        on_ready: called once every guest can pass traffic.

    Returns:
        0 when the guests ended well or the lab was stopped, 1 when a guest failed for good.

    Raises:
        Interrupted: stopped before it was ready.
        VbnetError: it could not come up, or lost its host node.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    try:
        if not await _unless(stopped, lab.up(timeout_s)):
            raise Interrupted(f"stopped before lab {lab.plan.lab} was ready; taken down")
        if on_ready is not None:
            on_ready()
        running = asyncio.ensure_future(lab.run())
        await _unless(stopped, running)
        return 0 if running.cancelled() else running.result()
    finally:
        await lab.down()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


async def _unless(stopped: asyncio.Event, work: object) -> bool:
    """Do ``work`` unless stopped first; say whether it was done. Its failure is raised."""
    doing = asyncio.ensure_future(work)  # type: ignore[call-overload]
    stopping = asyncio.ensure_future(stopped.wait())
    await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not doing.done():
        doing.cancel()
    await asyncio.wait({doing})
    if doing.cancelled():
        return False
    doing.result()
    return True


class Background:
    """A supervisor in a process of its own, and what it reports while the lab comes up.

    Args:
        command: the command that supervises the lab in the foreground; gets ``--report-fd N``.
        lab: the lab's name.
        root: where run directories live.

    Raises:
        BusyError: the lab is up already.
    """

    def __init__(self, command: list[str], lab: str, root: Path | None = None) -> None:
        self.run_dir = RunDir.for_node(lab, root)
        self.run_dir.create()
        if is_locked(self.run_dir.path):
            raise BusyError(f"lab `{lab}` is up already; end it with `vbnet down {lab}`")
        reader, writer = os.pipe()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        log = os.open(self.run_dir.logs / SUPERVISOR_LOG, flags, 0o600)
        self._process = subprocess.Popen(  # noqa: S603 -- our own command
            [*command, "--report-fd", str(writer)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,
        )
        os.close(writer)
        os.close(log)
        self._reports = os.fdopen(reader, "rb")

    def events(self) -> Iterator[LabEvent]:
        """Yield the steps of the bring-up; ends when the lab is ready, or the supervisor has ended."""
        for line in self._reports:
            event = msgspec.json.decode(line, type=LabEvent)
            yield event
            if event.step == "lab" and event.state == "ready":
                break

    def stop(self) -> None:
        """Have the lab taken down again, and wait for that."""
        self._process.terminate()
        self._process.wait()

    def wait(self) -> int:
        """Wait until the supervisor has ended, and return its exit code."""
        return self._process.wait()


def own_command() -> list[str]:
    """Return the command that runs this command line again, whatever it was started as."""
    return [sys.executable, "-m", "vbnet.cli.main"]


def stop_lab(folder: Path, timeout_s: float = 20.0) -> str:
    """End the lab of a folder: ask its supervisor, else end it by force; nothing is left.

    Returns:
        How it was done: ``stopped``, ``killed`` or ``cleaned`` (its supervisor was dead already).
    """
    state = read_state(folder)
    how = "cleaned"
    if process.send_signal(state.supervisor, signal.SIGTERM):
        how = "stopped"
        if not process.wait_ended(state.supervisor, timeout_s):
            process.send_signal(state.supervisor, signal.SIGKILL)
            process.wait_ended(state.supervisor, timeout_s)
            how = "killed"
    if folder.exists():
        clean.clean_folder(folder)
    return how

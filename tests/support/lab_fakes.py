"""Processes of a lab without a bus: each does one thing, so that a test can see what the lab makes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vbnet.cluster.launch import Job
from vbnet.cluster.plan import Request, UplinkPlan



class FakeControl:
    """A host node's admin socket that remembers what it was asked."""

    def __init__(self) -> None:
        self.verbs: list[str] = []

    async def apply(self, requests: Sequence[Request]) -> None:
        """Remember the requests."""
        self.verbs += [request.verb for request in requests]

    async def add_uplink(self, uplink: UplinkPlan) -> None:
        """Remember the uplink."""
        self.verbs.append(f"uplink {uplink.tap}")

    async def close(self) -> None:
        """Remember the end."""
        self.verbs.append("close")


async def connect(_folder: Path) -> FakeControl:
    """Connect to nothing."""
    return FakeControl()


def host(job: Job) -> int:
    """A host node that is ready at once and stays."""
    job.report("host", "ready")
    signal.pause()
    return 0


def steady(job: Job) -> int:
    """Guests that get ready and stay."""
    for guest in job.process.guests:
        job.report(guest.name, "ready")
    print("steady", flush=True)
    signal.pause()
    return 0


def brief(job: Job) -> int:
    """Guests that get ready, are told to go, and end well."""
    for guest in job.process.guests:
        job.report(guest.name, "ready")
    job.wait_gone_ahead()
    return 0


def broken(job: Job) -> int:
    """Guests that fail before they are ready."""
    print("the reason is in the log", file=sys.stderr, flush=True)
    raise RuntimeError(f"{job.process.name} cannot work")


def stubborn(job: Job) -> int:
    """Guests that get ready, ignore SIGTERM, and start a daemon of their own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    daemon = subprocess.Popen(["sleep", "3600"], start_new_session=True)
    Path(job.folder, "logs", "daemon.log").write_text(str(daemon.pid), encoding="ascii")
    return steady(job)


def once_failing(job: Job) -> int:
    """Guests that get ready and are killed the first time, and stay the second time."""
    mark = Path(job.folder, "logs", "second.log")
    for guest in job.process.guests:
        job.report(guest.name, "ready")
    job.wait_gone_ahead()
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
    return 0

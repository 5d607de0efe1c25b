"""Processes of a lab without a bus: each does one thing, so that a test can see what the lab makes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vbnet.bus.rundir import RunDir
from vbnet.bus.topics import TOPICS
from vbnet.cluster.guests.waiting import with_host
from vbnet.cluster.lab import Lab
from vbnet.cluster.launch import Job
from vbnet.cluster.plan import DiskPlan, Request, UplinkPlan, make_plan
from vbnet.cluster.supervise import supervise
from vbnet.cluster.topology import parse_topology
from vbnet.guestnode import GuestNode
from vbnet.hostnode.node import HostOptions
from vbnet.hostnode.process import run_host
from vbnet.testing import FakeFabric


class FakeControl:
    """A host node's admin socket that remembers what it was asked."""

    def __init__(self) -> None:
        self.verbs: list[str] = []
        self.told: list[str] = []

    async def apply(self, requests: Sequence[Request]) -> None:
        """Remember the requests."""
        self.verbs += [request.verb for request in requests]

    async def add_uplink(self, uplink: UplinkPlan) -> None:
        """Remember the uplink."""
        self.verbs.append(f"uplink {uplink.tap}")

    async def insert(self, disk: DiskPlan) -> None:
        """Remember the disk."""
        self.verbs.append(f"insert {disk.image}")

    def tell(self, topic: str, fields: Mapping[str, object]) -> None:
        """Remember the event's topic; its fields are those that a host node takes."""
        assert fields.keys() == set(TOPICS[topic].fields)
        self.told.append(topic)

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
    print("steady", flush=True)  # noqa: T201 -- what `vbnet logs` shows
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
    print("the reason is in the log", file=sys.stderr, flush=True)  # noqa: T201 -- same
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


def host_without_switching(job: Job) -> int:
    """A real host node whose switches forward nothing."""
    run_host(
        HostOptions(run_dir=RunDir(job.folder), name=job.folder.name),
        make_fabric=FakeFabric,
        on_ready=lambda: job.report("host", "ready"),
    )
    return 0


def joined(job: Job) -> int:
    """Real guests without memory that join the bus and stay."""
    return asyncio.run(_join(job))


async def _join(job: Job) -> int:
    async with await GuestNode.connect(job.folder, job.process.name) as node:
        for plan in job.process.guests:
            await node.join(plan.name, plan.bus, ram_bytes=0, kind=job.process.kind)
            job.report(plan.name, "ready")
        return int(await with_host(node.sessions[0]))


def silent(_job: Job) -> int:
    """Guests that never get ready."""
    signal.pause()
    return 0


def lying(job: Job) -> int:
    """Guests that report about others, nonsense and too much before they tell the truth."""
    for guest, word in (
        ("nobody", "ready"),
        ("g-0", "failed" if job.process.name == "g-1" else "king"),
        ("g-0", "x" * 1000),
    ):
        job.report(guest, word, "y" * 100_000)
    for nonsense in (b"{not json", b"\xff" * 20_000):
        job.reports.send(nonsense)
    return steady(job)


def start_supervisor(root: Path, behaviour: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a supervisor of a lab ``t`` of one fake guest in a process of its own, and wait until the lab is up."""
    program = f"from tests.support import lab_fakes; lab_fakes.supervise_one({str(root)!r}, {behaviour!r})"
    supervisor = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    assert supervisor.stdout is not None
    assert supervisor.stdout.readline() == b"up\n"
    supervisor.stdout.close()
    return supervisor, root / "t"


def supervise_one(root: str, behaviour: str) -> None:
    """Supervise a lab of one fake guest until SIGTERM."""
    text = "name: t\nswitches: {lan: }\nguests:\n  g: {kind: traffic, nics: [{switch: lan}]}\n"
    module = "tests.support.lab_fakes"
    lab = Lab(
        make_plan(parse_topology(text, "lab.yaml", {})),
        root=Path(root),
        entries={"host": f"{module}:host", "traffic": f"{module}:{behaviour}"},
        connect=connect,
    )
    sys.exit(asyncio.run(supervise(lab, 20, _say_up)))


def _say_up() -> None:
    os.write(1, b"up\n")

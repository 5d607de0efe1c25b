"""The scheduler coordinator with real threads of real processes: given, and put back however it ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.ordinary_user import as_ordinary_user
from tests.support.waiting import eventually
from vbnet.bus.operator import SyncOperator
from vbnet.testing.processes import HostProcess, PythonProcess

ROOT = Path(__file__).parents[2]
GUEST = """
import sys, threading
import vbnet
from vbnet._native import SchedPage

run_dir, name, cls = sys.argv[1:4]
options = eval(sys.argv[4])
with vbnet.Guest(name, "lan", address=run_dir) as guest:
    sched = guest.bind("sched0", 20)
    with sched.thread(cls, **options) as me:
        me.running()
        print(me.tid, flush=True)
        for line in sys.stdin:
            print(eval(line, {"me": me, "sched": sched}), flush=True)
"""
ORDINARY = """
import threading
from vbnet._native import Ram, SchedCoordinator, SchedPage
import os

ram = Ram.create(1 << 16)
page = SchedPage(ram, 4096, 1)
kick = os.eventfd(0)
page.connect(kick)
record = page.record(0)
coordinator = SchedCoordinator()
member = coordinator.join("me", os.getpid(), ram, (4096, 0x400), kick)
tid = threading.get_native_id()
look = lambda: (os.sched_getscheduler(tid), os.getpriority(os.PRIO_PROCESS, tid), len(os.sched_getaffinity(tid)))
before = look()
record.declare(tid, 4, processors=[min(os.sched_getaffinity(0))])
while record.verdict()[0] == 0:
    pass
given = look()
record.declare(tid, 0)
while record.verdict()[0] != 2:
    pass
patient = look()
coordinator.leave(member)
can = coordinator.abilities()["realtime"]
print(before == look(), given[2], given[0] == os.SCHED_OTHER, patient[0] == os.SCHED_BATCH, can)
"""


@pytest.fixture(autouse=True)
def _privileged() -> None:
    if os.geteuid() != 0:
        pytest.skip("realtime classes need privilege")


@contextmanager
def coordinated(root: Path) -> Iterator[tuple[HostProcess, SyncOperator]]:
    """A host with a coordinator on the bus ``lan``."""
    with HostProcess(root) as host, SyncOperator(host.run_dir) as operator:
        operator.bus_create("lan")
        operator.device_create("s", "sched")
        operator.device_plug("s", "lan")
        yield host, operator


def guest(host: HostProcess, cls: str, options: str = "{}", name: str = "g") -> PythonProcess:
    """A process with one thread that takes part."""
    return PythonProcess(GUEST, [str(host.run_dir.path), name, cls, options])


def scheduling(tid: int) -> tuple[int, int, int]:
    """What the kernel says: policy, nice value, processors."""
    policy = os.sched_getscheduler(tid) & 0xFF
    return policy, os.getpriority(os.PRIO_PROCESS, tid), len(os.sched_getaffinity(tid))


def usual() -> tuple[int, int, int]:
    """An ordinary thread here."""
    return os.SCHED_OTHER, os.getpriority(os.PRIO_PROCESS, 0), len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cls", "options", "policy"),
    [
        ("deadline", "{'runtime_s': 0.0005, 'deadline_s': 0.01}", 6),
        ("realtime", "{'rt_priority': 7, 'is_fifo': True}", os.SCHED_FIFO),
        ("realtime", "{}", os.SCHED_RR),
        ("batch", "{}", os.SCHED_BATCH),
        ("idle", "{}", os.SCHED_IDLE),
    ],
)
def test_class_is_that_of_the_real_thread_and_gone_with_the_device(
    run_root: Path, cls: str, options: str, policy: int
) -> None:
    """While it takes part the thread is what it asked to be; unplugged, it is what it was, and its process lives."""
    with coordinated(run_root) as (host, operator), guest(host, cls, options) as process:
        tid = int(process.line())
        eventually(lambda: scheduling(tid)[0] == policy, f"{cls} is applied")

        operator.device_unplug("s", "lan")

        assert usual() == scheduling(tid)


def test_switched_off_puts_back_and_on_applies_again(run_root: Path) -> None:
    """The attribute ``enabled`` decides at run time, for threads that take part already."""
    with coordinated(run_root) as (host, operator), guest(host, "realtime") as process:
        tid = int(process.line())
        eventually(lambda: scheduling(tid)[0] == os.SCHED_RR, "it is applied")

        operator.device_set("s", "enabled", "0")
        off = scheduling(tid)
        operator.device_set("s", "enabled", "1")

        assert (usual(), os.SCHED_RR) == (off, scheduling(tid)[0])


def test_ended_host_leaves_no_thread_as_it_was_not(run_root: Path) -> None:
    """The host puts everything back before it ends."""
    with coordinated(run_root) as (host, _), guest(host, "realtime", "{'processors': [0]}") as process:
        tid = int(process.line())
        eventually(lambda: scheduling(tid)[2] == 1, "it is applied")

        host.terminate()

        eventually(lambda: scheduling(tid) == usual(), "it is put back")


def test_killed_host_cannot_put_back_and_the_guest_does(run_root: Path) -> None:
    """After ``kill -9`` of the host the guest's own driver gives its threads what they had."""
    with coordinated(run_root) as (host, _), guest(host, "realtime") as process:
        tid = int(process.line())
        eventually(lambda: scheduling(tid)[0] == os.SCHED_RR, "it is applied")

        host.kill()

        eventually(lambda: scheduling(tid) == usual(), "it is put back")


def test_killed_guest_is_forgotten_and_the_others_go_on(run_root: Path) -> None:
    """After ``kill -9`` of a guest nothing of it is left in hand."""
    with coordinated(run_root) as (host, operator), guest(host, "realtime", name="other") as other:
        tid = int(other.line())
        with guest(host, "realtime") as process:
            process.line()
            process.kill()

        eventually(lambda: '"g"' not in operator.device_get("s").attributes["threads"], "it is forgotten")
        eventually(lambda: scheduling(tid)[0] == os.SCHED_RR, "the other goes on")


def test_thread_of_another_process_is_refused_and_not_touched(run_root: Path) -> None:
    """A guest that names somebody else's thread gets a refusal."""
    with coordinated(run_root) as (host, operator), guest(host, "idle", f"{{'tid': {os.getpid()}}}") as process:
        process.line()

        eventually(lambda: "forged_thread" in operator.device_get("s").attributes["threads"], "it is refused")

        assert usual() == scheduling(os.getpid())


def test_host_says_what_it_cannot_do(run_root: Path) -> None:
    """As root it can do everything but what the kernel is too old for."""
    with coordinated(run_root) as (_, operator):
        cannot = operator.device_get("s").attributes["cannot"]

    assert "realtime" not in cannot


def test_ordinary_user_gets_the_rest_and_everything_back(program: Callable[[str], str]) -> None:
    """Without privilege affinity and batch are applied, realtime is not, and nothing is done that has no way back."""
    program("setpriv")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = as_ordinary_user([sys.executable, "-c", ORDINARY])

    finished = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50, check=False
    )

    assert ["True 1 True True False"] == re.findall(r".+", finished.stdout), finished.stderr


def test_operator_sees_threads_and_counts(run_root: Path) -> None:
    """What is wanted, applied and refused stands in the device's attributes."""
    with coordinated(run_root) as (host, operator), guest(host, "interactive") as process:
        tid = process.line()

        eventually(lambda: f'"tid": {tid}' in operator.device_get("s").attributes["threads"], "it is shown")
        attributes = operator.device_get("s").attributes

    assert '"wanted": "interactive", "applied": "interactive"' in attributes["threads"]
    assert '"applied":' in attributes["counts"]

"""A guest that never lets a scheduler coordinator rest: it is heard so often and no more, and the others are served."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.waiting import eventually
from vbnet.bus.operator import SyncOperator
from vbnet.testing.processes import HostProcess, PythonProcess

WINDOW_S = 0.01
RINGS = 65
"""Of one guest that are heard within a window; with the last of them it is muted."""
ENOUGH = 20
SHARE = 0.5
"""Of a processor that the coordinator's thread may use, whatever one guest does; it is about a tenth."""
HOSTILE = """
import itertools, os, sys, threading
import vbnet
from vbnet._native import SchedPage
from vbnet.devices.sched import wire

RECORDS = 16
sleepers = [threading.Thread(target=threading.Event().wait, daemon=True) for _ in range(RECORDS)]
for sleeper in sleepers:
    sleeper.start()

with vbnet.Guest("hostile", "lan", address=sys.argv[1]) as guest:
    device = guest.wait_device("sched", 20)
    opened = guest.open("sched", wire.VERSION)
    length = wire.HEADER_BYTES + RECORDS * wire.RECORD_BYTES
    block = device.memory.allocate(length, 128)
    page = SchedPage(device.ram, block.offset, RECORDS)
    signal = opened.shm(wire.PAGE_REGION, block.offset, length, signal_offset=wire.SIGNAL_OFFSET)
    page.connect(signal.kick_fd)
    records = [page.record(index) for index in range(RECORDS)]

    def ring(number, turn):
        os.eventfd_write(signal.kick_fd, 1)

    def declare(number, turn):
        records[number].declare(sleepers[number].native_id, wire.Class.BATCH + turn % 2)

    def go(number, turn):
        records[number].running() if turn % 2 else records[number].idle()

    def do_all(number, turn):
        declare(number, turn)
        go(number, turn)
        ring(number, turn)

    for record, sleeper in zip(records, sleepers):
        record.declare(sleeper.native_id, wire.Class.NORMAL, flags=wire.Flag.IDLE_POLLS)
    print("ready", flush=True)
    doing = {"rings": ring, "declares": declare, "turns": go, "does everything": do_all}[sys.argv[2]]
    for turn in itertools.count():
        for number in range(RECORDS):
            doing(number, turn)
"""
HONEST = """
import sys
import vbnet

with vbnet.Guest("honest", "lan", address=sys.argv[1]) as guest:
    echo = guest.bind("echo0", 20)
    with guest.bind("sched0", 20).thread("normal") as me:
        print(me.tid, flush=True)
        for line in sys.stdin:
            me.declare(line.strip())
            print(guest.run(echo.echo(b"here")).decode(), flush=True)
"""
POLICIES = {"batch": os.SCHED_BATCH, "normal": os.SCHED_OTHER}


@contextmanager
def coordinated(root: Path) -> Iterator[tuple[HostProcess, SyncOperator]]:
    """A host with a coordinator and an echo device on the bus ``lan``."""
    with HostProcess(root) as host, SyncOperator(host.run_dir) as operator:
        operator.bus_create("lan")
        for name, kind in (("s", "sched"), ("e", "echo")):
            operator.device_create(name, kind)
            operator.device_plug(name, "lan")
        yield host, operator


def counts(operator: SyncOperator) -> Counter[str]:
    """What the coordinator counted."""
    return Counter(json.loads(operator.device_get("s").attributes["counts"]))


def coordinator_of(host: HostProcess) -> Path:
    """Where the kernel tells about the coordinator's thread."""
    tasks = Path(f"/proc/{host.pid}/task").iterdir()
    [found] = [task for task in tasks if (task / "comm").read_text() == "vbnet-sched\n"]
    return found


def used_s(thread: Path) -> float:
    """Processor time that a thread has used."""
    nanoseconds = re.match(r"\d+", (thread / "schedstat").read_text())
    assert nanoseconds is not None
    return int(nanoseconds[0]) / 1e9


def policy(tid: int) -> int:
    """The class of a thread, as the kernel says."""
    return os.sched_getscheduler(tid) & 0xFF


@pytest.mark.parametrize(
    ("loop", "counted"),
    [
        ("rings", "muted"),
        ("declares", "refused_too_often"),
        ("turns", "refused_too_often"),
        ("does everything", "muted"),
    ],
)
def test_endless_loop_of_a_guest_costs_the_host_little_and_the_others_nothing(
    run_root: Path, loop: str, counted: str
) -> None:
    """The other guest gets what it asks for each time, most of a processor stays free, and what was done is counted."""
    with coordinated(run_root) as (host, operator), PythonProcess(HONEST, [str(host.run_dir.path)]) as honest:
        tid = int(honest.line())
        asked = 0

        def is_counted() -> bool:
            nonlocal asked
            for cls, wanted in POLICIES.items():
                honest.tell(cls)
                assert "here" == honest.line()
                eventually(lambda wanted=wanted: policy(tid) == wanted, f"the other guest gets {cls}")  # type: ignore[misc]
                asked += 1
            return counts(operator)[counted] - before[counted] >= ENOUGH

        with PythonProcess(HOSTILE, [str(host.run_dir.path), loop]) as hostile:
            assert "ready" == hostile.line()
            thread = coordinator_of(host)
            begun_s, used_before_s, before = time.monotonic(), used_s(thread), counts(operator)
            eventually(is_counted, f"who {loop} without end is counted")
            used, kicks = used_s(thread) - used_before_s, counts(operator)["kicks"] - before["kicks"]
            took_s = time.monotonic() - begun_s
        eventually(lambda: counts(operator)["guests"] == 1, "it is forgotten")

        assert used < took_s * SHARE
        assert kicks <= RINGS * (took_s / WINDOW_S + 2) + asked

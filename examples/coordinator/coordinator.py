"""A scheduler coordinator at work: how late a guest wakes beside one that spins on its core, coordinated and not."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import vbnet
from vbnet.bus.operator import SyncOperator
from vbnet.testing.processes import HostProcess

PERIOD_S = 0.002
NAP_S = 0.001
PATIENCE_S = 10.0


def spin(run_dir: Path, core: int) -> None:
    """Use up whatever there is, in no hurry."""
    os.sched_setaffinity(0, {core})
    with vbnet.Guest("spinner", "lan", address=run_dir) as guest, guest.bind("sched0", PATIENCE_S).thread("idle"):
        while True:
            pass


def wake(run_dir: Path, core: int, pipe: Connection) -> None:
    """Sleep for one period, again and again; answer how late waking was, as often as asked."""
    os.sched_setaffinity(0, {core})
    with vbnet.Guest("waker", "lan", address=run_dir) as guest:
        sched = guest.bind("sched0", PATIENCE_S)
        with sched.thread("deadline", runtime_s=PERIOD_S / 4, deadline_s=PERIOD_S) as me:
            pipe.send("ready")
            while (seconds := pipe.recv()) is not None:
                late = []
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    due = time.monotonic() + PERIOD_S
                    me.idle()
                    threading.Event().wait(PERIOD_S)
                    me.running()
                    late.append(time.monotonic() - due)
                pipe.send((me.state.applied, sorted(late)))


def figures(late: list[float]) -> str:
    """Say how late, in the middle and at the end."""
    median, worst = late[len(late) // 2], late[int(len(late) * 0.99)]
    return f"late by {median * 1e3:.1f} ms at the median, {worst * 1e3:.1f} ms at p99"


def main(seconds: float) -> None:
    """Bring everything up, measure twice, take everything down."""
    core = min(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="vbnet-") as root,
        HostProcess(Path(root)) as host,
        SyncOperator(host.run_dir) as operator,
    ):
        operator.bus_create("lan")
        operator.device_create("s", "sched")
        operator.device_plug("s", "lan")
        ours, theirs = context.Pipe()
        spinner = context.Process(target=spin, args=(host.run_dir.path, core), daemon=True)
        waker = context.Process(target=wake, args=(host.run_dir.path, core, theirs), daemon=True)
        waker.start()
        ours.recv()
        spinner.start()
        while '"spinner"' not in operator.device_get("s").attributes["threads"]:
            threading.Event().wait(NAP_S)
        ours.send(seconds)
        applied, late = ours.recv()
        print(f"coordinator on: {applied} is in force, {figures(late)}", flush=True)
        operator.device_set("s", "enabled", "0")
        ours.send(seconds)
        print(f"coordinator off: {figures(ours.recv()[1])}", flush=True)
        for process in (spinner, waker):
            process.kill()
            process.join()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0)

"""How long frames lie in rings and doorbells take to be heard, as a reader of shared memory sees it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.lab import Net
from tests.support.real_lab import RealLab, real_lab
from tests.support.waiting import eventually
from vbnet.bus.rundir import RunDir
from vbnet.telemetry.catalogue import installed
from vbnet.telemetry.families import HistogramSample, families
from vbnet.telemetry.node import counters_files, read_files

LAB = """
name: t
switches: {lan: {}}
guests:
  gen: {kind: traffic, nics: [{switch: lan}], send: {to: sink, size: 64, rate: 2k, for: 30s}}
  sink: {kind: traffic, nics: [{switch: lan}]}
"""


def histograms(run_dir: RunDir, name: str, **labels: str) -> list[HistogramSample]:
    """The histograms of a family that have these labels, now."""
    blocks, _files = read_files(counters_files(run_dir))
    return [
        sample
        for family in families(blocks, installed().metrics)
        for sample in family.samples
        if family.name == name and isinstance(sample, HistogramSample) and labels.items() <= dict(sample.labels).items()
    ]


def taken(run_dir: RunDir, name: str, **labels: str) -> tuple[int, float]:
    """How many samples a family has under these labels, and their sum in seconds."""
    found = histograms(run_dir, name, **labels)
    return sum(int(sample.buckets[-1][1]) for sample in found), sum(sample.sum for sample in found)


def test_rings_and_wake_ups_between_two_processes_are_timed_within_what_the_test_measured(net: Net) -> None:
    """No sample is longer than the frame took from end to end, by the clock of whoever sent and received it."""
    one, two = net.station(), net.station()
    run_dir = net.lab.run_dir
    sender, receiver = {"guest": one.guest.name, "device": one.port}, {"guest": two.guest.name, "device": two.port}
    spent = 0.0

    def is_timed() -> bool:
        """Whether all of it was, three times at least."""
        return all(
            taken(run_dir, name, **labels)[0] >= 3
            for name, labels in (
                ("vbnet_ring_residence_seconds", {**sender, "queue": "transmit"}),
                ("vbnet_ring_residence_seconds", {**receiver, "queue": "receive"}),
                ("vbnet_wakeup_latency_seconds", {**sender, "woken": "host"}),
                ("vbnet_wakeup_latency_seconds", {**receiver, "woken": "guest"}),
            )
        )

    def trip() -> bool:
        """One frame, for which the receiver has most likely fallen asleep while the counters were read."""
        nonlocal spent
        received = pool.submit(two.nic.recv, 1, 10)
        found = is_timed()
        start = time.monotonic()
        one.nic.send([one.to(two)], 10)
        assert received.result()
        spent += time.monotonic() - start
        return found

    with ThreadPoolExecutor(1) as pool:
        eventually(trip, "all four are timed")

    residence = [
        taken(run_dir, "vbnet_ring_residence_seconds", **labels, queue=queue)[1]
        for labels, queue in ((sender, "transmit"), (receiver, "receive"))
    ]
    wakeups = [
        taken(run_dir, "vbnet_wakeup_latency_seconds", **labels, woken=woken)[1]
        for labels, woken in ((sender, "host"), (receiver, "guest"))
    ]
    assert all(0 < seconds <= spent for seconds in (*residence, *wakeups))
    blocks, _files = read_files(counters_files(run_dir))
    assert {0} == {block.values[-1] for block in blocks if block.kind == "port_latency"}


@pytest.fixture
def traffic() -> Iterator[RealLab]:
    """A traffic pair."""
    with real_lab(LAB) as lab:
        yield lab


def test_traffic_guests_latency_is_read_from_outside_and_a_killed_ones_file_is_removed(traffic: RealLab) -> None:
    """The sink's process counts into a file of its own, which the supervisor removes with the process."""
    run_dir = RunDir(traffic.folder)
    began = traffic.state().since_s

    eventually(lambda: taken(run_dir, "vbnet_traffic_latency_seconds", guest="sink")[0] > 100, "frames are timed")

    count, seconds = taken(run_dir, "vbnet_traffic_latency_seconds", guest="sink")
    assert 0 < seconds <= count * (time.time() - began)
    sent: dict[str, Any] = {
        block.labels["guest"]: block.values[0]
        for block in read_files(counters_files(run_dir))[0]
        if block.kind == "traffic_source"
    }
    assert sent["gen"] >= count
    assert sent["sink"] == 0
    place = run_dir.process_counters("sink")
    assert place in counters_files(run_dir)
    identity = traffic.state().processes["sink"].identity
    assert identity is not None
    os.kill(identity.pid, signal.SIGKILL)
    eventually(lambda: place not in counters_files(run_dir), "the file is removed")
    assert [] == histograms(run_dir, "vbnet_traffic_latency_seconds", guest="sink")

"""The benches themselves, at a pace that only shows that they work."""

import json
import os
from collections.abc import Callable

import pytest

from vbnet.load import bench
from vbnet.load.bench.peers import testpmd

pytestmark = [
    pytest.mark.usefixtures("no_leaked_processes", "no_leaked_descriptors"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a bench needs two cores, one for each side"),
]


@pytest.mark.parametrize("name", ["ring", "rtt", "rtt.asleep", "fastcall.python"])
def test_a_subject_is_measured_beside_its_baseline(name: str) -> None:
    """Every row has a positive figure, a baseline measured in the same run, and their ratio."""
    rows = bench.run([name], quick=True)

    assert rows
    assert {name} == {row.name for row in rows}
    for row in rows:
        assert row.value > 0
        assert row.samples.count > 0
        assert row.placement
        assert row.baseline is not None
        assert row.baseline_value is not None
        assert row.value / row.baseline_value == row.ratio


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(120)
def test_fastcalls_are_measured_alone_at_once_and_asleep() -> None:
    """``fastcall`` holds one caller against bare round trips, and more callers against one."""
    rows = bench.run(["fastcall"], quick=True)

    alone = [row for row in rows if row.unit == "ns"]
    at_once = [row for row in rows if row.unit == "calls/s"]
    assert [(8, "spinning"), (48, "spinning"), (8, "asleep")] == [
        (row.params["data_bytes"], row.params["waits"]) for row in alone
    ]
    assert [1, 2, 4, 8] == [row.params["callers"] for row in at_once]
    assert all(row.value > 0 and row.ratio is not None for row in [*alone, *at_once[1:]])


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(120)
def test_disks_are_measured_beside_the_file_over_every_transport() -> None:
    """``blk`` has each transport beside plain reads and writes, and says what a request costs in traps."""
    rows = bench.run(["blk"], quick=True)

    assert [(transport, work) for work in ("read", "write", "sequential") for transport in ("vbus", "mmio", "pci")] == [
        (row.params["transport"], row.params["work"]) for row in rows
    ]
    assert all(row.value > 0 and row.baseline == "plain file" for row in rows)
    assert all("register accesses" in row.note for row in rows)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(120)
def test_network_cards_are_measured_beside_a_venet() -> None:
    """``virtio-net`` has each transport, and says what a frame costs in doorbells, wakeups and traps."""
    rows = bench.run(["virtio-net"], quick=True)

    cards = ["venet", "virtio-net", "virtio-net-mmio", "virtio-net-pci", "virtio-net-pci+2us"]
    assert cards * 3 == [row.params["card"] for row in rows]
    assert all(row.value > 0 and row.baseline == "venet" and "traps" in row.note for row in rows)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["vhost", "vhost.rtt"])
def test_front_ends_are_measured_beside_a_host_of_their_own(name: str) -> None:
    """Both kinds of queues, each against DPDK's vhost; without DPDK there is no front end, and no row."""
    rows = bench.run([name], quick=True)

    expected = ["split", "packed"] if testpmd.why_not_installed() is None else []
    assert expected == [row.params["queues"] for row in rows]
    assert all(row.value > 0 and row.ratio is not None for row in rows)


def test_a_capture_is_measured_beside_none() -> None:
    """``capture.cost`` has the rate without a capture, and with two of them as a share of it."""
    rows = bench.run(["capture.cost"], quick=True)

    assert ["no capture", "1 in 992 wanted", "all wanted, ring full"] == [row.params["capture"] for row in rows]
    assert all(row.value > 0 for row in rows)
    assert [None, "no capture", "no capture"] == [row.baseline for row in rows]


def test_long_frames_are_measured_beside_plain_ones() -> None:
    """``offloads`` has the payload of plain frames, of long ones that stay whole, and of those that the worker cuts."""
    rows = bench.run(["offloads"], quick=True)

    assert ["plain", "whole", "cut by the worker"] == [row.params["frames"] for row in rows]
    assert all(row.value > 0 for row in rows)
    assert [None, "plain frames", "plain frames"] == [row.baseline for row in rows]


def test_signals_are_raised_without_waking_anybody_twice() -> None:
    """A million raises, or here ten thousand, of one signal or of a thousand wake their sleeping handler once."""
    rows = bench.run(["signal.raise"], quick=True)

    woken = [row for row in rows if row.unit == "wake-ups"]
    assert [1.0, 1.0] == [row.value for row in woken]
    assert all(row.is_reached for row in woken)


def test_scrapes_are_timed_on_the_clock_and_by_their_processor_time() -> None:
    """``metrics.scrape`` has both in each form and for each number of devices, and the client library's own way."""
    rows = bench.run(["metrics.scrape"], quick=True)

    shown = [(row.params["devices"], row.params["of"]) for row in rows]
    each = (*("wall", "processor") * 2, "wall, beside")
    assert [*((devices, of) for devices in (10, 100) for of in each), (100, "wall a device")] == shown
    assert {"text", "protocol buffers"} == {row.params["as"] for row in rows if "as" in row.params}
    assert all(row.value > 0 for row in rows if row.params["of"] != "processor")
    assert all(row.ratio is not None for row in rows if row.params["of"] in {"wall, beside", "wall a device"})


def test_latest_values_are_timed_natively_and_beside_peers() -> None:
    """``state`` has a figure for each way to publish and sample, those from Python with their ratio to each peer."""
    rows = bench.run(["state"], quick=True)

    native = [row for row in rows if row.unit == "ns"]
    assert ["publish"] * 2 + ["sample"] * 3 == [row.params["what"] for row in native]
    assert {"publish from Python", "sample from Python"} == {row.params["what"] for row in rows} - {"publish", "sample"}
    assert all(row.value > 0 for row in rows)
    assert all(row.baseline is not None for row in rows if row.unit != "ns")


def test_an_urgent_signal_is_timed_beside_an_idle_one() -> None:
    """``signal.priority`` tells the latency under a flood with priorities and without, both against idle."""
    rows = bench.run(["signal.priority"], quick=True)

    assert ["native", "native", "Python", "Python"] == [row.params["handler"] for row in rows]
    assert ["on", "off", "on", "on"] == [row.params["priorities"] for row in rows]
    assert all(row.baseline == "idle" and row.value > 0 for row in rows)


def test_ends_of_interrupts_are_counted_beside_traps() -> None:
    """In shared memory nothing traps; the emulated controller traps for each event that it is told of."""
    rows = bench.run(["signal.eoi"], quick=True)

    traps = [row for row in rows if row.params["counted"] == "traps"]
    assert 3 == len(traps)
    assert all(0 == row.value and row.baseline_value for row in traps)


def test_timers_are_measured_beside_a_bare_timerfd_and_asyncio() -> None:
    """Arming has a figure of its own; lateness stands beside both, by percentile and number of timers."""
    arm, *_ = bench.run(["timer.arm"], quick=True)
    late = bench.run(["timer.late"], quick=True)

    assert arm.value > 0
    assert {"timerfd of its own", "asyncio call_later"} == {row.baseline for row in late}
    assert {(1, "p50"), (1, "p99"), (1000, "p50"), (1000, "p99")} == {
        (row.params["armed"], row.params["percentile"]) for row in late
    }


def test_counting_is_held_against_a_switch_that_does_not_count() -> None:
    """``metrics.cost`` measures both in turn, for small and for large frames."""
    rows = bench.run(["metrics.cost"], quick=True)

    assert [64, 1500] == [row.params["frame_bytes"] for row in rows]
    assert all(row.baseline == "counting compiled out" and row.ratio for row in rows)


def test_frames_pass_the_switch_whatever_is_attached() -> None:
    """``scale`` measures the same two guests among more and more, the first of them without a baseline."""
    first, *others = bench.run(["scale"], quick=True)

    assert first.baseline is None
    assert all(row.ratio is not None and row.ratio > 0 and row.value > 0 for row in others)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(120)
def test_python_objects_are_measured_beside_their_peers() -> None:
    """At least ZeroMQ and Unix sockets are there to be compared with, in batches and one at a time."""
    rows = bench.run(["python"], quick=True)

    found = {(row.params["batch"], row.baseline) for row in rows}
    assert {(batch, peer) for batch in (32, 1) for peer in ("pyzmq ipc PUSH/PULL", "AF_UNIX SOCK_SEQPACKET")} <= found
    assert all(row.value > 0 and row.ratio is not None for row in rows)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("run_dir")
def test_labs_come_up_to_be_weighed_and_watched() -> None:
    """``launch`` and ``idle`` bring real labs up and take them down."""
    rows = bench.run(["launch", "idle"], quick=True)

    assert ["s", "s", "bytes", "% of one core"] == [row.unit for row in rows]
    assert all(row.value > 0 for row in rows if row.unit == "s")


def test_programs_get_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    """``--format json`` prints the machine and the rows, and nothing else."""
    assert 0 == bench.main(["rtt"], quick=True, format="json")

    document = json.loads(capsys.readouterr().out)
    assert {"machine", "rows"} == set(document)
    assert {"rtt"} == {row["name"] for row in document["rows"]}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("namespaces", "tun_device")
def test_tcp_between_namespaces_is_measured_beside_the_kernels_bridge(program: Callable[[str], str]) -> None:
    """``netns.tcp`` has a rate with offloads and one without, each held against the bridge."""
    for name in ("iperf3", "ip", "nsenter", "unshare"):
        program(name)

    rows = bench.run(["netns.tcp"], quick=True)

    assert ["on", "off"] == [row.params["offloads"] for row in rows]
    assert all(row.value > 0 and row.ratio is not None for row in rows)

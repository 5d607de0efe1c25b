"""`vbnet load` with real guests: every kind of traffic, limits, and ends that nobody planned."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dpkt
import pytest

from tests.support.vbnet_program import COMMAND, rows
from tests.support.waiting import eventually
from vbnet.bus.rundir import RunDir
from vbnet.cluster import state

LIMIT_S = 60.0
SHORT = "for: 0.4s\nwarm-up: 100ms\ninterval: 100ms\n"

Load = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _nothing_left(no_leaked_processes: None) -> None:
    """Every test here ends with nothing running."""


@pytest.fixture
def environment(run_dir: Path) -> dict[str, str]:
    """Where runs of a test have their run directories."""
    return {**os.environ, "VBNET_RUN_DIR": str(run_dir)}


@pytest.fixture
def load(tmp_path: Path, environment: dict[str, str]) -> Load:
    """Run a profile, expect an exit code, and return its result."""

    def run(text: str, *arguments: str, code: int = 0) -> dict[str, Any]:
        profile = tmp_path / "p.yaml"
        profile.write_text(SHORT + text)
        result: dict[str, Any] = rows(
            "load", str(profile), *arguments, code=code, environment=environment, limit_s=LIMIT_S
        )
        return result

    return run


@pytest.fixture
def running(tmp_path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A run of a minute, once its second sample is written."""
    (tmp_path / "p.yaml").write_text("for: 60s\ninterval: 100ms\nflows: [{pattern: pairs, rate: 500}]")
    command = [*COMMAND, "load", str(tmp_path / "p.yaml"), "-o", str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        samples = tmp_path / "out" / "samples.jsonl"
        try:
            eventually(lambda: samples.exists() and samples.read_bytes().count(b"\n") >= 2, "samples", LIMIT_S)
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=LIMIT_S)


FLOWS = (
    "rate: 500",
    "poisson: 500",
    "ramp: {from: 250, to: 750, over: 300ms}",
    "burst: {frames: 8, every: 20ms}",
    "on-off: {rate: 1k, on: 20ms, off: 20ms}",
    "rate: 500, size: imix",
    "rate: 500, reply: true",
    "ask: {window: 4}",
)


def test_every_kind_of_traffic_arrives_and_adds_up(load: Load) -> None:
    """Sent, received and lost are the same frames, whatever happened to them."""
    flows = "".join(
        f"  - {{from: load-{2 * place}, to: load-{2 * place + 1}, {flow}}}\n" for place, flow in enumerate(FLOWS)
    )
    result = load(f"guests: {2 * len(FLOWS)}\nflows:\n{flows}thresholds: [corrupted == 0, duplicates == 0]")

    guests = {guest["name"]: guest for guest in result["guests"]}
    for place, flow in enumerate(FLOWS):
        sender, receiver = guests[f"load-{2 * place}"], guests[f"load-{2 * place + 1}"]
        counting = sender if "reply" in flow or "ask" in flow else receiver
        assert sender["sent"] > 50, flow
        assert counting["received"] > 0, flow
        assert 0 < counting["latency_ns"]["p50"] <= counting["latency_ns"]["p99.9"], flow
    sent = sum(sample["sent"] for sample in result["samples"])
    received = sum(sample["received"] for sample in result["samples"])
    assert received + result["figures"]["lost"] >= sent - result["samples"][-1]["under_way"]
    assert "finished" == result["outcome"]["state"]


@pytest.mark.slow
def test_everybody_sends_to_everybody(load: Load) -> None:
    """Four guests at 300 frames a second each: all get a fair share of 300."""
    result = load("guests: 4\nflows: [{pattern: all-to-all, rate: 300}]")

    assert ["receives", "sends"] == sorted(result["guests"][0]["role"].split(", "))
    assert all(guest["received"] > 60 for guest in result["guests"])


@pytest.mark.slow
def test_a_capture_is_replayed(load: Load, tmp_path: Path) -> None:
    """Frames of 80 bytes, a millisecond apart, over and over."""
    with (tmp_path / "c.pcap").open("wb") as stream:
        writer = dpkt.pcap.Writer(stream, nano=True)
        for number in range(10):
            writer.writepkt(bytes([number]) * 80, 1 + number / 1000)

    result = load("flows: [{pattern: pairs, replay: {file: c.pcap, speed: 2}}]")

    # 400 ms of a frame each 500 us.
    assert 600 <= sum(sample["sent"] for sample in result["samples"]) <= 810
    assert "p99" not in result["figures"]


def test_a_threshold_that_does_not_hold_is_an_exit_code(load: Load) -> None:
    """No frame arrives within a nanosecond."""
    result = load("flows: [{pattern: pairs, rate: 1k}]\nthresholds: [p50 < 1ns, corrupted == 0]", code=1)

    assert [False, True] == [verdict["holds"] for verdict in result["verdicts"]]


@pytest.mark.slow
def test_the_highest_rate_that_passes_is_searched_for(load: Load) -> None:
    """Everything passes here, so the highest is found at the second step, and then measured."""
    result = load(
        "flows: [{pattern: pairs, rate: 1}]\nfind-limit: {loss: 100%, from: 200, to: 400, for: 300ms}\n",
    )

    assert (400, [200, 400]) == (result["limit"], [trial["rate"] for trial in result["trials"]])


@pytest.mark.slow
def test_guests_of_a_lab_are_used_and_the_others_run_beside_them(load: Load, tmp_path: Path) -> None:
    """A generator of the lab's own goes on as the lab file says."""
    (tmp_path / "lab.yaml").write_text(
        "name: office\nswitches: {lan: {}}\nguests:\n"
        "  a: {kind: traffic, nics: [{switch: lan}]}\n  b: {kind: traffic, nics: [{switch: lan}]}\n"
        "  own: {kind: traffic, nics: [{switch: lan}], send: {to: web, rate: 100, for: 60s}}\n"
        "  web: {kind: stack, nics: [{switch: lan, ip: 10.0.0.1/24}]}\n"
    )

    result = load("lab: lab.yaml\nflows: [{from: a, to: b, rate: 1k}]")

    assert ["a", "b"] == [guest["name"] for guest in result["guests"]]


def test_interrupted_run_reports_what_was_measured(
    running: subprocess.Popen[str], tmp_path: Path, run_dir: Path
) -> None:
    """Ctrl-C: exit code 130, a whole report, nothing left."""
    running.send_signal(signal.SIGINT)

    out, notes = running.communicate(timeout=LIMIT_S)

    assert 130 == running.returncode, notes
    assert "interrupted after" in notes
    assert "p99" in out
    assert "interrupted" == json.loads((tmp_path / "out" / "result.json").read_text())["outcome"]["state"]
    assert [] == list(run_dir.iterdir())


@pytest.mark.slow
def test_target_that_dies_ends_the_run_with_a_report(
    running: subprocess.Popen[str], tmp_path: Path, run_dir: Path
) -> None:
    """The receiver is killed: the run says so, and what was measured until then."""
    lab = state.read_state(RunDir.for_node("load-p", run_dir).path)
    identity = lab.processes[lab.guests["load-1"].process].identity
    assert identity is not None
    os.kill(identity.pid, signal.SIGKILL)

    _, notes = running.communicate(timeout=LIMIT_S)

    assert 1 == running.returncode, notes
    assert "guest load-1 failed (killed by SIGKILL)" in notes
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert ("broken", True) == (result["outcome"]["state"], result["guests"][1]["received"] > 0)


@pytest.mark.slow
def test_host_node_that_dies_ends_the_run_with_a_report(
    running: subprocess.Popen[str], tmp_path: Path, run_dir: Path
) -> None:
    """Without it there is no lab."""
    host = state.read_state(RunDir.for_node("load-p", run_dir).path).host
    assert host is not None
    assert host.identity is not None
    os.kill(host.identity.pid, signal.SIGKILL)

    _, notes = running.communicate(timeout=LIMIT_S)

    assert 1 == running.returncode, notes
    assert "broken" == json.loads((tmp_path / "out" / "result.json").read_text())["outcome"]["state"]


def test_folder_that_is_in_use_is_refused_before_anything_starts(load: Load, tmp_path: Path) -> None:
    """Nothing is overwritten."""
    with pytest.raises(AssertionError, match="is not empty; name another folder"):
        load("flows: [{pattern: pairs, rate: 1k}]", "-o", str(tmp_path))

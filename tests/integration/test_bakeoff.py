"""`vbnet bakeoff` with real guests: every model, every mechanism, and ends that nobody planned."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.vbnet_program import COMMAND, rows, run
from tests.support.waiting import eventually
from vbnet.cluster import state
from vbnet.load.bakeoff.record import load_record
from vbnet.load.bakeoff.subjects import MECHANISMS, models
from vbnet.load.bakeoff.workloads import WORKLOADS

LIMIT_S = 240.0
SHORT = "for: 200ms\nrepeats: 1\nidle-devices: 2\nelsewhere: []\n"

Bakeoff = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _nothing_left(no_leaked_processes: None) -> None:
    """Every test here ends with nothing running."""


@pytest.fixture
def environment(run_dir: Path) -> dict[str, str]:
    """Where labs of a test have their run directories."""
    return {**os.environ, "VBNET_RUN_DIR": str(run_dir)}


@pytest.fixture
def bakeoff(tmp_path: Path, environment: dict[str, str]) -> Bakeoff:
    """Run a contest, expect an exit code, and return its record."""

    def hold(text: str, *arguments: str, code: int = 0) -> dict[str, Any]:
        contest = tmp_path / "contest.yaml"
        contest.write_text(SHORT + text)
        record: dict[str, Any] = rows(
            "bakeoff", str(contest), *arguments, code=code, environment=environment, limit_s=LIMIT_S
        )
        return record

    return hold


@pytest.fixture
def running(tmp_path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A bake-off without end, once its second reading is written."""
    (tmp_path / "c.yaml").write_text(
        "models: [venet]\nworkloads: [requests]\nwithout: []\nelsewhere: []\nfor: 50ms\nrepeats: 1000"
    )
    command = [*COMMAND, "bakeoff", str(tmp_path / "c.yaml"), "-o", str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        readings = tmp_path / "out" / "readings.jsonl"
        try:
            eventually(lambda: readings.exists() and readings.read_bytes().count(b"\n") >= 2, "readings", LIMIT_S)
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=LIMIT_S)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(LIMIT_S)
def test_every_subject_goes_through_every_workload(bakeoff: Bakeoff) -> None:
    """All models pass frames, and venet without each of its mechanisms too."""
    record = bakeoff(f"without: [{', '.join(name for name in MECHANISMS if not MECHANISMS[name].is_aside)}]\n")

    wanted = {(name, workload) for name in models() for workload in WORKLOADS} | {
        (f"venet without {name}", workload)
        for name, mechanism in MECHANISMS.items()
        if not mechanism.is_aside
        for workload in WORKLOADS
    }
    assert ("finished", {}) == (record["state"], record["missing"])
    assert wanted == {(reading["subject"], reading["workload"]) for reading in record["readings"]}
    silent = [reading for reading in record["readings"] if not reading["figures"]["rate"] > 0]
    assert [] == silent


def test_cards_that_trap_are_told_from_those_that_do_not(bakeoff: Bakeoff) -> None:
    """Register accesses are counted for the models that have them."""
    record = bakeoff("models: [venet, virtio-net, virtio-net-mmio, e1000]\nworkloads: [requests]\nwithout: []\n")

    traps = {reading["model"]: reading["figures"]["traps"] for reading in record["readings"]}
    assert (0, 0) == (traps["venet"], traps["virtio-net"])
    assert traps["virtio-net-mmio"] > 0
    assert traps["e1000"] > 0


def test_report_of_a_folder_can_be_compared_with(bakeoff: Bakeoff, tmp_path: Path, environment: dict[str, str]) -> None:
    """What was written is read again, and says what changed."""
    out = tmp_path / "out"
    record = bakeoff("models: [venet]\nworkloads: [requests]\nwithout: []\n", "-o", str(out))

    assert {"readings.jsonl", "result.json", "report.md", "report.html"} == {path.name for path in out.iterdir()}
    assert record["readings"] == [
        {"subject": one.subject, "model": one.model, "without": one.without, "workload": one.workload,
         "turn": one.turn, "figures": one.figures}
        for one in load_record(out / "result.json").readings
    ]  # fmt: skip
    again = [str(tmp_path / "contest.yaml"), "--compare", str(out / "result.json")]
    assert "changed beyond chance" in run("bakeoff", *again, environment=environment, limit_s=LIMIT_S).stdout


def test_ctrl_c_ends_it_with_what_was_measured(running: subprocess.Popen[str], tmp_path: Path) -> None:
    """The record is whole, and says that it was interrupted."""
    running.send_signal(signal.SIGINT)
    printed, said = running.communicate(timeout=LIMIT_S)

    record = load_record(tmp_path / "out" / "result.json")
    assert (130, "interrupted") == (running.returncode, record.state), said
    assert len(record.readings) >= 2
    assert "bake-off: interrupted" in printed


def test_guest_that_dies_takes_its_model_out_and_is_told(
    running: subprocess.Popen[str], tmp_path: Path, run_dir: Path
) -> None:
    """The exit code says that something is missing; what was measured before is told."""
    (lab,) = state.lab_folders(run_dir)
    victim = state.read_state(lab).processes["venet-replier"].identity
    assert victim is not None
    os.kill(victim.pid, signal.SIGKILL)

    running.communicate(timeout=LIMIT_S)

    record = load_record(tmp_path / "out" / "result.json")
    assert (1, {"venet"}) == (running.returncode, set(record.missing))
    assert "venet-replier" in record.missing["venet"]

"""`vbnet soak` with real guests: every kind of fault, ends that nobody planned, and what must be found."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.vbnet_program import COMMAND
from tests.support.waiting import eventually
from vbnet.bus.rundir import RunDir
from vbnet.cluster import state
from vbnet.load.soak.faults import KINDS

LIMIT_S = 200.0
pytestmark = pytest.mark.timeout(240)
LOAD = "load: {guests: 2, flows: [{pattern: pairs, size: imix, poisson: 200}]}\n"
QUICK = "warm-up: 500ms\ninterval: 200ms\nrest: 1s\n"
ALL_KINDS = """
for: 2m
seed: 3
warm-up: 2s
interval: 500ms
rest: 5s
load:
  guests: 4
  flows:
    - {from: load-0, to: load-1, size: imix, poisson: 200}
    - {from: load-2, to: load-3, size: 200, rate: 200, reply: true}
faults:
  every: 2s
  kinds:
    kill: {}
    restart: {}
    stop: {for: 500ms}
    slow: {for: 500ms}
    link-down: {for: 300ms}
    unplug: {for: 300ms}
    hot-plug: {for: 300ms}
    reroute: {for: 300ms}
"""
GUESTS = '''
import os
import select
import struct


def leak(guest):
    """Open a file again and again, and keep it."""
    kept = []
    while True:
        kept.append(os.open("/dev/null", os.O_RDONLY))
        select.select([], [], [], 0.05)


def corrupt(guest):
    """Send what looks like a test frame and does not fit its own check."""
    nic = guest.nic("eth0")
    to = bytes.fromhex(os.environ["TO"].replace(":", ""))
    frame = to + nic.mac.octets + bytes.fromhex("88b50100") + struct.pack("<IIQQ", 1, 7, 0, 1) + bytes(40)
    while True:
        nic.send([frame])
        select.select([], [], [], 0.1)
'''

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _nothing_left(no_leaked_processes: None, no_leaked_links: None) -> None:
    """Every test here ends with nothing running."""


@pytest.fixture
def environment(run_dir: Path) -> dict[str, str]:
    """Where soaks of a test have their run directories."""
    return {**os.environ, "VBNET_RUN_DIR": str(run_dir)}


@pytest.fixture
def soak(tmp_path: Path, environment: dict[str, str]) -> Run:
    """Run the command, and expect an exit code."""

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, "soak", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment, cwd=tmp_path
        )
        assert code == done.returncode, done.stdout + done.stderr
        return done

    return run


@contextmanager
def begun(tmp_path: Path, environment: dict[str, str], text: str) -> Iterator[subprocess.Popen[str]]:
    """A soak into ``out``, once it has a window behind its warm-up."""
    (tmp_path / "p.yaml").write_text(text)
    command = [*COMMAND, "soak", "p.yaml", "-o", "out"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as process:
        windows = tmp_path / "out" / "windows.jsonl"
        try:
            eventually(lambda: windows.exists() and windows.read_bytes().count(b"\n") >= 2, "windows", LIMIT_S)
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=LIMIT_S)


def result_in(tmp_path: Path) -> dict[str, Any]:
    """What a soak found."""
    found: dict[str, Any] = json.loads((tmp_path / "out" / "result.json").read_text())
    return found


def broken(result: dict[str, Any]) -> list[str]:
    """Invariants that do not hold."""
    return [one["what"] for one in result["invariants"] if one["broken"]]


def test_the_plan_is_what_the_seed_makes_of_it(soak: Run) -> None:
    """Printed for people and for programs; nothing is started."""
    rows = json.loads(soak("short", "--plan", "--seed", "5", "--for", "1m", "--format", "json").stdout)

    assert set(KINDS) == {row["kind"] for row in rows}
    assert list(range(len(rows))) == [row["fault"] for row in rows]


@pytest.mark.slow
@pytest.mark.alone
def test_every_kind_of_fault_is_done_and_everything_holds(soak: Run, tmp_path: Path, run_dir: Path) -> None:
    """Guests that were killed take part again, what was lost is the faults', and nothing is left."""
    (tmp_path / "p.yaml").write_text(ALL_KINDS)

    soak("p.yaml", "-o", "out")

    result = result_in(tmp_path)
    marks = [window["mark"] for window in result["windows"] if window.get("mark")]
    assert set(KINDS) == {mark["fault"]["kind"] for mark in marks}
    assert result["planned_faults"] == len(marks)
    assert all(mark["after_s"] is not None for mark in marks)
    assert [] == broken(result)
    assert 0 == sum(window["lost"] for window in result["windows"] if window["kind"] == "calm")
    assert 0 < sum(window["lost"] for window in result["windows"] if window["kind"] == "fault")
    assert [] == list(run_dir.iterdir())


@pytest.mark.slow
def test_a_soak_that_was_interrupted_reports_and_goes_on(
    soak: Run, tmp_path: Path, run_dir: Path, environment: dict[str, str]
) -> None:
    """Ctrl-C in the middle of a fault: exit code 130, a report, nothing left; then the rest of the same schedule."""
    text = LOAD + QUICK + "for: 9s\nfaults: {every: 2s, kinds: {stop: {for: 1500ms}, unplug: {for: 300ms}}}"
    with begun(tmp_path, environment, text) as process:
        process.send_signal(signal.SIGINT)
        _, notes = process.communicate(timeout=LIMIT_S)
    first = result_in(tmp_path)

    soak("--resume", "out")

    whole = result_in(tmp_path)
    assert 130 == process.returncode, notes
    assert "interrupted" == first["outcome"]["state"]
    assert (2, "finished") == (whole["parts"], whole["outcome"]["state"])
    done = [one["mark"]["fault"] for one in whole["windows"] if one.get("mark") and not one["is_cut"]]
    assert json.loads((tmp_path / "out" / "soak.json").read_text())["schedule"] == done
    assert first["windows"] == whole["windows"][: len(first["windows"])]
    assert whole["elapsed_s"] >= 8.8
    assert [] == list(run_dir.iterdir())


@pytest.mark.slow
def test_a_soak_that_was_killed_goes_on(soak: Run, tmp_path: Path, environment: dict[str, str]) -> None:
    """Kill -9, as a power cut would: what was written is kept, the window that was cut short is done again."""
    text = LOAD + QUICK + "for: 7s\nfaults: {every: 2s, kinds: {kill: {}}}"
    with begun(tmp_path, environment, text) as process:
        process.kill()
        process.communicate(timeout=LIMIT_S)
    written = (tmp_path / "out" / "windows.jsonl").read_bytes()

    soak("p.yaml", "--resume", "out")

    result = result_in(tmp_path)
    assert (2, "finished", []) == (result["parts"], result["outcome"]["state"], broken(result))
    assert (tmp_path / "out" / "windows.jsonl").read_bytes().startswith(written)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["host", "load-1"])
def test_a_target_that_dies_ends_the_soak_or_is_found(
    victim: str, tmp_path: Path, run_dir: Path, environment: dict[str, str]
) -> None:
    """Without a host node there is no lab; a guest that nobody was to end comes back, and is a finding."""
    with begun(tmp_path, environment, LOAD + QUICK + "for: 8s") as process:
        lab = state.read_state(RunDir.for_node("soak-p", run_dir).path)
        record = lab.host if victim == "host" else lab.processes[lab.guests[victim].process]
        assert record is not None
        assert record.identity is not None
        os.kill(record.identity.pid, signal.SIGKILL)
        _, notes = process.communicate(timeout=LIMIT_S)

    result = result_in(tmp_path)
    assert 1 == process.returncode, notes
    if victim == "host":
        assert "broken" == result["outcome"]["state"]
    else:
        assert "finished" == result["outcome"]["state"]
        assert "unasked" in broken(result)
        assert result["windows"][-1]["counts"]["received"] > 0
    assert [] == list(run_dir.iterdir())


@pytest.mark.slow
def test_a_leak_and_a_corruption_are_found(soak: Run, tmp_path: Path) -> None:
    """A guest that keeps opening files drifts; frames that do not fit their check are corrupted; the rest holds."""
    (tmp_path / "guests.py").write_text(GUESTS)
    (tmp_path / "lab.yaml").write_text(
        "name: bad\nswitches: {lan: {}}\nguests:\n"
        "  a: {kind: traffic, nics: [{switch: lan}]}\n"
        '  b: {kind: traffic, nics: [{switch: lan, mac: "02:00:00:00:00:0b"}]}\n'
        "  leaky: {kind: python, run: 'guests.py:leak'}\n"
        "  bad: {kind: python, run: 'guests.py:corrupt', nics: [{switch: lan}], env: {TO: '02:00:00:00:00:0b'}}\n"
    )
    (tmp_path / "p.yaml").write_text(
        QUICK.replace("200ms", "100ms") + "for: 14s\nload: {lab: lab.yaml, flows: [{from: a, to: b, rate: 100}]}"
    )

    soak("p.yaml", "-o", "out", code=1)

    result = result_in(tmp_path)
    drifting = {(one["what"], one["whose"]) for one in result["drifts"] if one["holds"] is False}
    assert {("descriptors", "leaky")} == {one for one in drifting if one[0] == "descriptors"}
    assert ["corrupted"] == broken(result)

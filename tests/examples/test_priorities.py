"""The priorities example runs as its README says."""

import subprocess
import sys
from pathlib import Path

import pytest

LAB = Path(__file__).parents[2] / "examples" / "priorities" / "lab.yaml"


@pytest.mark.usefixtures("no_leaked_processes")
def test_questions_are_answered_in_a_flood(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab ends by itself and well, and tells how long answers took at both priorities."""
    monkeypatch.setenv("ROUNDS", "5")
    monkeypatch.setenv("RESULT", str(tmp_path / "answers"))
    command = [sys.executable, "-m", "vbnet.cli.main", "up", str(LAB)]

    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert 0 == finished.returncode, finished.stderr
    lines = (tmp_path / "answers").read_text(encoding="utf-8").splitlines()
    assert ["priority 7: median", "priority 0: median"] == [line[:18] for line in lines]
    assert [] == list(run_dir.iterdir())

"""The coordinator example runs as its README says."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "examples" / "coordinator" / "coordinator.py"


@pytest.mark.usefixtures("no_leaked_processes")
def test_two_guests_share_a_core_with_the_coordinator_on_and_off() -> None:
    """Both measurements are printed; how late, no test can ask of a busy machine."""
    command = [sys.executable, str(PROGRAM), "0.2"]

    finished = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)

    assert 0 == finished.returncode, finished.stderr
    assert ["coordinator on", "coordinator off"] == [line.partition(":")[0] for line in finished.stdout.splitlines()]

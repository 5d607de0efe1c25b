"""The doorbell example runs as its README says."""

import subprocess
import sys
from pathlib import Path

import pytest

LAB = Path(__file__).parents[2] / "examples" / "doorbell" / "lab.yaml"


@pytest.mark.usefixtures("no_leaked_processes")
def test_a_guest_and_a_program_hear_the_doorbell(run_dir: Path) -> None:
    """The lab ends by itself and well, which it does only when both were heard."""
    command = [sys.executable, "-m", "vbnet.cli.main", "up", str(LAB)]

    finished = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)

    assert 0 == finished.returncode, finished.stderr
    assert "guests: 2/2 ready" in finished.stderr
    assert [] == list(run_dir.iterdir())

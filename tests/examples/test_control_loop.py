"""The control loop example runs as its README says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "examples" / "control_loop" / "control_loop.py"


@pytest.mark.usefixtures("no_leaked_processes")
def test_control_loop_reaches_its_temperature_and_tells_its_jitter() -> None:
    """It ends by itself and well, with as many ticks as asked for."""
    finished = subprocess.run(
        [sys.executable, str(PROGRAM), "500"], capture_output=True, text=True, timeout=25, check=False
    )

    assert 0 == finished.returncode, finished.stderr
    assert re.match(r"temperature (59|60|61)\.\d, wanted 60\.0\n", finished.stdout), finished.stdout
    assert re.search(
        r"ticks 500, missed \d+\nlate by, in µs: half [\d.]+,\n  99 of 100 [\d.]+, worst [\d.]+\n", finished.stdout
    )

"""The fastcall example runs as its README says."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "examples" / "fastcall" / "timer_chip.py"


def test_processors_access_registers_both_ways() -> None:
    """Every value that was written is read back, through memory and the ordinary way."""
    finished = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=50, check=False)

    assert (0, "") == (finished.returncode, finished.stderr)
    assert [
        "4 processors wrote and read 400 registers through memory: 400 right",
        "the same without fastcalls: 400 right",
    ] == finished.stdout.splitlines()

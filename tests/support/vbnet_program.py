"""The command line as a user runs it: another process, its output, its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

LIMIT_S = 50.0
COMMAND = (sys.executable, "-m", "vbnet.cli.main")


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run ``vbnet`` with these arguments and expect its exit code."""
    finished = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert code == finished.returncode, f"{arguments}: {finished.stdout}{finished.stderr}"
    return finished


def rows(*arguments: str) -> Any:
    """Run ``vbnet`` with these arguments and return the JSON it prints."""
    return json.loads(run(*arguments, "--format", "json").stdout)

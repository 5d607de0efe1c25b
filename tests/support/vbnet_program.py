"""The command line as a user runs it: another process, its output, its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

LIMIT_S = 50.0
COMMAND = (sys.executable, "-m", "vbnet.cli.main")


def run(
    *arguments: str, code: int = 0, environment: Mapping[str, str] | None = None, limit_s: float = LIMIT_S
) -> subprocess.CompletedProcess[str]:
    """Run ``vbnet`` with these arguments and expect its exit code."""
    finished = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=limit_s, check=False, env=environment
    )
    assert code == finished.returncode, f"{arguments}: {finished.stdout}{finished.stderr}"
    return finished


def rows(*arguments: str, code: int = 0, environment: Mapping[str, str] | None = None, limit_s: float = LIMIT_S) -> Any:
    """Run ``vbnet`` with these arguments and return the JSON it prints."""
    return json.loads(run(*arguments, "--format", "json", code=code, environment=environment, limit_s=limit_s).stdout)

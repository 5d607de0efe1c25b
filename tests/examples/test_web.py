"""The web example runs as its README says."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LAB = Path(__file__).parents[2] / "examples" / "web" / "lab.yaml"


def vbnet(*arguments: str) -> str:
    """Run the command line and return what it printed."""
    command = [sys.executable, "-m", "vbnet.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=True).stdout


@pytest.fixture
def lab(run_dir: Path) -> Iterator[None]:
    """Bring the lab up in the background, and down again."""
    vbnet("up", str(LAB), "-d")
    yield
    vbnet("down")
    assert [] == list(run_dir.iterdir())


@pytest.mark.usefixtures("no_leaked_processes", "namespaces", "tun_device", "lab")
def test_the_namespace_pings_and_visits_the_hosts(program: Callable[[str], str]) -> None:
    """The kernel's own ping and curl get answers from guests that have no kernel."""
    pinged = vbnet("exec", "client", "--", program("ping"), "-n", "-c", "2", "-i", "0.2", "10.10.0.10")
    page = vbnet("exec", "client", "--", program("curl"), "-s", "--max-time", "5", "http://10.10.0.11/")

    assert " 0% packet loss" in pinged
    assert "10.10.0.11" in page

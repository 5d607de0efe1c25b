"""`vbnet demo`: a newcomer sees traffic, and nothing is left."""

import os
import re
from pathlib import Path

import pytest

from tests.support.vbnet_program import run


@pytest.mark.usefixtures("no_leaked_processes", "no_leaked_links")
def test_the_demo_shows_traffic_ends_well_and_leaves_nothing(run_dir: Path) -> None:
    """Ping, a web page, answered ARP requests, counted frames with latency, and an empty run directory."""
    said = run("demo").stdout

    assert "who has 10.10.0.12?" in said
    assert re.search(r"gen: +sent [1-9][0-9,]+ frames", said)
    assert re.search(r"sink: got [1-9][0-9,]+, lost", said)
    assert "latency: half within" in said
    assert "Left behind: nothing." in said
    assert [] == list(run_dir.iterdir())
    if os.geteuid() == 0:
        assert " 0% packet loss" in said
        assert "HTTP/1.1 200 OK" in said

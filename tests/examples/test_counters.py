"""The counters example runs as its README says."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.support.real_lab import real_lab
from tests.support.waiting import eventually

FOLDER = Path(__file__).parents[2] / "examples" / "counters"


@pytest.mark.usefixtures("no_leaked_processes")
def test_what_guests_count_is_exported_under_their_names() -> None:
    """Both guests' numbers are there while they run; those of one that is killed vanish, and the other's stay."""
    text = (FOLDER / "lab.yaml").read_text().replace("name: counters", "name: t")
    with real_lab(text, files={"office.py": (FOLDER / "office.py").read_text()}) as lab:

        def served() -> set[str]:
            said = lab.vbnet("metrics", "--node", "t")
            return set(re.findall(r'vbnet_guest_program_served_total\{guest="(\w+)"\} [1-9]', said))

        eventually(lambda: served() == {"north", "south"}, "both serve")
        said = lab.vbnet("metrics", "--node", "t")
        state = lab.state()
        north = state.processes[state.guests["north"].process].identity
        assert north is not None
        os.kill(north.pid, signal.SIGKILL)
        eventually(lambda: served() == {"south"}, "what is gone vanishes")

    assert {"queue_too_long", "impatient"} == set(re.findall(r'program_left_total\{.*reason="(\w+)"', said))
    assert "# TYPE vbnet_guest_program_queue gauge" in said

"""The siren example runs as its README says."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import HostProcess
from tests.support.vbnet_program import COMMAND
from tests.support.waiting import eventually
from vbnet.bus.operator import SyncOperator

FOLDER = Path(__file__).parents[2] / "examples" / "siren"


@pytest.mark.usefixtures("no_leaked_processes")
def test_the_siren_hears_the_button(run_dir: Path) -> None:
    """Both programs end well, the signal leads to the siren's eventfd, and nothing drives it any more."""
    with HostProcess(run_dir / "default"), SyncOperator() as operator:
        operator.signal_create("alarm")
        export = [*COMMAND, "signal", "export", "alarm", "--", sys.executable, str(FOLDER / "siren.py")]
        siren = subprocess.Popen(export, stdout=subprocess.PIPE, text=True)
        press = [sys.executable, str(FOLDER / "button.py"), *COMMAND, "signal", "drive", "alarm"]

        pressed = subprocess.run(press, capture_output=True, text=True, timeout=50, check=False)
        said, _ = siren.communicate(timeout=50)

        eventually(lambda: not operator.node_info().counters["vbnet_attach_drives"], "the drive has ended")
        [row] = operator.signal_list()
        assert (0, "button: pressed\n") == (pressed.returncode, pressed.stdout)
        assert (0, "siren: alarm\n") == (siren.returncode, said)
        assert ("eventfd", 0) == (row["route"], row["sources"])

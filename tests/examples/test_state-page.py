"""The state-page example runs as its README says."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import HostProcess
from vbnet.bus.operator import SyncOperator

PROGRAM = Path(__file__).parents[2] / "examples" / "state-page" / "robot.py"


@pytest.mark.usefixtures("no_leaked_processes")
def test_watcher_sees_the_robot_and_its_last_position(run_dir: Path) -> None:
    """Every position is on the circle; the last one stays when the robot has left."""
    with HostProcess(run_dir / "default"), SyncOperator() as operator:
        operator.bus_create("plant")
        operator.device_create("where", "state", {"schema": "x:f64 y:f64 step:u64"})
        operator.device_plug("where", "plant")
        watcher = subprocess.Popen([sys.executable, str(PROGRAM), "watch"], stdout=subprocess.PIPE, text=True)

        driven = subprocess.run([sys.executable, str(PROGRAM), "drive", "300"], timeout=50, check=False)
        said, _ = watcher.communicate(timeout=50)

        assert (0, 0) == (driven.returncode, watcher.returncode)
        assert "the robot left after step 300\n" == said
        assert '"step":300' in operator.device_get("where").attributes["now"]

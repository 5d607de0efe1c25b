"""The disk example runs as its README says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "disk"


@pytest.mark.usefixtures("no_leaked_processes")
def test_a_guest_remembers_on_its_disk(run_dir: Path, tmp_path: Path) -> None:
    """Each start adds a line to the file, which is there after the lab."""
    for name in ("lab.yaml", "diary.py"):
        shutil.copy(FOLDER / name, tmp_path)
    image = tmp_path / "diary.img"
    image.touch()
    image.write_bytes(bytes(4096))
    command = [sys.executable, "-m", "vbnet.cli.main", "up", str(tmp_path / "lab.yaml")]

    finished = [subprocess.run(command, capture_output=True, text=True, timeout=50, check=False) for _ in range(2)]

    assert [0, 0] == [each.returncode for each in finished], finished[0].stderr
    assert ["start 1", "start 2", ""] == [
        line.strip() for line in image.read_bytes()[:96].strip(b"\0").decode().split("\n")
    ]
    assert [] == list(run_dir.iterdir())

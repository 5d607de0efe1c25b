"""The machine example runs as its README says."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.vbnet_program import rows, run
from tests.support.vm import VirtualMachine, qemu_card

LAB = Path(__file__).parents[2] / "examples" / "machine" / "lab.yaml"


@pytest.fixture
def socket(run_dir: Path) -> Iterator[Path]:
    """Bring the lab up in the background, and down again."""
    run("up", str(LAB), "-d")
    yield next(Path(row["detail"]) for row in rows("ps") if row["guest"] == "vm")
    run("down")
    assert [] == list(run_dir.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.usefixtures("no_leaked_processes")
def test_machine_visits_the_web_host(socket: Path) -> None:
    """Linux in a machine gets the page of a guest that has no kernel."""
    with VirtualMachine("vm", qemu_card(socket, mac="02:00:00:00:00:0a")) as machine:
        machine.run("ip addr add 10.10.0.1/24 dev eth0 && ip link set eth0 up")

        assert "10.10.0.10" in machine.run("wget -q -O - http://10.10.0.10/")

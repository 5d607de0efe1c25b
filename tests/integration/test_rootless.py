"""Without any privilege: network namespaces in a user namespace, and clear words about what is not allowed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.ordinary_user import OPEN_TO_ALL, USER_ID, as_ordinary_user
from tests.support.vbnet_program import COMMAND, LIMIT_S

ROOT = Path(__file__).parents[2]
LAB = """
name: t
switches: {lan: }
guests:
  one: {kind: netns, nics: [{switch: lan, ip: 10.10.0.1/24}]}
  two: {kind: netns, nics: [{switch: lan, ip: 10.10.0.2/24}]}
"""


@pytest.fixture(autouse=True)
def _nothing_left(no_leaked_processes: None, no_leaked_links: None) -> None:
    """Every test here ends with nothing running."""


@pytest.fixture
def run(run_dir: Path, program: Callable[[str], str]) -> Callable[..., str]:
    """Return a function that runs ``vbnet`` as an ordinary user and gives back all it printed."""
    program("setpriv")
    if os.geteuid() == 0:
        os.chown(run_dir, USER_ID, USER_ID)
    possible = [*as_ordinary_user([sys.executable, "-c", "import vbnet, typer, zmq"])]
    if subprocess.run(possible, cwd=ROOT, check=False, capture_output=True).returncode != 0:
        pytest.skip("this Python cannot be run by an ordinary user here")
    environment = {**os.environ, "HOME": str(run_dir)}

    def run_it(*arguments: str, code: int = 0, tun_mode: int = OPEN_TO_ALL) -> str:
        finished = subprocess.run(
            as_ordinary_user([*COMMAND, *arguments], tun_mode),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        said = finished.stdout + finished.stderr
        assert code == finished.returncode, said
        return said

    return run_it


@pytest.mark.usefixtures("namespaces", "tun_device")
def test_namespaces_work_without_root(run: Callable[..., str], run_dir: Path, program: Callable[[str], str]) -> None:
    """Up, the kernel's own ping between two namespaces, down: all as an ordinary user."""
    file = run_dir / "lab.yaml"
    file.write_text(LAB, encoding="utf-8")

    run("up", str(file), "-d")
    said = run("exec", "one", "--", program("ping"), "-n", "-c", "2", "-i", "0.3", "10.10.0.2")
    run("down")

    assert " 0% packet loss" in said
    assert [file] == list(run_dir.iterdir())


@pytest.mark.usefixtures("tun_device")
def test_an_uplink_without_root_is_refused_with_its_line(run: Callable[..., str], run_dir: Path) -> None:
    """Nothing is started, and the message says how somebody else can help."""
    file = run_dir / "lab.yaml"
    file.write_text("name: t\nswitches: {lan: }\nuplinks:\n  - {switch: lan, tap: vbnope0}\n", encoding="utf-8")

    said = run("up", str(file), code=2)

    expected = (
        f"{file}:4: uplink `vbnope0` needs the right to make network interfaces; run as root, or have it made for you"
    )
    assert said.startswith(expected)
    assert [file] == list(run_dir.iterdir())


@pytest.mark.usefixtures("namespaces", "tun_device")
def test_a_tap_device_of_root_alone_is_told_apart_from_none(run: Callable[..., str], run_dir: Path) -> None:
    """Some distributions ship the device with mode 0600; loading a module would not help then."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a device that this user may not open")
    file = run_dir / "lab.yaml"
    file.write_text(LAB, encoding="utf-8")

    said = run("up", str(file), code=2, tun_mode=0o600)
    checked = run("doctor", tun_mode=0o600)

    reason = "may not be opened by this user (mode 0600)"
    assert said.startswith(f"{file}:5: guest `one` needs /dev/net/tun, which {reason}; ask root for: chmod 0666")
    assert f"{reason}: no netns guests, no uplinks" in " ".join(checked.split())


@pytest.mark.slow
@pytest.mark.usefixtures("namespaces", "tun_device")
def test_the_whole_demo_works_without_root(
    run: Callable[..., str], run_dir: Path, program: Callable[[str], str]
) -> None:
    """Host node, stack hosts, Python guest, traffic pair and a namespace with ping and curl; nothing is left."""
    program("ping")
    program("curl")

    said = run("demo")

    assert "3 packets transmitted, 3 received, 0% packet loss" in said
    assert "HTTP/1.1 200 OK" in said
    assert "who has 10.10.0.12?" in said
    assert "sent 40,000 frames" in said
    assert "Left behind: nothing." in said
    assert [] == list(run_dir.iterdir())

"""`vbnet link`: what it prints is enough for machines, and wrong use is told in one sentence."""

import json
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.ordinary_user import as_ordinary_user
from tests.support.vbnet_program import COMMAND, rows, run
from tests.support.vm import VirtualMachine, emulator

ADDRESSES = ("10.0.0.1", "10.0.0.2")


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.usefixtures("no_leaked_processes")
def test_machines_with_the_printed_arguments_reach_each_other(run_dir: Path) -> None:
    """Two machines get what is printed and nothing else about networks; each change at the ends is a line."""
    qemu, environment = emulator()
    command = [*COMMAND, "link", "--memory", "128M", "--queues", "2", "--mtu", "9000", "--qemu", qemu]
    command += ["--format", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as program:
        assert program.stdout is not None
        link = json.loads(program.stdout.readline())
        with ExitStack() as stack:
            machines = [
                stack.enter_context(VirtualMachine(end["name"], end["arguments"], processors=2)) for end in link["ends"]
            ]
            for machine, address in zip(machines, ADDRESSES, strict=True):
                machine.run(f"ip addr add {address}/24 dev eth0 && ip link set eth0 up")
                assert "9000" == machine.run("cat /sys/class/net/eth0/mtu").strip()
            assert "3 packets received" in machines[0].run(f"ping -c 3 -i 0.2 -W 5 -s 8900 {ADDRESSES[1]}")
            assert ["connected"] * 2 == [row["state"] for row in rows("ps", "link")]
            told: set[tuple[str, str]] = set()
            while not {("a", "connected"), ("b", "connected")} <= told:
                line = json.loads(program.stdout.readline())
                told.add((line["end"], line["state"]))
        program.send_signal(signal.SIGINT)
        lines = [json.loads(line) for line in program.stdout]
        assert 0 == program.wait(20)

    totals: dict[str, Any] = {line["end"]: line for line in lines if "transmit_frames" in line}
    assert totals["a"]["transmit_frames"] >= 3
    assert totals["b"]["receive_frames"] >= 3
    assert [] == list(run_dir.iterdir())


@pytest.mark.usefixtures("no_leaked_processes")
def test_link_in_the_background_is_a_lab_with_a_socket_for_each_end(run_dir: Path) -> None:
    """Its name is taken until `vbnet down`; its sockets are where it was told."""
    folder = run_dir.parent / f"{run_dir.name}-s"
    folder.mkdir()
    link = rows("link", "cable", "--ends", "3", "--sockets", str(folder), "-d")
    taken = run("link", "cable", "-d", code=5)
    listed = rows("ps", "cable")
    sockets = [Path(end["socket"]) for end in link["ends"]]
    are_there = [socket.is_socket() for socket in sockets]
    run("down", "cable")

    assert [True] * 3 == are_there
    assert [["a", "waiting"], ["b", "waiting"], ["c", "waiting"]] == [[row["guest"], row["state"]] for row in listed]
    assert [str(socket) for socket in sockets] == [row["detail"] for row in listed]
    assert "vbnet down cable" in taken.stderr
    assert [] == list(folder.iterdir())
    folder.rmdir()


@pytest.mark.usefixtures("no_leaked_processes")
def test_version_that_is_not_known_is_said(run_dir: Path) -> None:
    """What is printed is for a new QEMU, with a word on how to name another; one that is named needs no word."""
    unknown = run("link", "new", "--qemu", "/nonexistent", "-d")
    named = run("link", "old", "--qemu", "7.2", "-d")
    run("down", "--all")

    assert "/nonexistent was not found" in unknown.stderr
    assert "QEMU 9.2 or newer" in unknown.stderr
    assert "reconnect-ms=1000" in unknown.stdout
    assert "--qemu" not in named.stderr
    assert "reconnect=1" in named.stdout
    assert ",vectors=0" in named.stdout
    assert [] == list(run_dir.iterdir())


def test_memory_that_qemu_does_not_take_is_told(run_dir: Path) -> None:
    """Before anything is started."""
    assert "no size that QEMU reads" in run("link", "--memory", "1GB", "--qemu", "9.2", code=2).stderr
    assert [] == list(run_dir.iterdir())


@pytest.mark.parametrize(
    ("sockets", "code", "said"),
    [("nowhere", 3, "there is no folder"), ("x" * 100, 2, "bytes")],
    ids=["no folder", "long path"],
)
def test_folder_that_cannot_be_is_told(run_dir: Path, sockets: str, code: int, said: str) -> None:
    """One sentence and the exit code of its kind; nothing was started."""
    folder = run_dir / sockets
    if code != 3:
        folder.mkdir()
    finished = run("link", "--sockets", str(folder), code=code)

    assert said in finished.stderr
    assert 1 == len(finished.stderr.splitlines())
    assert [] == [entry for entry in run_dir.iterdir() if entry != folder]


def test_folder_that_may_not_be_written_is_told() -> None:
    """Nobody but root makes a socket in /usr."""
    command = as_ordinary_user([*COMMAND, "link", "--sockets", "/usr"])
    finished = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)

    assert 4 == finished.returncode, finished.stderr
    assert "no socket may be made in /usr" in finished.stderr

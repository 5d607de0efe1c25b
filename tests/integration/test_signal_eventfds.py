"""`vbnet signal export` and `vbnet signal drive`: programs that know nothing of vbnet, on both ends of signals.

Host node, commands and programs are processes of their own; the guest whose handler is raised is this one.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import vbnet
from tests.support import vbnet_program
from tests.support.vbnet_program import COMMAND
from tests.support.waiting import PATIENCE, eventually
from vbnet.bus.operator import SyncOperator
from vbnet.devices.intc.driver import IntcDriver
from vbnet.testing.processes import HostProcess, PythonProcess

pytestmark = pytest.mark.usefixtures("no_leaked_processes")

WATCHER = """
import os, select, sys
fd = int(os.environ["VBNET_SIGNAL_FD"])
print(fd, sorted(name for name in sys.modules if name.startswith("vbnet")), *sys.argv[1:], flush=True)
for _ in range(2):
    select.select([fd], [], [], 20)
    print("raised", os.eventfd_read(fd) > 0, flush=True)
sys.exit(23)
"""
DRIVER = """
import os, subprocess, sys
fd = os.eventfd(0)
command = subprocess.Popen([*sys.argv[1:], "--fd", str(fd)], pass_fds=[fd], stdout=subprocess.PIPE, text=True)
print(command.pid, command.stdout.readline().replace(str(fd), "FD"), end="", flush=True)
for line in sys.stdin:
    if line == "write\\n":
        os.eventfd_write(fd, 1)
    else:
        print(command.wait(20), flush=True)
"""
"""Has a signal driven by an eventfd, writes to it when told, and tells how the command ended."""


@dataclass
class Desk:
    """An operator, and a guest ``web`` that counts raises of its signal ``tick``."""

    host: HostProcess
    operator: SyncOperator
    heard: threading.Semaphore

    def row(self, name: str) -> dict[str, Any]:
        """A signal as the host lists it."""
        [found] = [row for row in self.operator.signal_list() if row["name"] == name]
        return found

    def sources(self, name: str) -> int:
        """How many eventfds drive a signal."""
        sources: int = self.row(name)["sources"]
        return sources


@pytest.fixture
def desk(run_dir: Path) -> Iterator[Desk]:
    """Give the test a host node with the guest and a signal ``alarm`` of the operator's."""
    with HostProcess(run_dir) as host, SyncOperator(host.run_dir) as operator:
        operator.bus_create("lan")
        operator.device_create("irq", "intc")
        operator.device_plug("irq", "lan")
        operator.signal_create("alarm")
        with vbnet.Guest("web", "lan", address=host.run_dir) as guest:
            guest.register(IntcDriver(is_realtime=False))
            heard = threading.Semaphore(0)
            guest.run(guest.bind("intc0").create("tick", heard.release, priority=5))
            yield Desk(host, operator, heard)


def driver(name: str, *options: str) -> PythonProcess:
    """A program that has ``vbnet signal drive`` take its eventfd."""
    return PythonProcess(DRIVER, [*COMMAND, "signal", "drive", name, *options])


def test_a_program_sees_raises_through_the_eventfd_that_it_was_started_with(desk: Desk) -> None:
    """As descriptor 3, whatever the signal led to before; its exit code is the command's, and the route stays."""
    command = [*COMMAND, "signal", "export", "alarm", "--", sys.executable, "-c", WATCHER, "--loud", "-x"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        said = [program.stdout.readline()]
        for _ in range(2):
            vbnet_program.run("signal", "raise", "alarm")
            said.append(program.stdout.readline())
        code = program.wait(PATIENCE)

    assert ["3 [] --loud -x\n", "raised True\n", "raised True\n"] == said
    assert (23, "eventfd", 2) == (code, desk.row("alarm")["route"], desk.row("alarm")["raises"])
    desk.operator.signal_route("alarm", like="web/tick")
    desk.operator.signal_raise("alarm")
    assert desk.heard.acquire(timeout=PATIENCE)


def test_a_guest_s_own_signal_is_exported_too(desk: Desk) -> None:
    """The guest's handler hears nothing meanwhile, and serves it again when it is led back."""
    before = desk.row("tick")
    fd = desk.operator.signal_export("web/tick")
    os.set_blocking(fd, True)

    desk.operator.signal_raise("web/tick")
    read = os.eventfd_read(fd)
    was_heard = desk.heard.acquire(blocking=False)
    os.close(fd)
    desk.operator.signal_route("web/tick", guest="web", vcpu=before["vcpu"], vector=before["vector"])
    desk.operator.signal_raise("web/tick")

    assert (1, False) == (read, was_heard)
    assert desk.heard.acquire(timeout=PATIENCE)


def test_a_program_s_writes_reach_a_guest_s_handler(desk: Desk) -> None:
    """Through an operator's signal that leads to the guest; the list shows the source."""
    desk.operator.signal_route("alarm", like="web/tick")

    with driver("alarm") as program:
        said = program.line().partition(" ")[2]
        for _ in range(3):
            program.tell("write")
            assert desk.heard.acquire(timeout=PATIENCE)
        rows = vbnet_program.rows("signal", "list")

    assert "signal alarm is driven by descriptor FD" == said
    assert {"alarm": 1, "web/tick": 0} == {row["signal"]: row["sources"] for row in rows}
    eventually(lambda: not desk.sources("alarm"), "the drive has ended with its program")


def test_a_killed_command_detaches(desk: Desk) -> None:
    """After ``kill -9`` the program's writes raise nothing."""
    with driver("web/tick") as program:
        command = int(program.line().split()[0])
        program.tell("write")
        assert desk.heard.acquire(timeout=PATIENCE)

        os.kill(command, signal.SIGKILL)
        eventually(lambda: not desk.sources("tick"), "the host let go")
        program.tell("end")

        assert "-9" == program.line()
        program.tell("write")
        program.tell("end")
        assert "-9" == program.line()
        desk.operator.signal_raise("web/tick")
        assert desk.heard.acquire(timeout=PATIENCE)
        assert not desk.heard.acquire(blocking=False)


def test_the_command_ends_when_the_program_that_called_it_is_killed(desk: Desk) -> None:
    """An eventfd has no hang-up; the death of whose it is stands for that."""
    with driver("web/tick") as program:
        command = int(program.line().split()[0])

        program.kill()

        eventually(lambda: not desk.sources("tick"), "the host let go")
        eventually(lambda: not Path(f"/proc/{command}/exe").exists(), "the command has ended")


def test_a_kept_drive_needs_no_command(desk: Desk) -> None:
    """It returns at once, well; the program drives on until the signal is destroyed."""
    desk.operator.signal_route("alarm", like="web/tick")

    with driver("alarm", "--keep", "--format", "json") as program:
        said = json.loads(program.line().partition(" ")[2].replace("FD", "0"))
        program.tell("end")
        code = program.line()
        program.tell("write")
        assert desk.heard.acquire(timeout=PATIENCE)

    assert 1 == desk.sources("alarm")
    desk.operator.signal_destroy("alarm")
    assert 0 == desk.operator.node_info().counters["vbnet_attach_drives"]
    assert ("0", "alarm", True) == (code, said["signal"], said["keep"])


@pytest.mark.parametrize(
    ("end", "code"),
    [("destroyed", "0"), ("interrupted", "130"), ("host killed", "7")],
)
def test_the_command_says_by_its_exit_code_how_it_ended(desk: Desk, end: str, code: str) -> None:
    """Well when the signal was destroyed; interrupted; or the host is gone."""
    with driver("alarm") as program:
        command = int(program.line().split()[0])

        if end == "destroyed":
            desk.operator.signal_destroy("alarm")
        elif end == "interrupted":
            os.kill(command, signal.SIGINT)
        else:
            desk.host.kill()
        program.tell("end")

        assert code == program.line()


MISTAKES = [
    (["export", "siren", "--", "true"], 3, "no signal 'siren'"),
    (["export", "alarm", "--", "no-such-program"], 3, "no program `no-such-program` on this machine; nothing was"),
    (["export", "alarm"], 2, "Missing argument"),
    (["drive", "alarm"], 2, "--fd"),
    (["drive", "alarm", "--fd", "99"], 2, "the caller left no descriptor 99 open"),
    (["drive", "alarm", "--fd", "1"], 2, "driven by an eventfd"),
    (["drive", "siren", "--fd", "EVENTFD"], 3, "no signal 'siren'"),
]


def test_each_mistake_has_its_code_and_changes_nothing(desk: Desk) -> None:
    """The message says what happened and what to do."""
    fd = os.eventfd(0)
    os.set_inheritable(fd, True)  # noqa: FBT003 - the standard library's signature
    said = {}

    for words, code, _ in MISTAKES:
        command = [*COMMAND, "signal", *(word.replace("EVENTFD", str(fd)) for word in words)]
        finished = subprocess.run(command, capture_output=True, text=True, close_fds=False, timeout=50, check=False)
        assert code == finished.returncode, finished.stderr
        said[tuple(words)] = finished.stderr
    os.close(fd)

    assert [] == [said[tuple(words)] for words, _, message in MISTAKES if message not in said[tuple(words)]]
    assert ("nowhere", 0) == (desk.row("alarm")["route"], desk.sources("alarm"))

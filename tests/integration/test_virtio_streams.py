"""Consoles and entropy across real processes: what a guest says and hears, who attaches, what is left when one dies."""

import os
import pty
import select
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vbnet
from tests.support.vbnet_program import COMMAND
from tests.support.waiting import PATIENCE, eventually
from vbnet.bus.operator import SyncOperator
from vbnet.devices.virtio import wire
from vbnet.errors import PeerGone, UsageError
from vbnet.telemetry import read_counted
from vbnet.testing.processes import HostProcess


@pytest.fixture
def host(run_root: Path) -> Iterator[HostProcess]:
    """A host node in a process of its own."""
    with HostProcess(run_root) as process:
        yield process


@pytest.fixture
def operator(host: HostProcess) -> Iterator[SyncOperator]:
    """Its operator, with a bus."""
    operator = SyncOperator(host.run_dir)
    operator.bus_create("lan")
    yield operator
    operator.close()


@pytest.fixture
def guest(host: HostProcess, operator: SyncOperator) -> Iterator[vbnet.Guest]:
    """A guest of this process."""
    assert operator.bus_list()
    with vbnet.Guest("app", "lan", address=host.run_dir) as guest:
        yield guest


def plug(operator: SyncOperator, name: str, kind: str, **attributes: str) -> None:
    """Make a device, and put it on the bus."""
    operator.device_create(name, kind, attributes)
    operator.device_plug(name, "lan")


def terminal_of(operator: SyncOperator) -> int:
    """Open the terminal end of ``console0``."""
    return os.open(operator.device_get("console0").attributes["terminal"], os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)


def heard(fd: int, length: int) -> bytes:
    """Read so many bytes."""
    found = b""
    deadline = time.monotonic() + PATIENCE
    while len(found) < length and (left := deadline - time.monotonic()) > 0:
        if select.select([fd], [], [], left)[0]:
            found += os.read(fd, length - len(found))
    return found


@pytest.mark.parametrize("transport", wire.TRANSPORTS)
def test_entropy_is_random_and_as_much_as_asked_for(operator: SyncOperator, guest: vbnet.Guest, transport: str) -> None:
    """Over every transport; more than all buffers hold at once."""
    plug(operator, "rng0", "virtio-rng", transport=transport)

    rng = guest.bind("rng0", PATIENCE)
    found = [rng.read(length) for length in (1, 32, 100_000)]

    assert [1, 32, 100_000] == [len(each) for each in found]
    assert 256 == len(set(found[2]))


@pytest.mark.parametrize("transport", wire.TRANSPORTS)
def test_console_hands_on_every_byte_both_ways(operator: SyncOperator, guest: vbnet.Guest, transport: str) -> None:
    """What is said is at the terminal, what is typed is the guest's; control characters too."""
    plug(operator, "console0", "virtio-console", transport=transport)
    console = guest.bind("console0", PATIENCE)
    terminal = terminal_of(operator)
    every = bytes(range(256))

    assert 256 == console.write(every)
    assert every == heard(terminal, 256)
    os.write(terminal, every[::-1])
    typed = b""
    while len(typed) < len(every) and (more := console.read(100, PATIENCE)):
        typed += more
    os.close(terminal)

    assert every[::-1] == typed
    assert b"" == console.read(1, 0)


def test_thread_that_reads_a_console_does_not_keep_others_from_writing(
    operator: SyncOperator, guest: vbnet.Guest
) -> None:
    """The one waits for what is typed while the other talks."""
    plug(operator, "console0", "virtio-console")
    console = guest.bind("console0", PATIENCE)
    typed: list[bytes] = []
    reader = threading.Thread(target=lambda: typed.append(console.read(64)))
    reader.start()
    terminal = terminal_of(operator)

    console.write(b"who is there?")
    assert b"who is there?" == heard(terminal, 13)
    os.write(terminal, b"me")
    reader.join(PATIENCE)
    os.close(terminal)

    assert [b"me"] == typed


def test_what_nobody_reads_is_logged_and_counted(
    host: HostProcess, operator: SyncOperator, guest: vbnet.Guest, tmp_path: Path
) -> None:
    """A guest that talks to nobody is not held up; the log has all of it."""
    log = tmp_path / "console.log"
    operator.device_create("console0", "virtio-console")
    with log.open("wb") as file:
        file.write(b"before\n")
        file.flush()
        operator.device_insert("console0", file.fileno(), str(log))
        with pytest.raises(UsageError):
            operator.device_insert("console0", file.fileno(), str(log), is_read_only=True)
    operator.device_plug("console0", "lan")
    console = guest.bind("console0", PATIENCE)
    said = b"0123456789abcde\n" * 4096

    assert len(said) == console.write(said)

    eventually(lambda: log.read_bytes() == b"before\n" + said, "the log")
    [counted] = read_counted(host.run_dir.counters, "virtio_console")
    assert len(said) == counted.values["transmit_bytes"]
    assert 0 < counted.values["unread_bytes"] < len(said)


def test_waits_end_when_the_host_is_killed(host: HostProcess, operator: SyncOperator, guest: vbnet.Guest) -> None:
    """Whoever waits for what is typed gets PeerGone."""
    plug(operator, "console0", "virtio-console")
    console = guest.bind("console0", PATIENCE)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            console.read(1)
        except PeerGone as error:
            raised.append(error)

    reader = threading.Thread(target=wait)
    reader.start()
    host.kill()
    reader.join(PATIENCE)

    assert [PeerGone] == [type(error) for error in raised]


def test_command_attaches_and_detaches(host: HostProcess, operator: SyncOperator, guest: vbnet.Guest) -> None:
    """``vbnet console GUEST``: one at a time, until Ctrl-]; the terminal it was typed at is put back."""
    plug(operator, "console0", "virtio-console")
    console = guest.bind("console0", PATIENCE)
    console.write(b"login: ")
    keyboard, screen = pty.openpty()
    environment = {**os.environ, "VBNET_RUN_DIR": str(host.run_dir.path.parent)}
    command = [*COMMAND, "console", "app", "--node", "host"]
    attached = subprocess.Popen(command, stdin=screen, stdout=screen, stderr=subprocess.DEVNULL, env=environment)

    assert b"login: " == heard(keyboard, 7)
    os.write(keyboard, b"root\r")
    assert b"root\r" == console.read(64, PATIENCE)
    second = subprocess.run(command, capture_output=True, text=True, input="", env=environment, check=False)
    assert "attached" in second.stderr
    assert second.returncode
    os.write(keyboard, b"\x1d")
    assert 0 == attached.wait(PATIENCE)
    for fd in (keyboard, screen):
        os.close(fd)


def test_command_says_a_line_and_shows_the_answer(
    host: HostProcess, operator: SyncOperator, guest: vbnet.Guest
) -> None:
    """Without a terminal it ends with its input; a guest without a console is told."""
    plug(operator, "console0", "virtio-console")
    console = guest.bind("console0", PATIENCE)
    console.write(b"ready\n")
    environment = {**os.environ, "VBNET_RUN_DIR": str(host.run_dir.path.parent)}

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, "console", name, "--node", "host"]
        return subprocess.run(command, capture_output=True, text=True, input="status\n", env=environment, check=False)

    said, unknown = run("console0"), run("consle0")

    assert "ready\n" == said.stdout
    assert b"status\n" == console.read(64, PATIENCE)
    assert "did you mean `console0`?" in unknown.stderr

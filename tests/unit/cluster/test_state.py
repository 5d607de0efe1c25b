"""What a lab writes down, and how another shell finds it; and processes that cannot be mistaken for others."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from vbnet.bus.rundir import RunDir
from vbnet.cluster import process
from vbnet.cluster.process import MARK, Identity
from vbnet.cluster.state import (
    STATE_FILE,
    GuestState,
    LabState,
    Lock,
    ProcessState,
    choose_lab,
    is_locked,
    read_state,
    shown_state,
    write_state,
)
from vbnet.errors import BusyError, NotFoundError, UsageError


def myself() -> Identity:
    """Return this test's own process."""
    found = process.identify(os.getpid())
    assert found is not None
    return found


def written(root: Path, name: str) -> LabState:
    """Write the state of a lab of one guest into a folder of its own, and return it."""
    state = LabState(
        lab=name,
        instance="i",
        file="lab.yaml",
        phase="up",
        since_s=1.5,
        supervisor=myself(),
        processes={"a": ProcessState(name="a", kind="python", identity=myself())},
        guests={"a": GuestState(name="a", kind="python", process="a", state="ready")},
    )
    RunDir(root / name).create()
    write_state(root / name, state)
    return state


def test_what_is_written_is_read(run_dir: Path) -> None:
    """Another shell sees exactly what the supervisor knew."""
    state = written(run_dir, "t")

    assert state == read_state(run_dir / "t")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"lab": 3}'])
def test_a_damaged_state_file_is_told(run_dir: Path, content: bytes) -> None:
    """The message says what removes it."""
    written(run_dir, "t")
    (run_dir / "t" / STATE_FILE).write_bytes(content)

    with pytest.raises(UsageError, match="cannot be understood"):
        read_state(run_dir / "t")


def test_one_lab_needs_no_name_and_several_do(run_dir: Path) -> None:
    """Names are asked for only where they are needed."""
    with pytest.raises(NotFoundError, match="no lab is up"):
        choose_lab(None, run_dir)
    written(run_dir, "one")
    assert run_dir / "one" == choose_lab(None, run_dir)

    written(run_dir, "two")

    with pytest.raises(UsageError, match="several labs are up; name one of one, two"):
        choose_lab(None, run_dir)
    assert run_dir / "two" == choose_lab("two", run_dir)
    with pytest.raises(NotFoundError, match="there is no lab `three`; there is: one, two"):
        choose_lab("three", run_dir)


def test_a_lab_is_locked_while_its_supervisor_lives(run_dir: Path) -> None:
    """The lock is the truth about the supervisor, and a second one is refused."""
    written(run_dir, "t")
    assert not is_locked(run_dir / "t")

    lock = Lock(run_dir / "t")

    assert is_locked(run_dir / "t")
    with pytest.raises(BusyError):
        Lock(run_dir / "t")
    lock.release()
    assert not is_locked(run_dir / "t")


def test_a_guest_of_a_dead_lab_is_shown_dead(run_dir: Path) -> None:
    """What the supervisor wrote last is not believed once it cannot know any more."""
    state = written(run_dir, "t")
    gone = Identity(state.supervisor.pid, state.supervisor.start + 1, state.supervisor.boot)
    guest, running = state.guests["a"], state.processes["a"]
    assert "ready" == shown_state(state, running, guest)

    state.supervisor = running.identity = gone

    assert "dead" == shown_state(state, running, guest)


def test_a_process_of_another_start_or_boot_is_another_process() -> None:
    """Numbers are handed out again; number, start and boot together never are."""
    me = myself()

    assert process.is_alive(me)
    assert not process.is_alive(Identity(me.pid, me.start + 1, me.boot))
    assert not process.is_alive(Identity(me.pid, me.start, "another boot"))
    assert not process.send_signal(Identity(me.pid, me.start + 1, me.boot), signal.SIGKILL)


def test_marked_processes_are_found_wherever_they_went() -> None:
    """A daemon in a session of its own still carries the mark, and only that of its own lab."""
    environment = {**os.environ, MARK: "this-test"}
    command = ["sh", "-c", "echo ready; read line"]
    with subprocess.Popen(
        command, env=environment, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()

        found = [identity.pid for identity in process.marked_processes("this-test")]
        daemon.kill()

    assert [daemon.pid] == found
    assert [] == list(process.marked_processes("another"))


def test_waiting_for_an_end_does_not_outlast_its_limit() -> None:
    """Waiting for oneself is answered with no, after the limit."""
    assert not process.wait_ended(myself(), 0.01)

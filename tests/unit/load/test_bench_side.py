"""Processes of their own for the sides of a bench: asked, answered, and gone."""

import os
import signal
from collections.abc import Iterator

import pytest

from vbnet.errors import DeadlineError, PeerGone, ResourceError
from vbnet.load.bench import side as module
from vbnet.load.bench.program import Program
from vbnet.load.bench.side import Side

CORE = min(os.sched_getaffinity(0))
pytestmark = pytest.mark.usefixtures("no_leaked_processes", "no_leaked_descriptors")


@pytest.fixture
def duration() -> Iterator[Side]:
    """A side that is a duration of 90 seconds."""
    with Side("datetime:timedelta", CORE, {"seconds": 90}) as side:
        yield side


def test_a_side_answers_what_its_object_does(duration: Side) -> None:
    """Parameters reach the class, results come back."""
    assert 90.0 == duration.call("total_seconds", 10)
    assert {CORE} == os.sched_getaffinity(duration.pid)


def test_a_failing_method_is_told_and_the_side_lives_on(duration: Side) -> None:
    """An error in the child is an error here, in the child's words; the next request is answered."""
    with pytest.raises(ResourceError, match="AttributeError"):
        duration.call("no_such_method", 10)
    with pytest.raises(ResourceError, match="not for others"):
        duration.call("__reduce__", 10)

    assert 90.0 == duration.call("total_seconds", 10)


def test_a_side_that_is_killed_is_told_as_gone(duration: Side) -> None:
    """Nobody waits for the dead."""
    os.kill(duration.pid, signal.SIGKILL)

    with pytest.raises(PeerGone):
        duration.call("total_seconds", 10)


def test_a_side_that_does_not_answer_is_given_up_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline ends the wait, and closing ends the child even in the middle of a method."""
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.05)
    with Side("threading:Event", CORE) as side, pytest.raises(DeadlineError):
        side.call("wait", 0.05, timeout=600)


def test_a_side_that_cannot_start_says_why() -> None:
    """The child's last words are in the error."""
    with pytest.raises(PeerGone, match="No module named"):
        Side("no_such_module_anywhere:Class", CORE)


def test_a_program_is_asked_and_heard() -> None:
    """What a program prints after a question is its answer; the rest stays for the next."""
    with Program(["cat"], CORE) as program:
        first = program.ask("hello", r"hello\n", 10)
        second = program.ask("a b", r"a ", 10)

    assert ("hello\n", "a ") == (first, second)


def test_a_program_that_says_nothing_is_given_up() -> None:
    """The deadline's error shows what it said last."""
    with Program(["cat"], CORE) as program:
        program.ask("it-said-this", r"it-", 10)

        with pytest.raises(DeadlineError, match="said-this"):
            program.hear(r"never", 0.2)


def test_a_program_that_ends_is_told_as_gone() -> None:
    """Its last words and its code are in the error."""
    with Program(["sh", "-c", "echo last words; exit 3"], CORE) as program, pytest.raises(PeerGone, match="code 3"):
        program.hear(r"never", 10)

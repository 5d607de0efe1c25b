"""The footing of the tests holds: skips fail where they must, leaks are found, and a dead run is cleaned up after."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests import reaper
from tests.meta import tree

SKIPPING = """
import pytest


def test_that_skips():
    pytest.skip("no such thing here")
"""
LEAKING = """
import subprocess


def test_that_leaks(no_leaked_processes):
    subprocess.Popen(["sleep", "60"], start_new_session=True)
"""


def run_pytest(folder: Path, source: str, ci: str) -> subprocess.CompletedProcess[str]:
    """Run pytest over one test file beside a copy of the repository's conftest, with CI set as given."""
    (folder / "conftest.py").write_text((tree.ROOT / "tests" / "conftest.py").read_text())
    (folder / "test_it.py").write_text(source)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--rootdir", str(folder), str(folder)],
        cwd=tree.ROOT,
        env=os.environ | {"CI": ci, "VBNET_TEST_GRACE_SECONDS": "0.2"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_skip_is_a_failure_when_everything_can_be_installed(tmp_path: Path) -> None:
    """With CI=true a skipped test fails and says why it skipped."""
    outcome = run_pytest(tmp_path, SKIPPING, ci="true")

    assert 1 == outcome.returncode
    assert "skipped, which CI=true does not allow: Skipped: no such thing here" in outcome.stdout


def test_skip_is_a_skip_on_a_developers_machine(tmp_path: Path) -> None:
    """Without CI a missing program makes a test skip, not fail."""
    outcome = run_pytest(tmp_path, SKIPPING, ci="")

    assert 0 == outcome.returncode
    assert "1 skipped" in outcome.stdout


def test_module_that_skips_itself_is_a_failure_too(tmp_path: Path) -> None:
    """A skip while tests are collected hides more than one test, so it counts as well."""
    source = 'import pytest\n\npytest.importorskip("surely_not_installed")\n'

    outcome = run_pytest(tmp_path, source, ci="true")

    assert 0 != outcome.returncode
    assert "CI=true does not allow" in outcome.stdout


def test_process_that_left_its_parent_is_found_and_ended(tmp_path: Path) -> None:
    """A daemon that a test leaves running fails that test with its command line and does not outlive it."""
    outcome = run_pytest(tmp_path, LEAKING, ci="")

    assert 1 == outcome.returncode
    assert "sleep 60" in outcome.stdout


def test_processes_of_a_dead_run_are_ended() -> None:
    """When pytest itself dies, the reaper sees its pipe close and ends what carries the run's mark, nothing else."""
    mark = "mark-of-a-run-that-died"
    marked = subprocess.Popen(["sleep", "60"], env=os.environ | {reaper.MARK_VARIABLE: mark})
    unmarked = subprocess.Popen(["sleep", "60"])

    subprocess.run([sys.executable, reaper.__file__, mark], stdin=subprocess.DEVNULL, check=True, timeout=30)

    outcome = marked.wait(timeout=10)
    is_unmarked_alive = unmarked.poll() is None
    unmarked.kill()
    unmarked.wait()
    assert -9 == outcome
    assert is_unmarked_alive


def test_waiting_for_processes_returns_those_that_stay() -> None:
    """A process that ended is not reported; one that runs on is, once the time is over."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as staying, subprocess.Popen(["true"]) as ending:
        left = reaper.wait_gone({staying.pid, ending.pid}, seconds=0.2)

    assert {staying.pid} == left


@pytest.mark.usefixtures("no_leaked_descriptors")
def test_closed_descriptor_is_no_leak() -> None:
    """A test that closes what it opens passes the check on descriptors."""
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w"):
        assert [] == select.select([reading], [], [], 0)[0]

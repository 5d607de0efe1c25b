"""What every test may lean on: profiles, programs, a private run directory, and proof that nothing is left behind.

Who cleans up: the fixture that made a thing. A leak is a failure of the test that caused it, with names and
command lines; what leaked is then ended by its own id, so that the next test starts clean.
Danger: processes detach on purpose here (`vbnet up -d`), and pytest itself may be killed by a timeout. So leaks are
found by an inherited mark as well as by descent, and a small process that outlives pytest ends what it left (reaper).

Tests run in several workers at once, and several runs may share a machine. Each worker is a run of its own, with its
own mark and reaper; run directories are private; on the machine's network interfaces there is a lock (``makes_links``).

With CI=true a skipped test counts as a failed one: a test that never runs proves nothing.
"""

import contextlib
import fcntl
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest

from tests import reaper

pytest_plugins = ["tests.support.fixtures"]

MARK = uuid.uuid4().hex
# How long a test's processes may take to end after it; less where a leak is made on purpose.
GRACE_SECONDS = float(os.environ.get("VBNET_TEST_GRACE_SECONDS", "5"))
SLOW_SECONDS = 240
# Helpers of Python's own process pools; they live as long as pytest does and end with it.
POOL_HELPERS = ("resource_tracker", "forkserver", "semaphore_tracker")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

hypothesis.settings.register_profile("fast", max_examples=40, deadline=None)
hypothesis.settings.register_profile("slow", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("VBNET_HYPOTHESIS_PROFILE", "fast"))


def pytest_configure() -> None:
    """Mark every process of this run, and let programs in the administrator's folders be found."""
    os.environ[reaper.MARK_VARIABLE] = MARK
    os.environ["PATH"] += ":/usr/sbin:/sbin"


def pytest_xdist_auto_num_workers() -> int:
    """Run one worker more than there are processors: somebody always waits for a process to start or to end."""
    return len(os.sched_getaffinity(0)) + 1


# --- a skip is a failure where everything can be installed ---------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests that set themselves no limit a longer one than others have: several may run at once."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


def pytest_collection_finish() -> None:
    """Take the collected tests out of the garbage collector's sight: many of them have it look through everything."""
    gc.collect()
    gc.freeze()


def fail_instead_of_skip(report: Report) -> Report:
    """Return the report, failed if it was a skip and CI=true. An expected failure is no skip."""
    if os.environ.get("CI") == "true" and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI=true does not allow: {reason}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped test into a failed one when CI=true."""
    return fail_instead_of_skip((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a module that skips itself into a failed one when CI=true."""
    return fail_instead_of_skip((yield))


# --- nothing is left behind ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def reaper_process() -> Iterator[None]:
    """Keep a process at hand that ends this run's processes once pytest is gone, however it went."""
    environment = {name: value for name, value in os.environ.items() if name != reaper.MARK_VARIABLE}
    with subprocess.Popen(
        [sys.executable, reaper.__file__, MARK],
        stdin=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    ):
        yield


def running_processes() -> set[int]:
    """Return this run's processes that a test may have started: not the reaper, not pytest's own pool helpers.

    What a pool helper forks has the helper's command line, so only pytest's direct children are excused by it.
    """
    own = os.getpid()
    parent_of = reaper.parents()

    def is_excused(pid: int) -> bool:
        command = reaper.command_line(pid)
        return parent_of.get(pid) == own and any(name in command for name in (*POOL_HELPERS, reaper.__file__))

    return {pid for pid in reaper.started_by(MARK, own) if not is_excused(pid)}


@pytest.fixture
def no_leaked_processes() -> Iterator[None]:
    """Fail the test if a process that it started still runs five seconds after its end."""
    before = running_processes()
    yield
    leaked = reaper.wait_gone(running_processes() - before, GRACE_SECONDS)
    names = {pid: reaper.command_line(pid) for pid in leaked}
    reaper.end(leaked, MARK)
    assert {} == names, "processes outlived the test that started them"


def open_descriptors() -> dict[int, str]:
    """Return what each open file descriptor of pytest itself refers to."""
    gc.collect()
    found: dict[int, str] = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except OSError:
            continue
    return found


@pytest.fixture
def no_leaked_descriptors() -> Iterator[None]:
    """Fail the test if pytest's process has more descriptors open after it than before, and name the new ones."""
    before = open_descriptors()
    yield
    after = open_descriptors()
    new = {fd: target for fd, target in after.items() if before.get(fd) != target}
    assert len(after) <= len(before), f"descriptors left open: {new}"


LINKS = Path("/sys/class/net")


@contextlib.contextmanager
def links_locked(kind: int) -> Iterator[None]:
    """Hold a lock (``fcntl.LOCK_*``) on the machine's network interfaces, which every test run on it can see."""
    fd = os.open(LINKS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, kind)
        yield
    finally:
        os.close(fd)


@pytest.fixture
def makes_links() -> Iterator[None]:
    """Give a test the right to make network interfaces on the machine itself: nobody else looks for leaks meanwhile."""
    with links_locked(fcntl.LOCK_EX):
        yield


@pytest.fixture
def no_leaked_links(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test if a network interface (a TAP, say) exists after it that was not there before."""
    is_maker = "makes_links" in request.fixturenames
    if is_maker:
        request.getfixturevalue("makes_links")

    def look() -> set[Path]:
        with contextlib.nullcontext() if is_maker else links_locked(fcntl.LOCK_SH):
            return set(LINKS.iterdir())

    before = look()
    yield
    assert set() == look() - before, "network interfaces left behind"


# --- what a test stands on ----------------------------------------------------------------------------------------


@pytest.fixture
def run_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the test a run directory of its own, mode 0700, with a name short enough for Unix sockets (108 bytes)."""
    path = Path(tempfile.mkdtemp(prefix="vb-"))
    monkeypatch.setenv("VBNET_RUN_DIR", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """Return a function that finds a program by name, or skips the test with the reason that it is missing."""

    def find(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"the program {name} is not installed (tools/system-packages.sh installs it)")
        return found

    return find


@pytest.fixture(scope="session")
def namespaces(program: Callable[[str], str]) -> None:
    """Skip the test, with the kernel's own reason, where network namespaces cannot be made."""
    flags = ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]
    attempt = subprocess.run([program("unshare"), *flags, "true"], capture_output=True, text=True, check=False)
    if attempt.returncode != 0:
        pytest.skip(f"network namespaces cannot be made here: {attempt.stderr.strip()}")


@pytest.fixture(scope="session")
def tun_device() -> None:
    """Skip the test where the kernel offers no TAP devices."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("/dev/net/tun is missing or not writable: no TAP devices here")

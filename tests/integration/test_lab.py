"""A lab of real processes: up, watched, restarted, down, and nothing left however it ends.

The processes here do one thing each (``tests/support/lab_fakes.py``); what real guests do on the bus is shown
elsewhere.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support import lab_fakes
from vbnet.bus.rundir import RunDir
from vbnet.cluster import clean, process, restart, state
from vbnet.cluster.lab import Lab, LabEvent, LabFailed
from vbnet.cluster.plan import make_plan
from vbnet.cluster.topology import parse_topology
from vbnet.errors import BusyError, DeadlineError

FAKES = "tests.support.lab_fakes"
LIMIT_S = 20.0


@pytest.fixture(autouse=True)
def _nothing_left(no_leaked_processes: None, no_leaked_links: None) -> None:
    """Every test here ends with nothing running."""


@pytest.fixture
def events() -> list[LabEvent]:
    """What the lab told its watcher."""
    return []


@pytest.fixture
def make_lab(run_dir: Path, events: list[LabEvent]) -> Callable[..., Lab]:
    """Return a function that makes a lab of fake processes: ``make_lab("steady", count=2, restart="always")``."""

    def make(behaviour: str, count: int = 2, restart: str = "no", name: str = "t") -> Lab:
        text = (
            f"name: {name}\nswitches: {{lan: }}\nguests:\n"
            f"  g: {{kind: traffic, count: {count}, restart: {restart}, nics: [{{switch: lan}}]}}\n"
        )
        return Lab(
            make_plan(parse_topology(text, "lab.yaml", {})),
            root=run_dir,
            watch=events.append,
            entries={"host": f"{FAKES}:host", "traffic": f"{FAKES}:{behaviour}"},
            connect=lab_fakes.connect,
        )

    return make


def run(work: Awaitable[None]) -> None:
    """Run a test's coroutine, with a limit."""

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await work

    asyncio.run(limited())


async def until(lab: Lab, guest: str, wanted: str) -> None:
    """Wait until a guest is in the wanted state."""
    while lab.state.guests[guest].state != wanted:
        await lab.changed()


def test_up_means_ready_and_down_leaves_nothing(
    make_lab: Callable[..., Lab], events: list[LabEvent], run_dir: Path
) -> None:
    """Sixty-four processes come up, each reports, and afterwards there is no process, file or folder."""

    async def work() -> None:
        lab = make_lab("steady", count=64)
        await lab.up()
        identities = list(lab.state.identities())[:-1]
        assert all(process.is_alive(identity) for identity in identities)
        assert {"ready"} == {guest.state for guest in lab.state.guests.values()}
        await lab.down()
        assert [identity for identity in identities if process.is_alive(identity)] == []

    run(work())

    assert list(run_dir.iterdir()) == []
    assert list(dict.fromkeys(event.step for event in events if event.state == "ready")) == [
        "host",
        "network",
        "guest",
        "lab",
    ]


def test_a_guest_that_fails_to_start_fails_the_lab_with_its_log(make_lab: Callable[..., Lab], run_dir: Path) -> None:
    """The message has the guest's own words, and everything is taken down again."""

    async def work() -> None:
        with pytest.raises(LabFailed, match=r"guest g-[01] did not get ready: RuntimeError: g-[01] cannot work\n.*"):
            await make_lab("broken").up()

    run(work())

    assert list(run_dir.iterdir()) == []


def test_a_guest_that_is_never_ready_is_named_when_time_is_up(make_lab: Callable[..., Lab], run_dir: Path) -> None:
    """Silence is not readiness."""

    async def work() -> None:
        with pytest.raises(DeadlineError, match="lab t was not ready after 1 s: g-0, g-1; taken down"):
            await make_lab("silent").up(timeout_s=1)

    run(work())

    assert list(run_dir.iterdir()) == []


def test_the_lab_ends_when_all_guests_ended_well(make_lab: Callable[..., Lab]) -> None:
    """A batch of guests that do their work is a lab that ends by itself, with success."""

    async def work() -> None:
        lab = make_lab("brief")
        await lab.up()
        assert await lab.run() == 0
        assert {"ended"} == {guest.state for guest in lab.state.guests.values()}
        await lab.down()

    run(work())


def test_a_killed_guest_comes_back_when_its_policy_says_so(make_lab: Callable[..., Lab]) -> None:
    """After ``kill -9`` the guest is a new process, ready and told to go again; the others were not touched."""

    async def work() -> None:
        lab = make_lab("steady", restart="on-failure")
        await lab.up()
        first, other = (lab.state.processes[name].identity for name in ("g-0", "g-1"))
        assert first is not None
        process.send_signal(first, signal.SIGKILL)
        await until(lab, "g-0", "restarting")
        await until(lab, "g-0", "ready")
        record = lab.state.processes["g-0"]
        assert record.restarts == 1
        assert record.identity not in {None, first}
        assert other == lab.state.processes["g-1"].identity
        await lab.down()

    run(work())


def test_a_killed_guest_without_a_policy_stays_away(make_lab: Callable[..., Lab]) -> None:
    """It is shown as failed with its signal, and the lab goes on with the others."""

    async def work() -> None:
        lab = make_lab("steady")
        await lab.up()
        identity = lab.state.processes["g-0"].identity
        assert identity is not None
        process.send_signal(identity, signal.SIGKILL)
        await until(lab, "g-0", "failed")
        assert lab.state.guests["g-0"].detail == "killed by SIGKILL"
        assert lab.state.guests["g-1"].state == "ready"
        await lab.down()

    run(work())


@pytest.mark.parametrize(
    ("policy", "budget", "outcome"),
    [("always", 10, "lab.restarting"), ("always", 0, "lab.given_up"), ("no", 10, "lab.failed")],
)
def test_a_lab_tells_what_becomes_of_its_processes(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch, policy: str, budget: int, outcome: str
) -> None:
    """Started, ready, ended and what then, in this order, each with the fields of its topic."""
    monkeypatch.setattr(restart, "BUDGET", budget)
    told: list[str] = []

    async def work() -> None:
        lab = make_lab("steady", count=1, restart=policy)
        await lab.up()
        assert isinstance(lab.control, lab_fakes.FakeControl)
        identity = lab.state.processes["g-0"].identity
        assert identity is not None
        process.send_signal(identity, signal.SIGKILL)
        while outcome not in lab.control.told:
            await lab.changed()
        await lab.down()
        told.extend(lab.control.told)

    run(work())

    assert ["lab.started", "lab.ready", "lab.up", "lab.exited", outcome] == told[:5]
    assert "lab.stopping" in told[5:]


def test_the_host_nodes_death_ends_the_lab(make_lab: Callable[..., Lab], run_dir: Path) -> None:
    """Without its host node a lab cannot go on, and says so."""

    async def work() -> None:
        lab = make_lab("steady")
        await lab.up()
        assert lab.state.host is not None
        assert lab.state.host.identity is not None
        process.send_signal(lab.state.host.identity, signal.SIGKILL)
        with pytest.raises(LabFailed, match="the host node of lab t ended: killed by SIGKILL"):
            await lab.run()
        await lab.down()

    run(work())

    assert list(run_dir.iterdir()) == []


def test_guests_whose_host_node_died_are_not_started_again(run_dir: Path, events: list[LabEvent]) -> None:
    """They end by themselves, maybe before the lab hears of it; nobody is told that they come back."""
    text = (
        "name: t\nswitches: {lan: }\nguests: {g: {kind: traffic, count: 4, restart: always, nics: [{switch: lan}]}}\n"
    )
    lab = Lab(
        make_plan(parse_topology(text, "lab.yaml", {})),
        root=run_dir,
        watch=events.append,
        entries={"host": f"{FAKES}:host_without_switching", "traffic": f"{FAKES}:joined"},
    )

    async def work() -> None:
        await lab.up()
        assert lab.state.host is not None
        assert lab.state.host.identity is not None
        process.send_signal(lab.state.host.identity, signal.SIGKILL)
        with pytest.raises(LabFailed, match="killed by SIGKILL"):
            await lab.run()
        while not all(found.identity is None for found in lab.state.processes.values()):
            await lab.changed()
        await lab.down()

    run(work())

    assert [] == [event.subject for event in events if event.state == "restarting"]
    assert list(run_dir.iterdir()) == []


def test_down_ends_guests_that_will_not_and_their_daemons(make_lab: Callable[..., Lab], run_dir: Path) -> None:
    """SIGTERM ignored, a daemon in a session of its own: both are gone after down."""

    async def work() -> None:
        lab = make_lab("stubborn", count=1)
        await lab.up()
        daemon = process.identify(int((RunDir(lab.folder).logs / "daemon.log").read_text(encoding="ascii")))
        assert process.is_alive(daemon)
        await lab.down()
        assert not process.is_alive(daemon)

    run(work())

    assert list(run_dir.iterdir()) == []


def test_a_second_lab_of_the_same_name_is_refused(make_lab: Callable[..., Lab]) -> None:
    """The first one is not disturbed."""

    async def work() -> None:
        lab = make_lab("steady")
        await lab.up()
        with pytest.raises(BusyError, match="lab `t` is up already"):
            await make_lab("steady").up()
        assert {"ready"} == {guest.state for guest in lab.state.guests.values()}
        await lab.down()

    run(work())


def test_labs_of_different_names_live_side_by_side(make_lab: Callable[..., Lab], run_dir: Path) -> None:
    """Each has its folder; ending one leaves the other."""

    async def work() -> None:
        first = make_lab("steady", name="one")
        await first.up()
        assert [folder.name for folder in state.lab_folders(run_dir)] == ["one"]
        await first.down()

    run(work())


def test_a_process_that_reports_nonsense_harms_only_itself(make_lab: Callable[..., Lab]) -> None:
    """Reports about others, of unknown states, too long or no reports at all are not believed."""

    async def work() -> None:
        lab = make_lab("lying")
        await lab.up()
        assert {"ready"} == {guest.state for guest in lab.state.guests.values()}
        assert {"g-0", "g-1"} == set(lab.state.guests)
        await lab.down()

    run(work())


def test_a_killed_lab_leaves_no_process_and_clean_removes_the_rest(run_dir: Path) -> None:
    """After ``kill -9`` of the supervisor every process ends by itself; clean removes the files and says so."""
    supervisor, folder = lab_fakes.start_supervisor(run_dir, "steady")
    lab_state = state.read_state(folder)
    identities = [*lab_state.identities(), *process.marked_processes(lab_state.instance)]

    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait(timeout=LIMIT_S)

    assert all(process.wait_ended(identity, LIMIT_S) for identity in identities)
    assert [(item.lab, item.kind) for item in clean.find_leftovers(run_dir)] == [("t", "folder")]
    assert [(item.lab, item.kind) for item in clean.clean(run_dir)] == [("t", "folder")]
    assert clean.find_leftovers(run_dir) == []
    assert not folder.exists()


def test_clean_ends_daemons_of_a_killed_lab(run_dir: Path) -> None:
    """A process that left its parent and its session still carries the lab's mark."""
    supervisor, folder = lab_fakes.start_supervisor(run_dir, "stubborn")
    daemon = process.identify(int((RunDir(folder).logs / "daemon.log").read_text(encoding="ascii")))
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait(timeout=LIMIT_S)
    assert process.is_alive(daemon)

    clean.clean(run_dir)

    assert not process.is_alive(daemon)


def test_clean_leaves_living_labs_and_strangers_alone(run_dir: Path) -> None:
    """A lab that is up, a folder that is not ours, and a process with a recorded number but another start stay."""
    supervisor, folder = lab_fakes.start_supervisor(run_dir, "steady")
    (run_dir / "notes").mkdir()
    (run_dir / "notes" / "lab.json").write_text("mine", encoding="ascii")
    (run_dir / "notes" / "todo.txt").write_text("mine", encoding="ascii")

    assert clean.clean(run_dir) == []
    assert process.is_alive(process.identify(supervisor.pid))
    assert (run_dir / "notes" / "todo.txt").exists()

    supervisor.terminate()
    assert supervisor.wait(timeout=LIMIT_S) == 0
    assert not folder.exists()


def test_a_recycled_process_number_is_never_signalled(run_dir: Path) -> None:
    """The number is this test's own, the start time another process's: it survives."""
    myself = process.identify(os.getpid())
    assert myself is not None
    stranger = process.Identity(myself.pid, myself.start + 1, myself.boot)
    folder = run_dir / "t"
    RunDir(folder).create()
    state.Lock(folder).release()
    state.write_state(
        folder,
        state.LabState(lab="t", instance="none", file="", phase="up", since_s=0, supervisor=stranger),
    )

    clean.clean(run_dir)

    assert not process.send_signal(stranger, signal.SIGKILL)
    assert not folder.exists()


def test_up_after_a_kill_clears_what_was_left(make_lab: Callable[..., Lab], run_dir: Path) -> None:
    """Nobody has to clean by hand before starting a lab again."""
    supervisor, _ = lab_fakes.start_supervisor(run_dir, "stubborn")
    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait(timeout=LIMIT_S)

    async def work() -> None:
        lab = make_lab("steady")
        await lab.up()
        await lab.down()

    run(work())

    assert list(run_dir.iterdir()) == []

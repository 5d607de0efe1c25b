"""A state device among real processes: samples are whole, outlive kill -9, and follow the record to its next owner."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Child, HostProcess, ProcessState
from tests.support.programs import state_program
from tests.support.waiting import eventually
from vbnet import Guest
from vbnet.bus.operator import SyncOperator
from vbnet.bus.rundir import RunDir
from vbnet.cli import state as state_command
from vbnet.cli.output import Format
from vbnet.errors import BusyError

SAMPLES = 100_000


@pytest.fixture
def host(run_dir: Path) -> Iterator[HostProcess]:
    """A host process with a state device of three equal numbers on the bus lan."""
    with HostProcess(run_dir / "host") as process, SyncOperator(RunDir(run_dir / "host")) as operator:
        operator.bus_create("lan")
        operator.device_create("three", "state", {"schema": "a:u64 b:u64 c:u64"})
        operator.device_plug("three", "lan")
        yield process


@pytest.mark.usefixtures("no_leaked_processes")
def test_samples_are_whole_and_outlive_their_publisher(
    host: HostProcess, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While one process publishes without rest another sees whole values only; killed, it leaves its last one."""
    path = run_dir / "host"
    before = ProcessState.of(host.pid).fds
    with Guest("reader", "lan", address=RunDir(path)) as guest:
        samples = guest.bind("sample0")
        with Child(state_program, path, "first", "lan") as first:
            first.hear()
            sampler = guest.run(samples.sampler(0))
            seen = [sampler.sample() for _ in range(SAMPLES)]
            first.kill()
        left = eventually(lambda: (found := sampler.sample()) and not found.is_alive and found, "the owner is gone")
        again = sampler.sample()
        by_call = guest.run(samples.sample(0))
        with Child(state_program, path, "second", "lan") as second:
            second.hear()
            eventually(lambda: sampler.sample().is_alive, "the sampler follows to the next owner")
            state_command.show("three", node="host", how=Format.json)
            second.kill()

    assert [] == [each for each in seen if not each.a == each.b == each.c]
    assert sorted(each.a for each in seen) == [each.a for each in seen]
    assert left == again == by_call
    assert '"owner": "second"' in capsys.readouterr().out
    eventually(lambda: ProcessState.of(host.pid).fds <= before + 2, "the host keeps the record and the roll only")


@pytest.mark.usefixtures("host")
def test_owner_is_alone_until_it_is_killed(run_dir: Path) -> None:
    """Another claim is refused while the process lives, and granted once it is dead."""
    path = run_dir / "host"
    with Guest("heir", "lan", address=RunDir(path)) as heir:
        claims = heir.bind("publish0")
        with Child(state_program, path, "owner", "lan") as owner:
            owner.hear()
            with pytest.raises(BusyError):
                heir.run(claims.publisher(0))
            owner.kill()
        with SyncOperator(RunDir(path)) as operator:
            eventually(lambda: ["heir"] == [guest.name for guest in operator.guest_list()], "the guest is gone")

        publisher = heir.run(claims.publisher(0))

        assert 0 < publisher.count

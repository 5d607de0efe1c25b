"""``kill -9`` of anything at any moment: what it held is free again, the others go on, and nothing is left.

The labs here have all that could be left behind: processes, namespaces, a TAP on the machine around them (a namespace
of the test's own), sockets and files. A test counts them before and after.
"""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.machine import LIMIT_S, Machine
from tests.support.real_lab import RealLab, lab_files, real_lab
from tests.support.waiting import eventually
from vbnet.cluster import process
from vbnet.cluster.process import Identity

FUNCTIONS = '''
"""Guests of the tests."""

from vbnet.errors import PeerGone


async def stay(guest):
    """Answer nothing, and stay until the lab ends."""
    await guest.wait_device("never", 3600)


def watch(guest):
    """Say when the host node is gone."""
    nic = guest.nic(timeout=30)
    print("joined", flush=True)
    try:
        while True:
            nic.recv(32, 3600)
    except PeerGone as error:
        print(type(error).__name__, error, flush=True)
    try:
        guest.wait_device("never", 3600)
    except PeerGone as error:
        print(type(error).__name__, error, flush=True)
'''
LAB = """
name: t
switches: {lan: }
guests:
  one: {kind: netns, restart: always, nics: [{switch: lan, ip: 10.10.0.1/24}]}
  two: {kind: netns, restart: always, nics: [{switch: lan, ip: 10.10.0.2/24}]}
  web: {kind: stack, restart: always, count: 2, nics: [{switch: lan, ip: 10.10.0.10/24}]}
  app: {kind: python, restart: always, run: "functions.py:stay", nics: [{switch: lan}]}
uplinks: [{switch: lan, tap: vbkill0, ip: 10.10.0.254/24}]
"""
ADDRESSES = {"one": "10.10.0.1", "two": "10.10.0.2", "web-0": "10.10.0.10", "web-1": "10.10.0.11"}
FILES = {"functions.py": FUNCTIONS}

pytestmark = pytest.mark.usefixtures("namespaces", "tun_device", "no_leaked_processes", "no_leaked_links")


@pytest.fixture
def machine(program: Callable[[str], str]) -> Iterator[Machine]:
    """A namespace around the labs, which stands for the machine they run on."""
    for name in ("ip", "ping"):
        program(name)
    with Machine() as made:
        yield made


@pytest.fixture
def lab(machine: Machine) -> Iterator[RealLab]:
    """The lab, up."""
    with real_lab(LAB, machine.prefix, files=FILES) as up:
        yield up


def traces(lab: RealLab, machine: Machine) -> dict[str, Any]:
    """Everything that a lab could leave on its machine."""
    sockets = machine.run("cat", "/proc/net/unix").splitlines()
    return {
        "files": sorted(str(path) for path in lab.root.rglob("*")),
        "sockets": [line for line in sockets if str(lab.root) in line],
        "links": machine.run("ip", "-o", "link").count("\n"),
        "pinned namespaces": Path("/proc/self/mountinfo").read_text(encoding="utf-8").count(f"nsfs {lab.root}"),
        "shared memory": sorted(path.name for path in Path("/dev/shm").glob("vb*")),  # noqa: S108 -- only looked at
    }


def kill(victims: list[Identity]) -> None:
    """``kill -9``, and wait until they are dead."""
    for victim in victims:
        process.send_signal(victim, signal.SIGKILL)
    assert all(process.wait_ended(victim, LIMIT_S) for victim in victims)


def holder(lab: RealLab, guest: str) -> Identity:
    """The process of a guest."""
    state = lab.state()
    identity = state.processes[state.guests[guest].process].identity
    assert identity is not None
    return identity


def host(lab: RealLab) -> Identity:
    """The host node's process."""
    found = lab.state().host
    assert found is not None
    assert found.identity is not None
    return found.identity


def is_whole_again(lab: RealLab, guest: str, former: Identity) -> bool:
    """Say whether a guest is ready, in another process than before."""
    state = lab.state()
    now = state.processes[state.guests[guest].process].identity
    return state.guests[guest].state == "ready" and now not in {None, former}


def descriptors(pid: int) -> list[str]:
    """What kinds of things a process has open."""
    return sorted(str(entry.readlink()).partition(":")[0] for entry in Path(f"/proc/{pid}/fd").iterdir())


def wait_for_frames(lab: RealLab, count: int) -> None:
    """Wait until the machine around the lab has sent so many more frames into it."""

    def sent() -> int:
        return lab.counted("transmit_frames").get("vbkill0 transmit_frames", 0)

    goal = sent() + count
    eventually(lambda: sent() >= goal, "the flood goes on")


def restart_and_answer(lab: RealLab, machine: Machine, victim: str) -> None:
    """Kill a guest and wait until it is back and answers pings, if it is one that answers any."""
    former = holder(lab, victim)
    kill([former])
    eventually(lambda: is_whole_again(lab, victim, former), f"{victim} is back")
    if victim in ADDRESSES:
        said = machine.run("ping", "-n", "-c", "1", "-W", "20", ADDRESSES[victim])
        assert " 0% packet loss" in said


def test_killed_guests_come_back_while_others_talk(lab: RealLab, machine: Machine) -> None:
    """One guest after the other dies; each comes back and answers, and two survivors never miss a ping."""
    before = descriptors(host(lab).pid)
    command = ("ping", "-n", "-q", "-i", "0.02", "-W", "10", ADDRESSES["two"])
    with machine.start(*command, stderr=subprocess.PIPE) as pinging:
        for victim in ("one", "web-0", "app"):
            restart_and_answer(lab, machine, victim)
        pinging.send_signal(signal.SIGINT)
        said, _ = pinging.communicate(timeout=LIMIT_S)

    assert " 0% packet loss" in said
    assert {"one": 1, "two": 0, "web-0": 1, "web-1": 1, "app": 1} == {
        row["guest"]: row["restarts"] for row in lab.rows("ps")
    }
    eventually(lambda: before == descriptors(host(lab).pid), "the host node has as many descriptors as before")


def test_the_hosts_death_ends_everything_and_strangers_are_told(machine: Machine) -> None:
    """The lab ends without a trace; a guest that nobody supervises gets PeerGone wherever it waits."""
    with lab_files(LAB, machine.prefix, FILES) as lab:
        before = traces(lab, machine)
        lab.vbnet("up", str(lab.file), "-d")
        everybody = lab.everybody()
        lab.vbnet("bus", "create", "wild")
        lab.vbnet("device", "create", "nic", "type=venet", "switch=lan")
        lab.vbnet("device", "plug", "nic", "wild")
        arguments = ("guest", "run", "functions.py:watch", "--bus", "wild", "--name", "stray")
        with lab.start(*arguments, cwd=lab.file.parent) as stray:
            assert stray.stdout is not None
            assert "joined\n" == stray.stdout.readline()

            kill([host(lab)])

            told = stray.communicate(timeout=LIMIT_S)[0].splitlines()
        assert all(process.wait_ended(each, LIMIT_S) for each in everybody)
        assert ["PeerGone", "PeerGone"] == [line.partition(" ")[0] for line in told]
        assert before == traces(lab, machine)


@pytest.mark.parametrize("victims", ["supervisor", "everybody"])
def test_after_such_a_death_clean_leaves_nothing(machine: Machine, victims: str) -> None:
    """Every process ends by itself, clean removes TAP, sockets and files, and a second clean has no work."""
    with lab_files(LAB, machine.prefix, FILES) as lab:
        before = traces(lab, machine)
        lab.vbnet("up", str(lab.file), "-d")
        everybody = lab.everybody()

        kill([lab.state().supervisor] if victims == "supervisor" else everybody)

        assert all(process.wait_ended(each, LIMIT_S) for each in everybody)
        assert {"folder", "tap"} == {row["kind"] for row in lab.rows("clean")}
        assert [] == lab.rows("clean")
        assert before == traces(lab, machine)


def killed_while_coming_up(machine: Machine, seed: int) -> None:
    """Kill a lab at a random step of its coming up, clean, and look for traces."""
    chance = random.Random(seed)  # noqa: S311 -- a test's dice
    with lab_files(LAB, machine.prefix, FILES) as lab:
        before = traces(lab, machine)
        with lab.start("up", str(lab.file), "--format", "json", stderr=subprocess.STDOUT) as supervisor:
            assert supervisor.stdout is not None
            for _ in range(chance.randrange(1, 10)):
                supervisor.stdout.readline()
            everybody = lab.everybody()

            supervisor.kill()

        assert all(process.wait_ended(each, LIMIT_S) for each in everybody), f"seed {seed}"
        lab.vbnet("clean")
        assert before == traces(lab, machine), f"seed {seed}"


def test_killing_a_lab_that_comes_up_leaves_nothing(machine: Machine) -> None:
    """At a random step, the supervisor is killed: clean is enough."""
    killed_while_coming_up(machine, random.randrange(1 << 32))  # noqa: S311 -- a test's dice


@pytest.mark.slow
def test_killing_labs_that_come_up_leaves_nothing_at_any_step(machine: Machine) -> None:
    """The same at many random steps."""
    for _ in range(15):
        killed_while_coming_up(machine, random.randrange(1 << 32))  # noqa: S311 -- a test's dice


@pytest.mark.slow
def test_random_guests_die_at_random_moments_under_load(lab: RealLab, machine: Machine) -> None:
    """Whoever dies while everybody is flooded comes back and answers, and the host node keeps nothing of the dead."""
    seed = random.randrange(1 << 32)  # noqa: S311 -- a test's dice
    chance = random.Random(seed)  # noqa: S311 -- same
    before = descriptors(host(lab).pid)
    addresses = " ".join(ADDRESSES.values())
    load = f"for address in {addresses}; do ping -n -q -i 0.002 $address & done; wait"
    with machine.start("sh", "-c", load, stderr=subprocess.DEVNULL, start_new_session=True) as pinging:
        for _ in range(8):
            wait_for_frames(lab, chance.randrange(300))
            restart_and_answer(lab, machine, chance.choice([*ADDRESSES, "app"]))
        for pid in machine.run("pgrep", "--session", str(pinging.pid)).split():
            identity = process.identify(int(pid))
            assert identity is not None
            process.send_signal(identity, signal.SIGTERM)
        pinging.communicate(timeout=LIMIT_S)

    eventually(lambda: before == descriptors(host(lab).pid), f"no descriptor of the dead is left (seed {seed})")

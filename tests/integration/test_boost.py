"""From signal to thread: an urgent one raises the real thread that serves it, until that is done or its time is up."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.waiting import eventually
from vbnet.bus.operator import SyncOperator
from vbnet.testing.processes import HostProcess, PythonProcess

CONTROLLERS = ["intc", "intc-apic"]
URGENT = 6
LIMIT_S = 1.0
SERVER = """
import json, os, sys, threading, time
import vbnet
from vbnet.devices.intc.driver import IntcDriver

def policy():
    return os.sched_getscheduler(0) & 0xFF

def serve():
    me.running()
    during = policy()
    # The kernel may have made this thread urgent a moment before the host has said so on its page.
    while during != os.SCHED_OTHER and not me.state.is_boosted:
        pause.wait(0.001)
    is_boosted = me.state.is_boosted
    while stays.is_set() and me.state.is_boosted:
        pause.wait(0.001)
    late = policy()
    me.idle()
    while me.state.is_boosted:
        pause.wait(0.001)
    print(json.dumps([is_boosted, during, late, policy(), time.monotonic()]), flush=True)

run_dir, priority, first, second = sys.argv[1], int(sys.argv[2]), *sys.argv[3].split()
stays, pause = threading.Event(), threading.Event()
with vbnet.Guest("server", "lan", address=run_dir) as guest:
    guest.register(IntcDriver(is_realtime=False))
    bound = {first: guest.bind(first, 20), second: guest.bind(second, 20)}
    intc, sched = bound["intc0"], bound["sched0"]
    signal = guest.run(intc.create("bell", serve, priority=priority))
    guest.run(signal.grant("ringer"))
    while not (threads := intc.vcpus[0].threads):
        pause.wait(0.001)
    [tid] = threads.values()
    with sched.thread("normal", tid=tid, vcpu=0) as me:
        while me.state.applied is None:
            pause.wait(0.001)
        print(tid, flush=True)
        for line in sys.stdin:
            stays.set()
            print("told", flush=True)
"""
RINGER = """
import sys
import vbnet

with vbnet.Guest("ringer", "lan", address=sys.argv[1]) as guest:
    bell = guest.run(guest.bind("intc0", 20).connect("server/bell"))
    print("ready", flush=True)
    for line in sys.stdin:
        bell.ring()
"""


class Served(NamedTuple):
    """What a handler found: whether its thread was boosted, and its class at first, before ``idle`` and after it."""

    is_boosted: bool
    during: int
    late: int
    after: int
    ended_s: float


class Scene:
    """A host with a controller and a coordinator, and a guest whose vCPU has one thread.

    Attributes:
        host, operator: of the bus ``lan``.
        server: the guest; tid: the thread that serves its signal ``server/bell``.
    """

    def __init__(self, host: HostProcess, operator: SyncOperator, server: PythonProcess) -> None:
        self.host, self.operator, self.server = host, operator, server
        self.tid = int(server.line())

    @classmethod
    @contextmanager
    def open(
        cls,
        root: Path,
        controller: str,
        *,
        priority: int = URGENT,
        order: str = "intc0 sched0",
        prefix: Sequence[str] = (),
    ) -> Iterator[Scene]:
        """Bring everything up; a boost that is not ended then lasts for ``LIMIT_S``.

        Args:
            root: folder for the run directory.
            controller: class of the interrupt controller.
            priority: of the signal.
            order: in which the guest opens its devices.
            prefix: a command to run host and guest under.
        """
        with HostProcess(root, prefix=prefix) as host, SyncOperator(host.run_dir) as operator:
            operator.bus_create("lan")
            for name, kind in (("irq", controller), ("fast", "fastcall"), ("s", "sched")):
                operator.device_create(name, kind)
                operator.device_plug(name, "lan")
            operator.device_set("s", "boost_ms", str(round(LIMIT_S * 1000)))
            arguments = [str(host.run_dir.path), str(priority), order]
            with PythonProcess(SERVER, arguments, prefix=prefix) as server:
                yield cls(host, operator, server)

    def ring(self) -> None:
        """Raise the signal as an operator does."""
        self.operator.signal_raise("server/bell")

    def served(self) -> Served:
        """What the handler found, once it has run."""
        return Served(*json.loads(self.server.line()))

    def count(self, name: str) -> int:
        """What the coordinator counted under a name."""
        return int(json.loads(self.operator.device_get("s").attributes["counts"]).get(name, 0))

    @property
    def boosts_by(self) -> tuple[bool, int]:
        """Whether this host can boost, and the class that a boosted thread then has."""
        cannot = self.operator.device_get("s").attributes["cannot"]
        if "realtime" not in cannot:
            return True, os.SCHED_RR
        return not ("nice" in cannot and "slice" in cannot), os.SCHED_OTHER


@contextmanager
def by_operator(scene: Scene) -> Iterator[Callable[[], None]]:
    """Give what raises the signal as an operator does."""
    yield scene.ring


@contextmanager
def by_guest(scene: Scene) -> Iterator[Callable[[], None]]:
    """Give what raises the signal as another guest does, who was granted it: by a store in its own memory."""
    with PythonProcess(RINGER, [str(scene.host.run_dir.path)]) as ringer:
        assert "ready" == ringer.line()
        yield lambda: ringer.tell("")


def policy(tid: int) -> int:
    """The class of a thread, as the kernel says."""
    return os.sched_getscheduler(tid) & 0xFF


def unprivileged(program: Callable[[str], str]) -> list[str]:
    """Return what has a command run without CAP_SYS_NICE: nothing, where nobody here has it."""
    return [program("setpriv"), "--bounding-set=-sys_nice"] if os.geteuid() == 0 else []


@pytest.mark.parametrize("raised", [by_operator, by_guest])
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_urgent_signal_raises_the_real_thread_until_it_has_been_served(
    run_root: Path, controller: str, raised: Callable[[Scene], AbstractContextManager[Callable[[], None]]]
) -> None:
    """The handler finds itself boosted; when it is done its thread is what it was, long before the time is up."""
    with Scene.open(run_root, controller) as scene, raised(scene) as ring:
        can_boost, boosted = scene.boosts_by
        usual = policy(scene.tid)
        rounds = 0

        def is_in_time() -> bool:
            nonlocal rounds
            rounds += 1
            begun_s = time.monotonic()
            ring()
            served = scene.served()
            assert (can_boost, boosted, boosted, usual) == served[:4]
            return served.ended_s - begun_s < LIMIT_S

        # The time is counted from the boost on: what took less was ended by the thread. A busy machine may take more.
        eventually(is_in_time, "a boost ends with its handler")

        assert usual == policy(scene.tid)
        eventually(lambda: scene.count("boosts") == rounds * can_boost, "each boost is counted")


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_boost_that_the_guest_does_not_end_is_over_after_its_time(run_root: Path, controller: str) -> None:
    """A handler that never says it is idle loses the boost while it runs, and not before its time."""
    with Scene.open(run_root, controller) as scene:
        can_boost, boosted = scene.boosts_by
        usual = policy(scene.tid)
        scene.server.tell("stay")
        assert "told" == scene.server.line()

        begun_s = time.monotonic()
        scene.ring()
        served = scene.served()

        assert (can_boost, boosted, usual, usual) == served[:4]
        assert served.ended_s - begun_s >= LIMIT_S * can_boost
        assert can_boost == scene.count("boosts")


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_signal_below_the_limit_boosts_nobody(run_root: Path, controller: str) -> None:
    """It is served by a thread that is what it always was, until an operator has such signals boost too."""
    with Scene.open(run_root, controller, priority=URGENT - 1, order="sched0 intc0") as scene:
        can_boost, boosted = scene.boosts_by
        usual = policy(scene.tid)

        scene.ring()
        below = scene.served()
        counted = scene.count("boosts")
        scene.operator.device_set("s", "boost_from", str(URGENT - 1))
        scene.ring()
        above = scene.served()

        assert (False, usual, usual, usual, 0) == (*below[:4], counted)
        assert (can_boost, boosted) == above[:2]


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_host_without_privilege_says_so_and_boosts_as_far_as_it_may(
    run_root: Path, controller: str, program: Callable[[str], str]
) -> None:
    """Without CAP_SYS_NICE the thread keeps its class; where the kernel has slices it gets short ones, and they end."""
    with Scene.open(run_root, controller, prefix=unprivileged(program)) as scene:
        cannot = scene.operator.device_get("s").attributes["cannot"]
        can_boost = "slice" not in cannot
        usual = policy(scene.tid)

        scene.ring()
        served = scene.served()

        assert [True, True] == [word in cannot for word in ("realtime (no CAP_SYS_NICE)", "nice")]
        assert (can_boost, usual, usual, usual) == served[:4]
        eventually(lambda: scene.count("boosts") == can_boost, "what was done is counted")


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_guest_that_leaves_the_coordinator_is_boosted_no_more(run_root: Path, controller: str) -> None:
    """Its signals are served as before; nothing of the boost is left."""
    with Scene.open(run_root, controller) as scene:
        usual = policy(scene.tid)
        scene.ring()
        scene.served()

        scene.operator.device_unplug("s", "lan")
        scene.ring()
        served = scene.served()

        assert [usual] * 3 == list(served[1:4])

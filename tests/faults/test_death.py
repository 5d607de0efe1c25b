"""kill -9 at any point: what the dead held is free within a second or so, and the living learn of it by name.

The programs below say where they are, one line a step, and wait there to be killed.
"""

import re
import time
from pathlib import Path

import pytest

import vbnet
from vbnet.bus.operator import SyncOperator
from vbnet.errors import BusyError, PeerGone
from vbnet.testing.processes import HostProcess, PythonProcess, count_fds
from vbnet.testing.wire import RawPeer

POINTS = ["connected", "hello", "attached", "ready", "opened", "shared", "calling", "given"]
GUEST = """
import asyncio, os, sys
from vbnet.bus import fdpass, messages
from vbnet.guestnode import GuestNode
from vbnet.guestnode.node import GuestSession

run_dir, name, stop_at = sys.argv[1:]

def at(point):
    if point == stop_at:
        print(point, flush=True)
        sys.stdin.readline()

async def main():
    node = await GuestNode.connect(run_dir)
    at("connected")
    ask, hand_over = node.ask, node.hand_over
    async def watched_ask(sid, body, deadline_s=None):
        answer = await ask(sid, body, deadline_s)
        at(type(body).__name__.lower())
        return answer
    async def watched_hand_over(body, fds):
        answer = await hand_over(body, fds)
        at("attached")
        return answer
    node.ask, node.hand_over = watched_ask, watched_hand_over
    guest = await node.join(name, "lan", ram_bytes=65536)
    node.ask, node.hand_over = ask, hand_over
    cell = await guest.devices[1].open()
    at("opened")
    await cell.shm(0, 4096, 4096, signal_offset=0)
    at("shared")
    await guest.give_fd(1, 0)
    at("given")
    if stop_at == "calling":
        print("calling", flush=True)
        while True:
            await asyncio.gather(*(cell.call(1, b"x" * 4096) for _ in range(50)))

asyncio.run(main())
"""
WATCHER = """
import asyncio, sys
from vbnet.errors import PeerGone
from vbnet.guestnode import GuestNode

async def main():
    node = await GuestNode.connect(sys.argv[1])
    guest = await node.join("watcher", "lan", ram_bytes=65536)
    cell = await guest.bind("cell0")
    stream = guest.events()
    print("ready", flush=True)
    async def gone(work):
        try:
            await work
        except PeerGone:
            return True
        return False
    waits = [guest.wait_device("never", 60), anext(stream), node.join("other", "lan", ram_bytes=0)]
    first = [await gone(wait) for wait in waits[:2]]
    later = [cell.reverse(), guest.list_devices(), waits[2], guest.reset()]
    rest = [await gone(work) for work in later]
    await node.close()
    print(all(first + rest), guest.memory.free_bytes, flush=True)

asyncio.run(main())
"""


def lan(host: HostProcess) -> None:
    """Make the bus ``lan`` with an echo device."""
    with SyncOperator(host.run_dir) as operator:
        operator.bus_create("lan")
        operator.device_create("e", "echo")
        operator.device_plug("e", "lan")


def wait_until_gone(operator: SyncOperator, name: str) -> None:
    """Return once the host has forgotten the guest.

    Raises:
        TimeoutError: it has not, after ten seconds.
    """
    end = time.monotonic() + 10
    while any(guest.name == name for guest in operator.guest_list()):
        if time.monotonic() > end:
            raise TimeoutError(name)


@pytest.mark.parametrize("point", POINTS)
def test_a_guest_killed_anywhere_leaves_nothing(run_root: Path, point: str) -> None:
    """Its name, its exclusive device and its descriptors are free again, and a bystander's calls never failed."""
    with HostProcess(run_root) as host, SyncOperator(host.run_dir) as operator:
        lan(host)
        with vbnet.Guest("bystander", "lan", address=host.run_dir) as bystander, bystander.open("echo0") as echo:
            echo.call(0, b"warm")
            with PythonProcess(GUEST, [str(host.run_dir.path), "victim", point]) as victim:
                assert point == victim.line()
                victim.kill()
            wait_until_gone(operator, "victim")

            with bystander.open("cell0") as cell:
                assert cell.shm(0, 4096, 4096, signal_offset=0) is not None
            assert b"fine" == echo.call(0, b"fine")


def test_an_exclusive_device_is_busy_until_its_holder_dies(run_root: Path) -> None:
    """Death is a close."""
    with HostProcess(run_root) as host, SyncOperator(host.run_dir) as operator:
        lan(host)
        with vbnet.Guest("next", "lan", address=host.run_dir, ram_bytes=0) as guest:
            with PythonProcess(GUEST, [str(host.run_dir.path), "victim", "opened"]) as victim:
                victim.line()
                with pytest.raises(BusyError, match="victim"):
                    guest.open("cell0")
                victim.kill()
            wait_until_gone(operator, "victim")

            guest.open("cell0").close()


def test_every_waiter_in_a_guest_learns_that_the_host_died(run_root: Path) -> None:
    """Waits, iterators, calls and later requests all raise PeerGone; drivers are removed and memory comes back."""
    with HostProcess(run_root) as host:
        lan(host)
        with PythonProcess(WATCHER, [str(host.run_dir.path)]) as watcher:
            assert "ready" == watcher.line()
            host.kill()

            assert f"True {65536 - 4096}" == watcher.line()
            assert 0 == watcher.wait()


def test_a_new_host_takes_the_place_of_a_killed_one(run_root: Path) -> None:
    """Stale sockets are in nobody's way, and a guest joins the new host."""
    with HostProcess(run_root) as first, RawPeer(first.run_dir.path):
        first.kill()

        with HostProcess(run_root) as second, vbnet.Guest("again", address=second.run_dir, ram_bytes=0) as guest:
            assert [] == guest.list_devices()


def test_an_operator_learns_that_the_host_died(run_root: Path) -> None:
    """Without waiting for a deadline."""
    with HostProcess(run_root) as host, SyncOperator(host.run_dir, deadline_s=3600) as operator:
        operator.node_info()

        host.kill()

        with pytest.raises(PeerGone):
            operator.node_info()


def test_sigterm_ends_a_host_cleanly(run_root: Path) -> None:
    """Guests hear that the host stopped, no socket stays, and the exit code is 0."""
    with HostProcess(run_root) as host, vbnet.Guest("web", address=host.run_dir, ram_bytes=0) as guest:
        code = host.terminate()

        left = [path.name for path in host.run_dir.path.iterdir() if path.suffix in {".sock", ".json"}]
        assert (0, []) == (code, left)
        with pytest.raises(PeerGone):
            guest.list_devices()


def test_a_stopped_process_is_stuck_but_not_dead(run_root: Path) -> None:
    """What it holds stays its own while it may come back; what it missed it hears when it does."""
    program = """
import asyncio, sys
from vbnet.guestnode import GuestNode

async def main():
    node = await GuestNode.connect(sys.argv[1])
    guest = await node.join("sleeper", "lan", ram_bytes=0)
    await guest.devices[1].open()
    print("open", flush=True)
    stream = guest.events()
    late = [(await anext(stream)).dev_id for _ in range(2)]
    print(late, flush=True)

asyncio.run(main())
"""
    with HostProcess(run_root) as host, SyncOperator(host.run_dir) as operator:
        lan(host)
        with PythonProcess(program, [str(host.run_dir.path)]) as sleeper:
            sleeper.line()
            sleeper.pause()
            operator.device_create("late", "echo")
            operator.device_plug("late", "lan")
            held = operator.device_get("e").plugs[1].open_count
            sleeper.resume()

            assert (1, "[3, 4]") == (held, sleeper.line())


@pytest.mark.parametrize("cycles", [200, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
@pytest.mark.timeout(120)
def test_cycles_of_connect_and_kill_leak_nothing(run_root: Path, cycles: int) -> None:
    """After many guests that joined, shared memory and were killed, the host has the descriptors and memory it had."""
    program = """
import os, sys, signal
from vbnet.sharedmem import Ram
from vbnet.testing.wire import RawPeer
from pathlib import Path

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        peer = RawPeer(Path(sys.argv[1]))
        ram = Ram.create(65536)
        peer.join(1, "cycle", "lan", ram.fileno())
        handle = peer.ask(1, 8, [peer.OPEN, 2, 1])[1]
        peer.ask(1, 9, [peer.SHM, handle, 0, 4096, 4096, 0, 0, 0, 1])
        os.kill(os.getpid(), signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
    with HostProcess(run_root) as host, SyncOperator(host.run_dir) as operator:
        lan(host)
        with PythonProcess(program, [str(host.run_dir.path)]) as cycler:
            measured = []
            for cycle in range(cycles + 20):
                if cycle in {20, cycles + 19}:
                    measured.append((count_fds(host.pid), resident_kib(host.pid)))
                cycler.tell("go")
                assert "-9" == cycler.line()
                wait_until_gone(operator, "cycle")

            (fds, kib), (fds_after, kib_after) = measured
            assert fds_after <= fds + 2
            assert kib_after <= kib + 2048


def resident_kib(pid: int) -> int:
    """Memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0

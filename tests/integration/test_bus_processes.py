"""The bus between real processes: one host node, many guest processes, operators."""

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

import vbnet
from vbnet.bus import admin
from vbnet.bus.operator import SyncOperator
from vbnet.testing.processes import HostProcess, PythonProcess

GUEST = """
import asyncio, sys
from vbnet.guestnode import GuestNode

run_dir, count, *names = sys.argv[1:]

async def main():
    node = await GuestNode.connect(run_dir)
    guests = [await node.join(name, "lan", ram_bytes=65536) for name in names]
    opened = [await (await guest.wait_device("echo0")).open() for guest in guests]
    print("ready", flush=True)
    for line in sys.stdin:
        calls = [echo.call(1, line.strip().encode()) for echo in opened for _ in range(int(count))]
        answers = await asyncio.gather(*calls)
        print(len(answers), answers[0].decode(), flush=True)

asyncio.run(main())
"""


def test_many_guest_processes_share_one_bus(run_root: Path) -> None:
    """Sixteen processes with four guests each call one device at once; each gets its own answers."""
    with HostProcess(run_root) as host, SyncOperator(host.run_dir) as operator, ExitStack() as stack:
        operator.bus_create("lan")
        operator.device_create("e", "echo")
        operator.device_plug("e", "lan")
        processes = [
            stack.enter_context(
                PythonProcess(GUEST, [str(host.run_dir.path), "5", *(f"g{index}-{guest}" for guest in range(4))])
            )
            for index in range(16)
        ]
        assert ["ready"] * 16 == [process.line() for process in processes]

        for index, process in enumerate(processes):
            process.tell(f"hello {index}")
        answers = [process.line() for process in processes]

        assert [f"20 HELLO {index}" for index in range(16)] == answers
        guests = operator.guest_list()
        assert (64, {"ready"}) == (len(guests), {guest.state for guest in guests})
        assert str(64 * 5) == operator.device_get("e").attributes["calls"]


def test_the_host_s_log_is_one_json_object_a_line(run_root: Path) -> None:
    """A program can read what a human would."""
    with HostProcess(run_root) as host:
        with vbnet.Guest("web", address=host.run_dir, ram_bytes=0):
            pass
        host.terminate()

        lines = [json.loads(line) for line in (host.run_dir.logs / "host.log").read_text().splitlines()]

        assert ["host_ready", "guest_gone", "host_stopped"] == [line["event"] for line in lines]
        assert 0o600 == (host.run_dir.logs / "host.log").stat().st_mode & 0o777


def test_a_host_that_cannot_start_says_why_and_leaves_nothing(run_root: Path) -> None:
    """A second one in the same folder exits with 1; the first goes on."""
    with HostProcess(run_root) as host, SyncOperator(host.run_dir) as operator:
        with pytest.raises(ChildProcessError, match="exit code 1"):
            HostProcess(run_root)

        assert host.pid == operator.node_info().pid == host.run_dir.read_host().pid


def test_the_node_s_own_switch_fabric_serves_admin_verbs(run_root: Path) -> None:
    """Switches of the native fabric are made, listed and removed."""
    with HostProcess(run_root) as host, SyncOperator(host.run_dir) as operator:
        operator.switch_create("lan", ageing_s=10)
        made = operator.switch_list()
        operator.switch_delete("lan")

        assert (["lan"], [], []) == (made, operator.switch_list(), operator.port_list())
        assert (host.run_dir.counters / "host.counters").exists()


def test_a_thousand_buses_come_up_in_a_few_messages(run_root: Path) -> None:
    """Apply brings up what a large lab needs without a round trip each."""
    verbs = [
        verb
        for index in range(1000)
        for verb in (
            admin.BusCreate(f"b{index}"),
            admin.DeviceCreate(f"d{index}", "echo"),
            admin.DevicePlug(f"d{index}", f"b{index}"),
        )
    ]
    with HostProcess(run_root) as host, SyncOperator(host.run_dir) as operator:
        done = operator.apply(verbs)

        info = operator.node_info()
        assert (3000, 1000, 1000) == (done, info.buses, info.devices)


def test_an_unprivileged_user_has_a_bus_of_their_own(run_root: Path) -> None:
    """A host node, a private bus, a device on it and a guest with memory, all without root.

    Where the test itself is root, the user is one of a user namespace: the same files, none of the powers.
    """
    program = """
import os, sys
from pathlib import Path
import vbnet
from vbnet.bus.operator import SyncOperator
from vbnet.testing.processes import HostProcess

with HostProcess(Path(sys.argv[1])) as host, SyncOperator(host.run_dir) as operator:
    with vbnet.Guest("mine", address=host.run_dir) as guest:
        operator.device_create("e", "echo")
        operator.device_plug("e", guest.bus)
        guest.bind("cell0").write(b"memory")
        with guest.open("echo0") as echo:
            same_user = operator.guest_list()[0].uid == os.geteuid() != 0
            print(same_user, guest.bus.split("-")[-6] == str(os.getpid()), echo.call(1, b"mine").decode(), flush=True)
"""
    prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []

    with PythonProcess(program, [str(run_root)], prefix=prefix) as user:
        assert "True True MINE" == user.line()
        assert 0 == user.wait()

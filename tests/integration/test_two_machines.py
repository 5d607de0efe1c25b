"""Two network namespaces as two machines: the bus over tcp with CURVE keys, and its limits.

Each namespace is a namespace of this test's own, joined by a veth pair; both vanish with the test.
"""

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.vbnet_program import COMMAND
from vbnet import Guest
from vbnet.bus.keys import KeyStore
from vbnet.bus.operator import SyncOperator
from vbnet.testing.processes import HostProcess, PythonProcess

pytestmark = pytest.mark.usefixtures("namespaces")

CLIENT = """
import asyncio, sys
from pathlib import Path
from vbnet.bus.keys import KeyStore
from vbnet.bus.link import Secrets
from vbnet.bus.operator import Operator
from vbnet.guestnode import GuestNode

async def main():
    secrets = Secrets(KeyStore(Path(sys.argv[1])).load(), sys.argv[2])
    address = "tcp://10.77.0.1:7400"
PROGRAM

asyncio.run(main())
"""


@dataclass(frozen=True)
class Machines:
    """Two machines on one wire: the host's and the client's, as commands to run things there."""

    host: list[str]
    client: list[str]


@pytest.fixture
def machines(program: Callable[[str], str]) -> Iterator[Machines]:
    """Make both namespaces and the wire between them."""
    ip = program("ip")
    mark = uuid.uuid4().hex[:8]
    names = (f"vbh-{mark}", f"vbc-{mark}")
    prefixes = [[ip, "netns", "exec", name] for name in names]
    try:
        for name in names:
            subprocess.run([ip, "netns", "add", name], check=True)
        near, far = f"h{mark}", f"c{mark}"
        subprocess.run(
            [ip, "link", "add", near, "netns", names[0], "type", "veth", "peer", "name", far, "netns", names[1]],
            check=True,
        )
        for prefix, link, address in ((prefixes[0], near, "10.77.0.1/24"), (prefixes[1], far, "10.77.0.2/24")):
            for words in (
                ["addr", "add", address, "dev", link],
                ["link", "set", link, "up"],
                ["link", "set", "lo", "up"],
            ):
                subprocess.run([*prefix, ip, *words], check=True)
        yield Machines(*prefixes)
    finally:
        for name in names:
            subprocess.run([ip, "netns", "delete", name], check=False)


@pytest.fixture
def keys(run_root: Path) -> tuple[KeyStore, KeyStore]:
    """A host that allows a client, each with its own key folder."""
    host, client = KeyStore(run_root / "hostkeys"), KeyStore(run_root / "clientkeys")
    host.make()
    host.allow(client.make().public, "client")
    return host, client


@pytest.fixture
def host(run_root: Path, machines: Machines, keys: tuple[KeyStore, KeyStore]) -> Iterator[HostProcess]:
    """A host node on the first machine, open to the second."""
    arguments = ["--tcp", "tcp://10.77.0.1:7400", "--keys", str(keys[0].path)]
    with HostProcess(run_root / "r", arguments, prefix=machines.host) as process:
        yield process


def client(
    machines: Machines, keys: tuple[KeyStore, KeyStore], program: str, *, store: KeyStore | None = None
) -> PythonProcess:
    """Run a program on the second machine, with keys."""
    source = CLIENT.replace("PROGRAM", "\n".join(f"    {line}" for line in program.strip().splitlines()))
    return PythonProcess(source, [str((store or keys[1]).path), keys[0].load().public], prefix=machines.client)


@pytest.mark.usefixtures("host")
def test_operators_and_guests_work_from_another_machine(machines: Machines, keys: tuple[KeyStore, KeyStore]) -> None:
    """Admin verbs, events, list and call all cross; shared memory says clearly why it does not."""
    program = """
async with await Operator.connect(address, secrets=secrets) as operator:
    await operator.bus_create("lan")
    await operator.device_create("e", "echo")
    await operator.device_plug("e", "lan")
    stream = operator.events("guest.")
    async with await GuestNode.connect(address, secrets=secrets) as node:
        guest = await node.join("far", "lan")
        async with await guest.devices[0].open() as echo:
            print(await guest.list_devices(), await echo.call(1, b"hello"), flush=True)
        async with await guest.devices[1].open() as cell:
            try:
                await cell.shm(0, 4096, 64)
            except Exception as error:
                print(type(error).__name__, error, flush=True)
        info = (await operator.guest_list())[0]
        print(info.name, info.is_remote, info.state, flush=True)
        await guest.close()
    async for event in stream:
        if event["topic"] == "guest.gone":
            print(event["cause"], flush=True)
            break
"""
    with client(machines, keys, program) as far:
        lines = [far.line() for _ in range(4)]

    assert [
        "[(1, 'echo', 'echo0'), (2, 'echo-cell', 'cell0')] b'HELLO'",
        "UnsupportedError shared memory needs the same machine as the host node; from here only list and call work",
        "far True ready",
        "bye",
    ] == lines


def test_a_card_is_refused_from_another_machine_and_stays_free(
    host: HostProcess, machines: Machines, keys: tuple[KeyStore, KeyStore]
) -> None:
    """Nothing of it can be used there, so it is not held there either."""
    with SyncOperator(host.run_dir) as operator:
        operator.bus_create("lan")
        operator.switch_create("wire")
        operator.device_create("v0", "venet", {"switch": "wire"})
        operator.device_plug("v0", "lan")
    program = """
async with await GuestNode.connect(address, secrets=secrets) as node:
    guest = await node.join("far", "lan")
    for work in (guest.nic("v0"), guest.devices[0].open()):
        try:
            await work
        except Exception as error:
            print(type(error).__name__, error, flush=True)
    sys.stdin.readline()
"""
    refused = (
        "UnsupportedError shared memory needs the same machine as the host node; from here only list and call work"
    )
    with client(machines, keys, program) as far:
        assert [refused, refused] == [far.line(), far.line()]

        with Guest("near", "lan", address=host.run_dir) as near:
            near.nic("v0")
        far.tell("go")


def test_function_runs_as_a_guest_of_another_machine(
    host: HostProcess, machines: Machines, keys: tuple[KeyStore, KeyStore], tmp_path: Path
) -> None:
    """The command line takes the address and the keys, as other commands do; the function calls devices."""
    with SyncOperator(host.run_dir) as operator:
        operator.bus_create("lan")
        operator.device_create("e", "echo")
        operator.device_plug("e", "lan")
    (tmp_path / "ask.py").write_text(
        "def main(guest):\n    print(guest.open('echo0').call(1, b'hello'))\n    return 3\n"
    )
    where = ["--node", "tcp://10.77.0.1:7400", "--keys", str(keys[1].path), "--server-key", keys[0].load().public]

    done = subprocess.run(
        [*machines.client, *COMMAND, "guest", "run", "ask.py:main", "--bus", "lan", *where],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (3, "b'HELLO'\n", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.usefixtures("host")
def test_a_key_nobody_allowed_is_refused_clearly(
    machines: Machines, keys: tuple[KeyStore, KeyStore], run_root: Path
) -> None:
    """The stranger is told what is wrong, at once."""
    stranger = KeyStore(run_root / "stranger")
    stranger.make()
    program = """
operator = await Operator.connect(address, secrets=secrets, deadline_s=3600)
try:
    await operator.node_info()
except Exception as error:
    print(type(error).__name__, error, flush=True)
await operator.close()
"""

    with client(machines, keys, program, store=stranger) as far:
        line = far.line()

    assert line.startswith("PeerGone")
    assert "does not know our key" in line


def test_a_key_is_allowed_and_forbidden_while_the_host_runs(
    host: HostProcess, machines: Machines, keys: tuple[KeyStore, KeyStore]
) -> None:
    """The list is read for each newcomer."""
    del host
    program = """
for _ in sys.stdin:
    operator = await Operator.connect(address, secrets=secrets)
    try:
        print((await operator.node_info()).name, flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
    await operator.close()
"""
    with client(machines, keys, program) as far:
        far.tell("go")
        allowed = far.line()
        keys[0].forbid("client")
        far.tell("go")
        forbidden = far.line()
        keys[0].allow(keys[1].load().public, "client")
        far.tell("go")

        assert ("host", "PeerGone", "host") == (allowed, forbidden, far.line())


@pytest.mark.usefixtures("host")
def test_plain_tcp_gets_nowhere(machines: Machines) -> None:
    """Without a key no request reaches the host, and those with keys are not disturbed."""
    program = """
import socket, zmq
raw = [socket.create_connection(("10.77.0.1", 7400)) for _ in range(50)]
context = zmq.Context()
dealer = context.socket(zmq.DEALER)
dealer.setsockopt(zmq.LINGER, 0)
dealer.connect("tcp://10.77.0.1:7401")
dealer.send(b"\\x93\\x01\\x01\\x81\\xa4verb\\xa9node.info")
print(dealer.poll(500), flush=True)
context.destroy(0)
"""

    with PythonProcess(program, prefix=machines.client) as plain:
        assert "0" == plain.line()


def test_a_guest_on_a_machine_that_dies_is_forgotten(
    host: HostProcess, machines: Machines, keys: tuple[KeyStore, KeyStore]
) -> None:
    """Kill -9 over there frees its name here, and both sides learn."""
    program = """
node = await GuestNode.connect(address, secrets=secrets)
guest = await node.join("far")
print("ready", flush=True)
try:
    await guest.wait_device("never", 3600)
except Exception as error:
    print(type(error).__name__, flush=True)
"""
    with client(machines, keys, program) as first:
        assert "ready" == first.line()
        first.kill()
    with SyncOperator(host.run_dir) as operator:
        end = time.monotonic() + 10
        while operator.guest_list() and time.monotonic() < end:
            pass
    with client(machines, keys, program) as second:
        assert "ready" == second.line()
        host.kill()

        assert "PeerGone" == second.line()


def test_a_host_without_keys_refuses_to_listen(run_root: Path) -> None:
    """One clear sentence, exit code 1, nothing opened."""
    done = subprocess.run(
        [sys.executable, "-m", "vbnet.hostnode", "--run-root", str(run_root), "--tcp", "tcp://127.0.0.1:7400"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert 1 == done.returncode
    assert "vbnet keys make" in done.stderr
    assert "Traceback" not in done.stderr

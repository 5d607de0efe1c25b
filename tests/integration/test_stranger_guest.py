"""A guest that was written from the documents alone talks to one that was not."""

import subprocess
import sys
from pathlib import Path

from tests.support.lab import Net
from tests.support.waiting import PATIENCE, eventually
from vbnet.bus.operator import SyncOperator
from vbnet.testing.processes import HostProcess

STRANGER = Path(__file__).with_name("stranger.py")
STRANGER_INTC = Path(__file__).with_name("stranger_intc.py")


def test_stranger_joins_sends_receives_and_leaves(net: Net, tmp_path: Path) -> None:
    """With docs/wire as its only source a guest brings a device up, exchanges frames both ways, and says goodbye."""
    station, bus = net.station(), net.plug_nic(mac="02:00:00:00:00:42")
    arguments = [str(net.lab.run_dir.path), bus, station.mac.hex()]
    with subprocess.Popen(
        [sys.executable, "-I", str(STRANGER), *arguments], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as stranger:
        assert stranger.stdout is not None
        mac = bytes.fromhex(stranger.stdout.readline())
        [hello] = station.gather(1)
        reply = station.to(mac, 99, 7)
        station.nic.send([reply])
        received = stranger.stdout.readline().strip()
        [bye] = station.gather(1)
        code = stranger.wait(PATIENCE)

    assert bytes.fromhex("020000000042") == mac
    assert station.mac + mac + b"\x88\xb5hello" == hello
    assert reply.hex() == received
    assert station.mac + mac + b"\x88\xb5bye" == bye
    assert 0 == code
    eventually(lambda: f"{bus}.eth0" not in net.lab.ports(), "its port is gone")


def test_stranger_takes_an_interrupt(run_dir: Path, tmp_path: Path) -> None:
    """With docs/wire as its only source a guest brings levels up, names a signal, is woken for it, and ends it."""
    with HostProcess(run_dir) as host, SyncOperator(host.run_dir) as operator:
        operator.bus_create("lan")
        operator.device_create("irq", "intc")
        operator.device_plug("irq", "lan")
        with subprocess.Popen(
            [sys.executable, "-I", str(STRANGER_INTC), str(host.run_dir.path), "lan"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        ) as stranger:
            assert stranger.stdin is not None
            assert stranger.stdout is not None
            ready = stranger.stdout.readline()
            [before] = operator.signal_list()
            operator.signal_raise("stranger/knock")
            served = stranger.stdout.readline()
            [after] = operator.signal_list()
            stranger.stdin.close()
            code = stranger.wait(PATIENCE)

    expected = {"guest": "stranger", "name": "knock", "priority": 5, "to": "stranger", "vcpu": 0, "vector": 777}
    assert ("ready\n", "777 5\n", 0) == (ready, served, code)
    assert expected == {name: before[name] for name in expected}
    assert 1 == after["raises"]


def test_stranger_is_as_short_as_the_document_says() -> None:
    """The example stays one that can be read in one go, and imports nothing of vbnet."""
    sources = [path.read_text() for path in (STRANGER, STRANGER_INTC)]

    assert all(len(source.splitlines()) < 250 for source in sources)
    assert not any("import vbnet" in source or "from vbnet" in source for source in sources)

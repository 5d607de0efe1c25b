"""A guest that was written from the documents alone talks to one that was not."""

import subprocess
import sys
from pathlib import Path

from tests.support.lab import Net
from tests.support.waiting import PATIENCE, eventually

STRANGER = Path(__file__).with_name("stranger.py")


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


def test_stranger_is_as_short_as_the_document_says() -> None:
    """The example stays one that can be read in one go, and imports nothing of vbnet."""
    source = STRANGER.read_text()

    assert len(source.splitlines()) < 250
    assert "import vbnet" not in source
    assert "from vbnet" not in source

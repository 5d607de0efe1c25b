"""Front ends of vhost-user that are not ours: DPDK's testpmd with virtio-user cards on a switch, beside guests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.lab import Net, ethernet, numbered
from tests.support.real_lab import real_lab
from tests.support.testpmd import TestPmd
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MACS = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")


@pytest.fixture
def listen(net: Net) -> Iterator[Callable[[str], Path]]:
    """Return a function that makes a port that waits for front ends, and answers where; they are removed at the end."""
    made: list[int] = []

    def make(name: str) -> Path:
        name = f"{name}-{next(net.lab.numbers)}"
        made.append(net.lab.operator.port_listen(net.switch, name))
        return Path(net.lab.ports()[name]["device"])

    yield make
    for port in made:
        net.lab.operator.port_remove(port)


def port_of(net: Net, socket: Path) -> str:
    """Return the name of the port that has a socket."""
    return next(name for name, port in net.lab.ports().items() if port["device"] == str(socket))


@pytest.mark.parametrize(
    ("card", "arguments"),
    [
        ("", ()),
        ("mrg_rxbuf=0", ()),
        ("in_order=0,mrg_rxbuf=0", ("--txd=64", "--rxd=64")),
        ("queues=2", ("--rxq=2", "--txq=2")),
        ("packed_vq=1", ()),
        ("packed_vq=1,mrg_rxbuf=0", ()),
        ("packed_vq=1,in_order=0", ("--txd=64", "--rxd=64")),
        ("packed_vq=1,queues=2", ("--rxq=2", "--txq=2")),
    ],
    ids=[
        "mergeable",
        "not mergeable",
        "short queues",
        "two pairs",
        "packed",
        "packed, not mergeable",
        "packed, short queues",
        "packed, two pairs",
    ],
)
def test_packets_go_round_between_two_applications_and_none_is_lost(
    net: Net, listen: Callable[[str], Path], card: str, arguments: tuple[str, ...]
) -> None:
    """What one sends first, both hand back and forth from then on: as many are under way at the end as at the start."""
    sockets = [listen(name) for name in ("near", "far")]
    with (
        TestPmd(sockets[0], MACS[0], "macswap", card, (*arguments, f"--eth-peer=0,{MACS[1]}")) as near,
        TestPmd(sockets[1], MACS[1], "macswap", card, (*arguments, f"--eth-peer=0,{MACS[0]}")) as far,
    ):
        far.command("start")
        near.command("start tx_first 1")
        eventually(lambda: far.statistics().rx_packets > 20_000, "20,000 packets came round", 60)
        near.stop()
        far.stop()
        seen = [program.statistics() for program in (near, far)]

    for statistics in seen:
        assert (0, 0) == (statistics.rx_missed, statistics.tx_errors)
    counters = [net.lab.port_counters(port_of(net, socket)) for socket in sockets]
    for counted, statistics in zip(counters, seen, strict=True):
        assert statistics.tx_packets == counted["transmit_frames"]
        assert {} == {name: value for name, value in counted.items() if "drop" in name and value}
    # Of the last ones, some were given and not taken before both stopped.
    assert 0 <= counters[0]["receive_frames"] - seen[0].rx_packets <= 64
    assert 0 <= counters[1]["receive_frames"] - seen[1].rx_packets <= 64


@pytest.mark.parametrize("card", ["", "packed_vq=1"], ids=["split", "packed"])
def test_application_answers_a_guest_frame_by_frame(net: Net, listen: Callable[[str], Path], card: str) -> None:
    """A venet guest sends frames of many lengths to testpmd, which swaps addresses: each comes back unchanged."""
    station = net.station()
    socket = listen("vm")
    lengths = [60, 61, 64, 100, 512, 1000, 1513, 1514]
    mac = bytes.fromhex(MACS[0].replace(":", ""))
    with TestPmd(socket, MACS[0], "macswap", card) as program:
        program.command("start")
        for start in range(0, 512, 8):
            frames = [ethernet(mac, station.mac, length, start + at) for at, length in enumerate(lengths)]
            station.nic.send(frames, 10)
            returned = station.gather(len(frames))

            assert [ethernet(station.mac, mac, length, start + at) for at, length in enumerate(lengths)] == returned
        assert [] == station.nic.recv(1, 0)


@pytest.mark.parametrize("card", ["", "packed_vq=1"], ids=["split", "packed"])
def test_application_that_ends_and_starts_again_finds_its_port(
    net: Net, listen: Callable[[str], Path], card: str
) -> None:
    """Ended by its own word and by force, testpmd connects anew, and the guest reaches it."""
    station = net.station()
    socket = listen("vm")
    name = port_of(net, socket)
    mac = bytes.fromhex(MACS[0].replace(":", ""))
    for farewell in ("quit", "", "quit"):
        program = TestPmd(socket, MACS[0], "macswap", card)
        try:
            program.command("start")
            station.nic.send([ethernet(mac, station.mac, 100, 7)])
            assert [7] == [numbered(frame) for frame in station.gather(1)]
            assert net.lab.ports()[name]["is_served"]
        finally:
            program.close(farewell)
        eventually(lambda: not net.lab.ports()[name]["is_served"], "the port is free")

    assert {} == {key: value for key, value in net.lab.ports()[name].items() if "fault" in key and value}


@pytest.mark.parametrize("card", ["", "packed_vq=1"], ids=["split", "packed"])
def test_application_that_listens_is_found_and_found_again(net: Net, tmp_path: Path, card: str) -> None:
    """The port is there before testpmd, and when it comes a second time: the guest reaches it both times."""
    station = net.station()
    socket = tmp_path / "server.sock"
    port = net.lab.operator.port_listen(net.switch, f"server-{next(net.lab.numbers)}", socket=str(socket), connect=True)
    mac = bytes.fromhex(MACS[0].replace(":", ""))
    try:
        for number in range(2):
            socket.unlink(missing_ok=True)
            with TestPmd(socket, MACS[0], "macswap", ",".join(filter(None, ["server=1", card]))) as program:
                program.command("start")
                station.nic.send([ethernet(mac, station.mac, 100, number)])
                assert [number] == [numbered(frame) for frame in station.gather(1)]
    finally:
        net.lab.operator.port_remove(port)


def test_lab_file_names_sockets_and_ps_shows_who_is_connected() -> None:
    """A stack guest is pinged by testpmd's answers: the port is of the lab, waits, and is connected to."""
    text = """
name: t
switches: {lan: }
guests:
  web: {kind: stack, nics: [{switch: lan, ip: 10.10.0.10/24}]}
vhost-user:
  vm: {switch: lan, mac: "02:00:00:00:00:0a"}
"""
    with real_lab(text) as lab:
        waiting = lab.rows("ps")[1]
        with TestPmd(Path(waiting["detail"]), MACS[0], "macswap") as program:
            program.command("start")
            connected = lab.rows("ps")[1]
        listed = next(port for port in lab.rows("port", "list") if port["name"] == "vm")

    assert ["vm", "vhost-user", "waiting", [MACS[0]]] == [waiting[key] for key in ("guest", "kind", "state", "mac")]
    assert "connected" == connected["state"]
    assert ("vhost-user", MACS[0], waiting["detail"]) == (listed["kind"], listed["mac"], listed["device"])


@pytest.mark.parametrize("card", ["", "client=1"], ids=["listens", "connects"])
def test_device_that_an_application_serves_is_reached_by_a_guest(net: Net, tmp_path: Path, card: str) -> None:
    """The port is the front end of testpmd's own vhost, which swaps addresses; also of one that comes a second time."""
    station = net.station()
    socket = tmp_path / "back-end.sock"
    name = f"front-{next(net.lab.numbers)}"
    port = net.lab.operator.port_listen(net.switch, name, socket=str(socket), connect=not card, front_end=True)
    mac = bytes.fromhex(MACS[0].replace(":", ""))
    lengths = [60, 64, 512, 1513, 1514]
    try:
        for number in range(2):
            if not card:
                socket.unlink(missing_ok=True)
            with TestPmd(socket, "", "macswap", card) as program:
                program.command("start")
                eventually(lambda: net.lab.ports()[name]["is_served"], "the device is there", 20)
                for start in range(0, 512, 8):
                    frames = [ethernet(mac, station.mac, length, start + at) for at, length in enumerate(lengths)]
                    station.nic.send(frames, 10)
                    returned = station.gather(len(frames))
                    assert [
                        ethernet(station.mac, mac, length, start + at) for at, length in enumerate(lengths)
                    ] == returned
            eventually(lambda: not net.lab.ports()[name]["is_served"], f"it has gone the {number + 1}. time", 20)
    finally:
        net.lab.operator.port_remove(port)

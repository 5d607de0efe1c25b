"""Virtual machines on switches: QEMU's network card, driven by Linux in the machine, beside guests of every kind."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.lab import Lab
from tests.support.processes import thread_states
from tests.support.real_lab import RealLab, real_lab
from tests.support.vm import VirtualMachine, qemu_card
from tests.support.waiting import eventually
from vbnet.errors import PeerGone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

MACS = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")
LAB = f"""
name: t
switches: {{lan: }}
guests:
  web: {{kind: stack, nics: [{{switch: lan, ip: 10.10.0.10/24}}]}}
  ns: {{kind: netns, nics: [{{switch: lan, ip: 10.10.0.100/24}}]}}
vhost-user:
  one: {{switch: lan, mac: "{MACS[0]}"}}
  two: {{switch: lan, mac: "{MACS[1]}"}}
"""
AT_ONCE = 30.0
"""Seconds for something that takes one or two on a machine with nothing else to do."""


def up(machine: VirtualMachine, address: str) -> None:
    """Give a machine's card an address."""
    machine.run(f"ip addr add {address}/24 dev eth0 && ip link set eth0 up")


def reaches(machine: VirtualMachine, address: str) -> bool:
    """Say whether a ping is answered within a second."""
    return machine.attempt(f"ping -c 1 -W 1 {address} >/dev/null")[1] == 0


def serve_file(machine: VirtualMachine, mebibytes: int) -> str:
    """Have a machine serve a file of random bytes by HTTP as ``file``; its checksum."""
    machine.run("mkdir -p /tmp/www && (pidof httpd >/dev/null || httpd -h /tmp/www)")
    machine.run(f"dd if=/dev/urandom of=/tmp/www/file bs=1M count={mebibytes} 2>/dev/null")
    return machine.run("sha256sum </tmp/www/file").split()[0]


@pytest.fixture(scope="module")
def lab() -> Iterator[RealLab]:
    """Give the module a lab with two sockets for machines."""
    with real_lab(LAB) as lab:
        yield lab


@pytest.fixture(scope="module")
def machines(lab: RealLab) -> Iterator[tuple[VirtualMachine, VirtualMachine]]:
    """Give the module two machines on the lab's switch, with addresses."""
    sockets = {row["guest"]: Path(row["detail"]) for row in lab.rows("ps") if row["kind"] == "vhost-user"}
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(VirtualMachine(name, qemu_card(sockets[name], mac=mac)))
            for name, mac in zip(("one", "two"), MACS, strict=True)
        )
        up(one, "10.10.0.1")
        up(two, "10.10.0.2")
        yield one, two


@pytest.mark.usefixtures("namespaces", "tun_device")
def test_machine_reaches_a_stack_guest_a_namespace_and_another_machine(
    lab: RealLab, machines: tuple[VirtualMachine, VirtualMachine]
) -> None:
    """Pings are answered by guests of three kinds, and the command line shows how."""
    one, _two = machines

    for address in ("10.10.0.10", "10.10.0.100", "10.10.0.2"):
        assert "3 packets received" in one.run(f"ping -c 3 -i 0.2 -W 5 {address}")

    ports = {port["name"]: port for port in lab.rows("port", "list") if port["kind"] == "vhost-user"}
    assert {"one": True, "two": True} == {name: port["is_served"] for name, port in ports.items()}
    assert ["connected", "connected"] == [row["state"] for row in lab.rows("ps") if row["kind"] == "vhost-user"]
    counted = {(row["port"], row["counter"]): row["value"] for row in lab.rows("port", "stats")}
    assert counted["one", "transmit_frames"] >= 9
    assert counted["one", "receive_frames"] >= 9
    assert "one" in lab.vbnet("graph")


@pytest.mark.usefixtures("namespaces", "tun_device")
def test_file_arrives_whole_over_tcp(lab: RealLab, machines: tuple[VirtualMachine, VirtualMachine]) -> None:
    """Four mebibytes go from machine to machine, and from a machine into a namespace: the checksums agree."""
    one, two = machines
    checksum = serve_file(two, 4)

    one.run("wget -q -O /tmp/file http://10.10.0.2/file", patience=AT_ONCE)

    assert checksum == one.run("sha256sum </tmp/file").split()[0]
    there = lab.within("ns", "sh", "-c", "curl -s --max-time 30 http://10.10.0.2/file | sha256sum")
    assert checksum == there.split()[0]


def test_paused_machine_goes_on(machines: tuple[VirtualMachine, VirtualMachine]) -> None:
    """Stopped by QEMU's own word and by SIGSTOP, a machine is silent; let go, it answers, and nobody else noticed."""
    one, two = machines
    one.qmp("stop")
    assert not reaches(two, "10.10.0.1")
    assert reaches(two, "10.10.0.10")
    one.qmp("cont")
    eventually(lambda: reaches(two, "10.10.0.1"), "it answers", AT_ONCE)

    os.kill(one.pid, signal.SIGSTOP)
    eventually(lambda: thread_states(one.pid) == {"T"}, "every thread stands still")
    assert not reaches(two, "10.10.0.1")
    os.kill(one.pid, signal.SIGCONT)
    eventually(lambda: reaches(two, "10.10.0.1"), "it answers", AT_ONCE)


def test_killed_machine_leaves_its_port_to_the_next(
    lab: RealLab, machines: tuple[VirtualMachine, VirtualMachine]
) -> None:
    """Killed while it sends, a machine holds nothing: its socket serves the next one, here with two pairs of queues."""
    one, two = machines
    socket = next(Path(port["device"]) for port in lab.rows("port", "list") if port["name"] == "one")
    one.run("(ping -i 0.01 10.10.0.2 >/dev/null 2>&1 &)")
    one.kill()
    eventually(lambda: "waiting" in [row["state"] for row in lab.rows("ps")], "the port waits")
    assert reaches(two, "10.10.0.10")

    with VirtualMachine("next", qemu_card(socket, mac=MACS[0], queues=2), processors=2) as following:
        up(following, "10.10.0.1")
        assert 2 == following.run("ls /sys/class/net/eth0/queues").count("rx-")
        checksum = serve_file(two, 1)
        following.run("wget -q -O /tmp/file http://10.10.0.2/file", patience=AT_ONCE)
        assert checksum == following.run("sha256sum </tmp/file").split()[0]


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_machines_survive_the_death_of_their_host_node(lab_root: Path, packed: bool) -> None:
    """Killed under traffic and started again, a host node has its machines back by themselves, and traffic goes on.

    So it is when their port is removed and added again: QEMU was told of neither where its queues were.
    """
    sockets = [lab_root / f"{name}.sock" for name in ("one", "two")]

    def listen(lab: Lab) -> None:
        for socket, mac in zip(sockets, MACS, strict=True):
            lab.operator.port_listen("lan", socket.stem, socket=str(socket), mac=mac)

    with ExitStack() as stack:
        with Lab(lab_root / "host") as lab:
            lab.operator.switch_create("lan")
            listen(lab)
            one, two = (
                stack.enter_context(VirtualMachine(socket.stem, qemu_card(socket, mac=mac, packed=packed)))
                for socket, mac in zip(sockets, MACS, strict=True)
            )
            up(one, "10.10.0.1")
            up(two, "10.10.0.2")
            assert reaches(one, "10.10.0.2")
            assert packed == ("1" == one.run("cut -c 35 /sys/class/net/eth0/device/features").strip())
            one.run("(ping -i 0.05 10.10.0.2 >/dev/null 2>&1 &)")
            lab.host.kill()
        assert not reaches(two, "10.10.0.1")

        with Lab(lab_root / "host") as lab:
            lab.operator.switch_create("lan")
            listen(lab)
            eventually(lambda: all(port["is_served"] for port in lab.ports().values()), "both came again", AT_ONCE)
            eventually(lambda: reaches(two, "10.10.0.1"), "traffic goes on", AT_ONCE)
            checksum = serve_file(one, 1)
            two.run("wget -q -O /tmp/file http://10.10.0.1/file", patience=AT_ONCE)
            assert checksum == two.run("sha256sum </tmp/file").split()[0]

            for port in lab.operator.port_list():
                lab.operator.port_remove(port["id"])
            listen(lab)
            eventually(lambda: all(port["is_served"] for port in lab.ports().values()), "both came again", AT_ONCE)
            eventually(lambda: reaches(two, "10.10.0.1"), "traffic goes on", AT_ONCE)
            drops = {name: value for name, value in lab.port_counters("one").items() if "fault" in name and value}
            assert {} == drops


def test_machine_moves_while_it_is_pinged_and_serves(lab: RealLab, tmp_path: Path) -> None:
    """To another QEMU at another port, in the middle of its traffic: pings go on there, and a file arrives whole."""
    for name in ("here", "there"):
        lab.vbnet("port", "add", "lan", name, "--vhost-user", "auto")
    sockets = {row["name"]: row["device"] for row in lab.rows("port", "list")}
    cards = {name: qemu_card(Path(sockets[name]), mac="02:00:00:00:00:0c") for name in ("here", "there")}
    way = tmp_path / "way"
    with (
        VirtualMachine("here", cards["here"]) as here,
        VirtualMachine("there", cards["there"], incoming=way) as there,
    ):
        up(here, "10.10.0.3")
        assert reaches(here, "10.10.0.10")
        checksum = serve_file(here, 1)
        here.run("(ping -i 0.05 10.10.0.10 >/tmp/pings 2>&1 &)")

        here.move(way)

        def pings() -> int:
            # QEMU's own words come by the same way.
            (count,) = re.findall(r"pings=(\d+)", there.run("echo pings=$(grep -c seq= /tmp/pings)"))
            return int(count)

        before = pings()
        eventually(lambda: pings() > before + 20, "pings go on", AT_ONCE)
        told = there.run("kill -INT $(pidof ping); while pidof ping >/dev/null; do :; done; tail -2 /tmp/pings")
        assert int(re.findall(r"(\d+)% packet loss", told)[0]) < 50
        assert checksum in there.run("wget -q -O - http://127.0.0.1/file | sha256sum")
        served = {port["name"]: port["is_served"] for port in lab.rows("port", "list")}
        assert (False, True) == (served["here"], served["there"])


def test_machine_that_says_nothing_is_found_where_it_has_moved_to(lab: RealLab, tmp_path: Path) -> None:
    """QEMU has it announced: its address is behind the new port before a frame of its own is."""
    station = "02:00:00:00:00:0d"
    for name in ("left", "right"):
        lab.vbnet("port", "add", "lan", name, "--vhost-user", "auto")
    sockets = {row["name"]: row["device"] for row in lab.rows("port", "list")}
    cards = {name: qemu_card(Path(sockets[name]), mac=station) for name in ("left", "right")}

    def place() -> str:
        """The port behind which the switch knows the station."""
        return next((row["name"] for row in lab.rows("switch", "macs", "lan") if row["mac"] == station), "")

    with (
        VirtualMachine("left", cards["left"]) as left,
        VirtualMachine("right", cards["right"], incoming=tmp_path / "way"),
    ):
        left.run("sysctl -w net.ipv6.conf.all.disable_ipv6=1 >/dev/null || true")
        up(left, "10.10.0.4")
        assert reaches(left, "10.10.0.10")
        assert "left" == place()

        left.move(tmp_path / "way")

        eventually(lambda: "right" == place(), "the switch knows where it is", AT_ONCE)


# ---- what goes wrong when a machine is told something else ----------------------------------------------------------


@pytest.fixture(scope="module")
def spare(lab: RealLab) -> Path:
    """Give the module a socket of its own, which no machine uses for long."""
    lab.vbnet("port", "add", "lan", "spare", "--vhost-user", "auto")
    return Path(next(port["device"] for port in lab.rows("port", "list") if port["name"] == "spare"))


def detail_of(lab: RealLab, port: str) -> str:
    """Return why a port does not work, as it is listed."""
    return next(str(row["detail"]) for row in lab.rows("port", "list") if row["name"] == port)


def test_port_says_what_helps_where_memory_is_not_shared(lab: RealLab, spare: Path) -> None:
    """Without a memory object QEMU hands none over; the port names what to add."""
    with VirtualMachine("private", qemu_card(spare)[4:]):
        told = eventually(lambda: detail_of(lab, "spare"), "the port tells why", 2 * AT_ONCE)

    assert "share=on" in told


def test_socket_that_is_not_there_is_named_by_qemu(spare: Path) -> None:
    """A path that nobody listens on is in QEMU's message."""
    other = spare.with_name("vhost-user-nobody.sock")
    card = [word.replace(",reconnect", ",x-reconnect").partition(",x-")[0] for word in qemu_card(other)]
    with VirtualMachine("lost", card) as machine, pytest.raises(PeerGone, match=r"nobody\.sock.*No such file"):
        machine.wait_up()


def test_memory_of_a_file_on_a_disk_is_refused_with_its_reason(lab: RealLab, spare: Path) -> None:
    """The port says why its front end was sent away, and works again for the next one."""
    disk = Path(__file__).parents[2] / "target" / "vm" / f"ram-{os.getpid()}"
    backend = f"memory-backend-file,id=ram,size=128M,share=on,mem-path={disk}"
    memory = ["-object", backend, "-machine", "memory-backend=ram"]
    try:
        with VirtualMachine("disk", [*memory, *qemu_card(spare)[4:]]):
            told = eventually(lambda: detail_of(lab, "spare"), "the port tells why", AT_ONCE)
    finally:
        disk.unlink(missing_ok=True)
    assert "disconnected" in told


def test_second_machine_at_one_socket_waits_and_the_port_tells(lab: RealLab, spare: Path) -> None:
    """QEMU says nothing while it waits for its turn; the port does."""
    with VirtualMachine("first", qemu_card(spare)) as first:
        first.wait_up()
        with VirtualMachine("second", qemu_card(spare)):
            told = eventually(lambda: detail_of(lab, "spare"), "the port tells of it", AT_ONCE)
    assert "another front end waits" in told

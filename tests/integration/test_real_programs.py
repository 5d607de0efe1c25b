"""The kernel's own programs across vbnet: ping, curl, iperf3, tcpdump and plain sockets, inside and from outside.

One lab for all tests, in a network namespace of its own: small IP hosts, two namespaces with a normal and a jumbo
interface each, and an uplink from the lab's switch to the machine around it (here: that namespace). The namespaces have
offloads; the uplink has none, so that captures there show frames as they are on a wire.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import pcap_reader, socket_programs
from tests.support.machine import LIMIT_S, Machine
from tests.support.real_lab import RealLab, real_lab
from tests.support.waiting import eventually
from vbnet.bus.rundir import RunDir
from vbnet.cluster.process import is_alive
from vbnet.telemetry import Counted, read_counted

LAB = """
name: t
switches: {lan: , jumbo: }
guests:
  web: {kind: stack, count: 2, nics: [{switch: lan, ip: 10.10.0.10/24}]}
  one: {kind: netns, nics: [{switch: lan, ip: 10.10.0.2/24}, {switch: jumbo, ip: 10.11.0.2/24, mtu: 9000}]}
  two: {kind: netns, nics: [{switch: lan, ip: 10.10.0.3/24}, {switch: jumbo, ip: 10.11.0.3/24, mtu: 9000}]}
uplinks: [{switch: lan, tap: vbup0, ip: 10.10.0.1/24, offloads: false}]
"""
WEB, TWO, TWO_JUMBO = "10.10.0.10", "10.10.0.3", "10.11.0.3"
ECHO_PORT = 7
FILE_BYTES = 8_000_000
RunIn = Callable[..., str]

pytestmark = pytest.mark.usefixtures("namespaces", "tun_device", "no_leaked_links")


@pytest.fixture(scope="module")
def machine(program: Callable[[str], str]) -> Iterator[Machine]:
    """A namespace around the lab, which stands for the machine it runs on."""
    for name in ("ip", "nsenter", "ping", "curl", "iperf3"):
        program(name)
    with Machine() as made:
        yield made


@pytest.fixture(scope="module")
def lab(machine: Machine) -> Iterator[RealLab]:
    """The lab, up."""
    with real_lab(LAB, machine.prefix) as up:
        processes = up.everybody()
        yield up
    eventually(lambda: not any(map(is_alive, processes)), "every process of the lab ended")


@pytest.fixture(params=["namespace", "uplink"])
def run_in(request: pytest.FixtureRequest, lab: RealLab, machine: Machine) -> RunIn:
    """Return a function that runs a program in a namespace guest, or on the machine beyond the uplink."""

    def in_guest(*command: str) -> str:
        return lab.inside("one", *command)

    return in_guest if request.param == "namespace" else machine.run


@pytest.fixture(params=["namespace", "uplink"])
def run_at_once(request: pytest.FixtureRequest, lab: RealLab, machine: Machine) -> RunIn:
    """The same without the command line in between, for tests that run many programs."""
    return functools.partial(lab.within, "one") if request.param == "namespace" else machine.run


def test_what_passes_the_tap_of_a_guest_is_counted_as_the_guests_own(lab: RealLab) -> None:
    """Under its name, as what passes a card is; the uplink, which is nobody's, has no guest."""

    def taps() -> dict[str, Counted]:
        return {
            port.labels["device"]: port
            for port in read_counted(RunDir(lab.folder).counters, "port")
            if port.labels["kind"] == "tap"
        }

    before = taps()
    lab.within("one", "ping", "-n", "-c", "2", "-i", "0.02", "-W", "10", WEB)
    after = taps()

    own = {"one.eth0": "one", "one.eth1": "one", "two.eth0": "two", "two.eth1": "two", "vbup0": ""}
    assert own == {device: port.labels["guest"] for device, port in after.items()}
    for name in ("transmit_frames", "receive_frames"):
        assert after["one.eth0"].values[name] >= before["one.eth0"].values[name] + 2


# --- namespace, or the outside, to small IP hosts ------------------------------------------------------------------


@pytest.mark.parametrize("data_bytes", [56, 1472])
def test_ping_gets_every_answer(run_in: RunIn, data_bytes: int) -> None:
    """The kernel's own ping, with its usual and with the largest packets: nothing lost, nothing twice."""
    said = run_in("ping", "-n", "-c", "5", "-i", "0.02", "-W", "10", "-M", "do", "-s", str(data_bytes), WEB)

    assert "5 packets transmitted, 5 received, 0% packet loss" in said
    assert f"{data_bytes + 8} bytes from {WEB}: icmp_seq=5" in said


def test_curl_fetches_the_page(run_in: RunIn) -> None:
    """A whole HTML page that names its guest."""
    said = run_in("curl", "-sSi", "--max-time", "20", f"http://{WEB}/")

    head, _, page = said.partition("\n\n")
    assert "200 OK" in head.splitlines()[0]
    assert f"Content-Length: {len(page)}" in head
    assert "<h1>web-0</h1>" in page


def test_statistics_are_json_that_counts(run_at_once: RunIn) -> None:
    """The guest's own statistics count the requests that asked for them."""
    url = f"http://{WEB}/stats"

    first, second = (json.loads(run_at_once("curl", "-sSf", "--max-time", "20", url)) for _ in range(2))

    assert "web-0" == first["name"]
    assert [f"{WEB}/24"] == [address for address in first["addresses"] if "." in address]
    assert first["http_requests"] < second["http_requests"]
    assert first["rx_frames"] < second["rx_frames"]


@pytest.mark.parametrize("length", [0, 1, 1460, 1461, 3_000_001])
def test_bytes_come_whole(run_at_once: RunIn, length: int) -> None:
    """As many bytes as asked for, each what it should be, with the checksum known beforehand."""
    expected = hashlib.sha256(pattern(length)).hexdigest()

    said = run_at_once("sh", "-c", f"curl -sSf --max-time 30 http://{WEB}/bytes/{length} | sha256sum")

    assert expected == said.split()[0]


def test_ten_downloads_at_once_come_whole(run_at_once: RunIn) -> None:
    """Ten connections to one small host share its link, and each gets its own bytes."""
    urls = " ".join(f"-o /dev/null http://{WEB}/bytes/{200_000 + number}" for number in range(10))

    said = run_at_once("sh", "-c", f"curl -sSfZ --no-keepalive --max-time 30 -w '%{{size_download}}\\n' {urls}")

    assert [200_000 + number for number in range(10)] == sorted(int(line) for line in said.split())


def test_tcp_and_udp_echo_come_back_unchanged(run_in: RunIn) -> None:
    """A program with plain sockets: 100 kB over TCP, datagrams of 0, 1 and 1472 bytes."""
    said = run_in(sys.executable, "-c", socket_programs.ECHO_CLIENT, WEB, str(ECHO_PORT), "100000")

    assert {"tcp_is_equal": True, "tcp_rest": 0, "udp_are_equal": [True, True, True]} == json.loads(said)


def test_the_kernel_learns_the_guests_addresses(run_at_once: RunIn, lab: RealLab) -> None:
    """After a ping, the kernel's neighbour table has the MAC addresses that the lab gave."""
    macs = {row["ip"][0].partition("/")[0]: row["mac"][0] for row in lab.rows("ps")}
    wanted = {ip: macs[ip] for ip in (WEB, "10.10.0.11", TWO)}

    said = run_at_once("sh", "-c", "".join(f"ping -n -c 1 -W 10 {ip} >/dev/null;" for ip in wanted) + "ip -j neigh")

    assert wanted == {row["dst"]: row["lladdr"] for row in json.loads(said) if row["dst"] in wanted}


def test_nobody_answers_for_an_address_without_a_guest(run_at_once: RunIn) -> None:
    """An unused address stays unanswered: the switch invents nothing."""
    said = run_at_once("sh", "-c", "ping -n -c 1 -W 0.3 10.10.0.99; ip neigh show 10.10.0.99")

    assert "0 received" in said
    assert "lladdr" not in said


# --- namespace, or the outside, to another namespace ---------------------------------------------------------------


@pytest.fixture
def iperf3(lab: RealLab, run_in: RunIn) -> Callable[..., dict[str, Any]]:
    """Return a function that measures against a fresh server in the namespace ``two`` and gives iperf3's own report."""

    def measure(*options: str) -> dict[str, Any]:
        with lab.start_inside("two", "iperf3", "-s", "-1", "--forceflush") as server:
            assert server.stdout is not None
            while "listening" not in server.stdout.readline():
                pass
            report: dict[str, Any] = json.loads(run_in("iperf3", "-c", TWO, "-J", *options))
            server.communicate(timeout=LIMIT_S)
            assert 0 == server.returncode
        assert "error" not in report
        return report

    return measure


@pytest.mark.parametrize("direction", [(), ("-R",)], ids=["there", "back"])
def test_iperf3_over_tcp_finishes(iperf3: Callable[..., dict[str, Any]], direction: tuple[str, ...]) -> None:
    """What was acknowledged was received: megabytes, not a trickle, in either direction."""
    end = iperf3("-n", "50M", *direction)["end"]

    assert end["sum_received"]["bytes"] > 25_000_000
    assert end["sum_received"]["bytes"] <= end["sum_sent"]["bytes"]


@pytest.mark.parametrize("direction", [(), ("-R",)], ids=["there", "back"])
def test_iperf3_over_udp_loses_nothing_uncounted(
    lab: RealLab, machine: Machine, iperf3: Callable[..., dict[str, Any]], direction: tuple[str, ...]
) -> None:
    """Every datagram arrives, or is a drop that somebody counted: a port of the switch, or one of the kernels."""
    before = counted_drops(lab, machine)

    end = iperf3("-u", "-b", "100M", "-n", "5M", *direction)["end"]

    lost = end["sum"]["lost_packets"]
    assert end["sum"]["packets"] > 1000
    assert lost <= counted_drops(lab, machine) - before
    assert lost < end["sum"]["packets"]


def test_a_file_arrives_as_it_was(lab: RealLab, run_at_once: RunIn) -> None:
    """Eight megabytes over the kernel's TCP, equal by their SHA-256."""
    with lab.start_inside("two", sys.executable, "-c", socket_programs.FILE_RECEIVER, TWO, "9000") as receiver:
        assert receiver.stdout is not None
        assert "ready\n" == receiver.stdout.readline()
        sent = json.loads(run_at_once(sys.executable, "-c", socket_programs.FILE_SENDER, TWO, "9000", str(FILE_BYTES)))
        received = json.loads(receiver.communicate(timeout=LIMIT_S)[0])

    assert FILE_BYTES == sent["bytes"]
    assert sent == received


@pytest.mark.parametrize(("address", "mtu"), [(TWO, 1500), (TWO_JUMBO, 9000)], ids=["1500", "9000"])
def test_the_mtu_is_exactly_what_the_file_says(lab: RealLab, address: str, mtu: int) -> None:
    """A packet of the MTU passes unfragmented; one byte more is refused by the sender's own kernel."""
    fits = mtu - 28

    said = lab.inside("one", "ping", "-n", "-c", "2", "-i", "0.02", "-W", "10", "-M", "do", "-s", str(fits), address)
    refused = lab.inside("one", "ping", "-n", "-c", "1", "-W", "0.2", "-M", "do", "-s", str(fits + 1), address, code=1)

    assert " 0% packet loss" in said
    assert "0 received, +1 errors" in refused


def test_interfaces_can_queue_a_whole_window_of_tcp(lab: RealLab, machine: Machine) -> None:
    """A TCP connection may have 6 MiB under way by default; a queue that holds less makes it send frames twice."""
    links = [*json.loads(lab.within("one", "ip", "-j", "link")), *json.loads(machine.run("ip", "-j", "link"))]

    queues = {link["ifname"]: (link["mtu"], link["txqlen"]) for link in links}
    assert {"eth0": (1500, 4194), "eth1": (9000, 1000), "vbup0": (1500, 4194)} == {
        name: queue for name, queue in queues.items() if name != "lo"
    }


def test_packets_longer_than_the_mtu_arrive_in_fragments(run_at_once: RunIn) -> None:
    """The kernels fragment and reassemble 8000 bytes across vbnet."""
    said = run_at_once("ping", "-n", "-c", "2", "-i", "0.02", "-W", "10", "-s", "8000", TWO)

    assert " 0% packet loss" in said


# --- tcpdump -------------------------------------------------------------------------------------------------------

MARKER = b"\xe2\xd0\x0f\xca" * 4
SEND_MARKER = ("ping", "-n", "-c", "1", "-W", "10", "-p", MARKER.hex())


@contextmanager
def captured(start: Callable[..., subprocess.Popen[str]], link: str, frames: list[bytes]) -> Iterator[None]:
    """Fill ``frames`` with what crosses an interface; the last act inside must be a ping with the marker."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "frames.pcap")
        command = ("tcpdump", "-i", link, "-U", "--immediate-mode", "-B", "16384", "-Z", "root", "-w", str(file))
        with start(*command, stderr=subprocess.PIPE) as tcpdump:
            assert tcpdump.stderr is not None
            while "listening" not in tcpdump.stderr.readline():
                assert tcpdump.poll() is None
            yield
            eventually(lambda: file.read_bytes().count(MARKER) >= 2, "request and answer with the marker are written")
            tcpdump.terminate()
            assert "\n0 packets dropped by kernel" in tcpdump.communicate(timeout=LIMIT_S)[1]
        frames += [frame for frame in pcap_reader.read_frames(file) if MARKER not in frame]


@pytest.mark.usefixtures("lab")
def test_tcpdump_on_the_tap_shows_intact_frames(machine: Machine, program: Callable[[str], str]) -> None:
    """Ping, datagrams and a download through the uplink: each frame whole, its checksums right, its bytes as sent."""
    program("tcpdump")
    frames: list[bytes] = []
    with captured(machine.start, "vbup0", frames):
        machine.run("ping", "-n", "-c", "3", "-i", "0.02", "-W", "10", "-p", "c0ffee", "-s", "216", WEB)
        machine.run(sys.executable, "-c", socket_programs.UDP_SENDER, WEB, str(ECHO_PORT), "20")
        machine.run("curl", "-sSf", "--max-time", "20", "-o", "/dev/null", f"http://{WEB}/bytes/100000")
        machine.run(*SEND_MARKER, WEB)

    packets = [packet for packet in map(pcap_reader.check_frame, frames) if packet is not None]
    pings, datagrams, segments = (
        [packet for packet in packets if packet.protocol == protocol]
        for protocol in (pcap_reader.ICMP, pcap_reader.UDP, pcap_reader.TCP)
    )
    assert [(b"\xc0\xff\xee" * 72)[16:]] * 6 == [ping.payload[16:] for ping in pings]
    assert udp_sent(20) == [each.payload for each in datagrams if each.destination_port == ECHO_PORT]
    assert udp_sent(20) == [each.payload for each in datagrams if each.source_port == ECHO_PORT]
    assert pattern(100_000) == pcap_reader.stream(segments, source_port=80)[-100_000:]
    assert 1514 == max(map(len, frames))


def test_tcpdump_at_both_ends_shows_the_same_frames(lab: RealLab, program: Callable[[str], str]) -> None:
    """Jumbo frames that one namespace's kernel sends arrive at the other's byte for byte, and the answers too."""
    program("tcpdump")
    ours: list[bytes] = []
    theirs: list[bytes] = []
    at_one, at_two = (functools.partial(lab.start_inside, guest) for guest in ("one", "two"))
    with captured(at_one, "eth1", ours), captured(at_two, "eth1", theirs):
        lab.inside("one", "ping", "-n", "-c", "5", "-i", "0.02", "-W", "10", "-s", "8972", TWO_JUMBO)
        lab.inside("one", *SEND_MARKER, TWO_JUMBO)

    sent, received = ([frame for frame in frames if len(frame) == 9014] for frames in (ours, theirs))
    assert 10 == len([packet for packet in map(pcap_reader.check_frame, sent) if packet is not None])
    assert sent == received


# --- helpers -------------------------------------------------------------------------------------------------------


def udp_sent(count: int) -> list[bytes]:
    """What ``socket_programs.UDP_SENDER`` sends."""
    source = random.Random(count)  # noqa: S311 -- test data
    return [source.randbytes(source.randrange(1473)) for _ in range(count)]


def pattern(length: int) -> bytes:
    """What a small IP host answers to ``/bytes/N``."""
    return (bytes(range(256)) * (length // 256 + 1))[:length]


def counted_drops(lab: RealLab, machine: Machine) -> int:
    """Drops counted so far: by the switch's ports, and by sockets and interfaces of all three namespaces."""
    look = ("sh", "-c", "ip -s -j link; tc -s -j qdisc; grep ^Udp: /proc/net/snmp")
    said = [machine.run(*look), lab.within("one", *look), lab.within("two", *look)]
    return sum(lab.counted("drop").values()) + sum(map(kernel_drops, said))


def kernel_drops(said: str) -> int:
    """Sum the drops of a namespace's interfaces, their queues, and its UDP sockets."""
    links, queues, names, values = said.strip().splitlines()
    sockets = dict(zip(names.split(), values.split(), strict=True))
    return int(
        sum(link["stats64"][way]["dropped"] for link in json.loads(links) for way in ("rx", "tx"))
        + sum(queue["drops"] for queue in json.loads(queues))
        + int(sockets["InErrors"])
    )

"""`vbnet capture` and `vbnet trace` as processes beside a real host: what is in the files, and what ends it."""

import json
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support import pcap_reader, pcapng_reader
from tests.support.lab import BROADCAST, Lab, Net, Station
from tests.support.pcapng_reader import INBOUND, OUTBOUND
from tests.support.programs import COUNTERS
from tests.support.real_lab import real_lab
from tests.support.vbnet_program import COMMAND
from tests.support.waiting import PATIENCE, eventually
from vbnet._native import CAPTURE_COUNTERS, read_counters
from vbnet.bus.capture import CaptureLink
from vbnet.errors import UsageError

pytestmark = pytest.mark.usefixtures("no_leaked_processes")

Capture = Callable[..., "Running"]


class Running:
    """One of the commands, in a process; a context manager that ends it whatever happened."""

    def __init__(self, lab: Lab, *words: str, before: Sequence[str] = (), **how: Any) -> None:
        environment = {**os.environ, "VBNET_RUN_DIR": str(lab.run_dir.path.parent), "VBNET_NODE": "host"}
        self.process = subprocess.Popen(
            [*before, *COMMAND, *words],
            env=environment,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.kill()
        self.process.communicate()

    def started(self) -> Self:
        """Return once it captures."""
        assert self.process.stderr is not None
        line = self.process.stderr.readline().decode()
        assert line.startswith(("capturing ", "following ")), line
        return self

    def ended(self, code: int = 0) -> tuple[bytes, str]:
        """Wait until it has ended by itself; give what it printed."""
        out, err = self.process.communicate(timeout=PATIENCE)
        assert code == self.process.returncode, err.decode()
        return out, err.decode()

    def interrupted(self, code: int = 0) -> tuple[bytes, str]:
        """End it as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        return self.ended(code)


@pytest.fixture
def start(lab: Lab) -> Iterator[Capture]:
    """Give the test a way to start commands that are ended with it."""
    with ExitStack() as stack:
        yield lambda *words, **how: stack.enter_context(Running(lab, *words, **how))


@pytest.fixture
def disk(tmp_path: Path, program: Callable[[str], str]) -> Callable[[int], list[str]]:
    """Return what puts a command behind a small disk of its own, of so many bytes, at the folder ``disk``.

    The disk is a tmpfs in a mount namespace of the command's own, gone with it; an open descriptor keeps it longer.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    alone = [program("unshare"), *as_root, "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=%d tmpfs '{folder}' && exec \"$@\""
    attempt = subprocess.run([*alone, mount % 4096, "sh", "true"], capture_output=True, text=True, check=False)
    if attempt.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {attempt.stderr.strip()}")
    return lambda size: [*alone, mount % size, "sh"]


def captures(lab: Lab) -> list[dict[str, str]]:
    """Labels of every capture that the host counts for."""
    found = read_counters(lab.run_dir.counters / COUNTERS)
    texts = [labels for kind, labels, _, _ in found if kind == "capture"]
    return [dict(part.split("=", 1) for part in text.split(",")) for text in texts]


def pair(net: Net) -> tuple[Station, Station]:
    """Two stations that know each other."""
    return net.station(), net.station()


def talk(sender: Station, receiver: Station, count: int, length: int = 100) -> list[bytes]:
    """Send frames one by one, each received before the next."""
    frames = [sender.to(receiver, length, number) for number in range(count)]
    for frame in frames:
        sender.nic.send([frame])
        assert [frame] == receiver.gather(1)
    return frames


def test_a_file_has_every_frame_at_both_ports_with_direction_and_time(
    net: Net, start: Capture, tmp_path: Path, program: Callable[[str], str]
) -> None:
    """What was sent is there twice, out of one guest and into the other; tcpdump counts the same frames."""
    one, two = pair(net)
    file = tmp_path / "a.pcapng"
    before_ns = time.time_ns()
    running = start("capture", f"{one.port},{two.port}", "-w", str(file)).started()

    frames = talk(one, two, 20)
    _, said = running.interrupted()

    found = pcapng_reader.read(file)
    assert [one.port, two.port] == list(found.interfaces)
    assert f"guest {one.guest.name}, switch {net.switch}, kind venet" == found.interfaces[one.port][3].decode()
    expected = [(port, way, frame) for frame in frames for port, way in ((one.port, OUTBOUND), (two.port, INBOUND))]
    assert expected == [(packet.port, packet.direction, packet.frame) for packet in found.packets]
    times = [packet.time_ns for packet in found.packets]
    assert sorted(times) == times
    assert before_ns <= times[0] <= times[-1] <= time.time_ns()
    assert [(20, 0), (20, 0)] == [(counts[4], counts[5]) for counts in found.statistics.values()]
    assert "40 frames captured, 0 not wanted by the filter, 0 lost" in said
    read = subprocess.run([program("tcpdump"), "-nr", file], capture_output=True, text=True, check=True)
    assert 40 == read.stdout.count("ethertype Unknown (0x88b5), length 100")


def test_a_guest_stands_for_all_its_ports_and_a_filter_for_some_frames(
    net: Net, start: Capture, tmp_path: Path
) -> None:
    """Frames that are not wanted are counted, and those that are may be cut."""
    one, two = pair(net)
    file = tmp_path / "a.pcapng"
    running = start(
        "capture", one.guest.name, "ether[21] = 3", "-w", str(file), "--snaplen", "20", "--format", "json"
    ).started()

    frames = talk(one, two, 5)
    out, _ = running.interrupted()

    [packet] = pcapng_reader.read(file).packets
    assert (one.port, frames[3][:20], 100) == (packet.port, packet.frame, packet.length)
    summary = json.loads(out)
    assert [{"port": one.port, "captured": 1, "filtered": 4, "lost": 0, "is_away": False}] == summary["ports"]
    assert [str(file)] == summary["files"]


def test_a_dropped_frame_is_there_with_its_reason(net: Net, start: Capture, tmp_path: Path) -> None:
    """Where it ended: at the port whose guest had no room, and at the sender's for what was not let out."""
    one, two = pair(net)
    file = tmp_path / "a.pcapng"
    running = start("capture", f"{one.port},{two.port}", "-w", str(file)).started()
    slots = two.nic.layout.rx_slots
    forged = two.to(one, 64)

    frames = [one.to(two, 64, number) for number in range(slots + 3)]
    for frame in frames:
        one.nic.send([frame], PATIENCE)
    one.nic.send([forged])
    one.wait_taken(len(frames) + 1)
    running.interrupted()

    packets = pcapng_reader.read(file).packets
    assert [(two.port, INBOUND, "dropped: receive_drop_no_room")] * 3 + [
        (one.port, OUTBOUND, "dropped: transmit_drop_forged_source")
    ] == [(packet.port, packet.direction, packet.comment) for packet in packets if packet.comment]
    assert forged == packets[-1].frame


def test_without_a_file_each_frame_is_a_line(net: Net, start: Capture) -> None:
    """In JSON with the frame's bytes; after so many frames it ends by itself."""
    one, two = pair(net)
    running = start("capture", two.port, "--count", "2", "--format", "json").started()

    frames = talk(one, two, 3)

    lines = [json.loads(line) for line in running.ended()[0].splitlines()]
    assert [frame.hex() for frame in frames[:2]] == [line["frame"] for line in lines]
    assert [(two.port, "receive", None, 100)] * 2 == [
        (line["port"], line["direction"], line["dropped"], line["length_bytes"]) for line in lines
    ]


def test_a_killed_capture_is_detached_and_its_port_goes_on(net: Net, start: Capture, tmp_path: Path) -> None:
    """The kernel tells the host; nothing of the capture is left there."""
    one, two = pair(net)
    running = start("capture", f"{one.port},{two.port}", "-w", str(tmp_path / "a")).started()
    assert {one.port, two.port} == {capture["device"] for capture in captures(net.lab)}

    running.process.kill()
    running.process.wait()

    eventually(lambda: not captures(net.lab), "the captures are gone")
    talk(one, two, 3)


def test_a_stopped_capture_slows_nobody_and_counts_what_it_lost(net: Net, start: Capture, tmp_path: Path) -> None:
    """While it cannot run, frames pass; the ring takes what it holds, and the rest is lost to the capture."""
    one, two = pair(net)
    file = tmp_path / "a.pcapng"
    running = start("capture", one.port, "-w", str(file), "--ring", "256KiB").started()
    running.process.send_signal(signal.SIGSTOP)

    frames = talk(one, two, 300, length=1500)
    running.process.send_signal(signal.SIGCONT)
    _, said = running.interrupted()

    found = pcapng_reader.read(file)
    lost = found.statistics[one.port][5]
    assert frames[: len(found.packets)] == [packet.frame for packet in found.packets]
    assert 300 == len(found.packets) + lost
    assert lost > 0
    assert f"{lost} lost because the capture was full" in said


def test_a_full_disk_ends_it_with_a_file_that_is_whole(net: Net, start: Capture, tmp_path: Path) -> None:
    """Said with the path, exit code 4; the guests do not notice."""
    one, two = pair(net)
    file = tmp_path / "a.pcapng"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    running = start("capture", one.port, "-w", str(file), preexec_fn=limit).started()
    frames = talk(one, two, 10, length=1000)

    _, said = running.ended(4)
    packets = pcapng_reader.read(file).packets
    assert 4 == len(packets)
    assert frames[:4] == [packet.frame for packet in packets]
    assert f"{file} cannot be written: File too large; its first" in said


def test_a_file_system_that_is_full_costs_the_port_nothing_and_every_frame_is_accounted_for(
    net: Net, start: Capture, tmp_path: Path, disk: Callable[[int], list[str]]
) -> None:
    """Frames are in the file, or said to be lost or not written; guests get all. One message, exit code 4."""
    one, two = pair(net)
    file = tmp_path / "disk" / "a.pcapng"
    running = start("capture", one.port, "-w", str(file), "--ring", "256KiB", before=disk(64 << 10)).started()
    place = os.open(f"/proc/{running.process.pid}/root{file.parent}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    running.process.send_signal(signal.SIGSTOP)

    frames = talk(one, two, 300, length=1500)
    running.process.send_signal(signal.SIGCONT)
    _, said = running.ended(4)
    packets = pcapng_reader.read(Path(f"/proc/self/fd/{place}/a.pcapng")).packets
    os.close(place)

    assert 0 < len(packets) < 64
    assert frames[: len(packets)] == [packet.frame for packet in packets]
    summary, refusal = said.splitlines()
    told = re.fullmatch(
        r"(\d+) frames captured, 0 not wanted by the filter, (\d+) lost because the capture was full, "
        r"(\d+) more not written",
        summary,
    )
    assert told is not None, said
    captured, lost, unwritten = map(int, told.groups())
    assert len(packets) == captured
    assert min(lost, unwritten) > 0
    assert 300 == captured + lost + unwritten
    assert f"{file} cannot be written: No space left on device; its first " in refusal


def test_a_reader_that_ends_is_said(net: Net, start: Capture) -> None:
    """Exit code 7; what it read until then is whole."""
    one, two = pair(net)
    running = start("capture", one.port, "-w", "-").started()
    talk(one, two, 1)
    assert running.process.stdout is not None
    read = os.read(running.process.stdout.fileno(), 1 << 16)

    running.process.stdout.close()
    running.process.stdout = None

    assert "whoever read the capture has ended" in running.ended(7)[1]
    assert [one.port] == list(pcapng_reader.parse(read).interfaces)


def test_files_rotate_and_only_the_last_ones_stay(net: Net, start: Capture, tmp_path: Path) -> None:
    """Each can be read alone, and together they have the last frames in order."""
    one, two = pair(net)
    running = start(
        "capture", one.port, "-w", str(tmp_path / "a.pcapng"), "--rotate", "2kB", "--files", "2", "--count", "12"
    ).started()

    frames = talk(one, two, 12, length=1000)
    running.ended()

    files = sorted(tmp_path.iterdir())
    found = [packet.frame for file in files for packet in pcapng_reader.read(file).packets]
    assert 2 == len(files)
    assert frames[-len(found) :] == found


def test_a_capture_goes_on_when_its_guest_binds_anew(net: Net, start: Capture, tmp_path: Path) -> None:
    """The port is another one of the same name; what passed before and after is in one file."""
    name, peer = net.plug_nic(), net.station()
    first = Station(net, net.guest(name))
    file = tmp_path / "a.pcapng"
    running = start("capture", first.port, "-w", str(file)).started()

    before = talk(first, peer, 2)
    first.guest.close()
    second = Station(net, net.guest(name))
    after = talk(second, peer, 2)
    running.interrupted()

    assert before + after == [p.frame for p in pcapng_reader.read(file).packets if p.direction == OUTBOUND]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("PORT udp(", (2, "does not compile")),
        ("PORT -w THERE", (5, "is there already and was not touched")),
        ("PORT --files 3", (2, "say --rotate too")),
        ("PORT --force", (2, "name one with -w")),
        ("PORT --for soon", (2, "a duration such as")),
        ("PORTS", (3, "did you mean `PORT`?")),
        ("PORT --ring 16MB --for 0", (2, "more than 0")),
        ("PORT --ring 4kB", (2, "a capture ring has")),
    ],
)
def test_what_cannot_be_is_refused_in_one_helpful_line(
    net: Net, start: Capture, tmp_path: Path, words: str, expected: tuple[int, str]
) -> None:
    """Nothing is captured, and no file is touched."""
    station = net.station()
    there = tmp_path / "there.pcapng"
    there.write_text("mine")
    names = {"PORTS": f"{station.port}s", "PORT": station.port, "THERE": str(there)}

    code, said = expected
    _, message = start("capture", *(names.get(word, word) for word in words.split())).ended(code)

    assert said.replace("PORT", station.port) in message
    assert message.count("\n") <= 2
    assert "mine" == there.read_text()


def test_a_forged_program_is_refused_by_the_host(net: Net) -> None:
    """Whoever sends it instead of what libpcap compiled hears which instruction is wrong."""
    station = net.station()
    forged = bytes.fromhex("05000000ffffffff 0600000001000000")

    with (
        CaptureLink(net.lab.run_dir) as link,
        pytest.raises(UsageError, match=r"instruction 0 of the filter.*jumps out"),
    ):
        link.capture(station.port, forged)

    assert [] == captures(net.lab)


def test_counters_of_a_capture_are_seen_from_outside(net: Net) -> None:
    """Under its port's name, by the names the native side was built with."""
    one, two = pair(net)
    with CaptureLink(net.lab.run_dir) as link:
        link.capture(one.port)
        talk(one, two, 3)

        def counted() -> dict[str, int]:
            [values] = [
                values for kind, _, _, values in read_counters(net.lab.run_dir.counters / COUNTERS) if kind == "capture"
            ]
            return dict(zip(CAPTURE_COUNTERS, values, strict=True))

        eventually(lambda: counted()["captured_frames"] == 3, "three frames counted")
        assert 300 == counted()["captured_bytes"]


def test_a_host_that_ends_leaves_a_whole_file(own_lab: Lab, tmp_path: Path) -> None:
    """Exit code 7, and the frames from before."""
    one, two = pair(Net(own_lab))
    file = tmp_path / "a.pcapng"
    with Running(own_lab, "capture", one.port, "-w", str(file)) as running:
        running.started()
        frames = talk(one, two, 3)

        own_lab.host.kill()

        assert "the host node ended" in running.ended(7)[1]
    assert frames == [packet.frame for packet in pcapng_reader.read(file).packets]
    one.guest.close()
    two.guest.close()


def test_a_trace_tells_the_stages_of_a_frame(net: Net, start: Capture) -> None:
    """One receiver: taken, looked up, claimed, copied, published, and the doorbell; two: the last four of each."""
    one, two = pair(net)
    net.station()
    running = start("trace", one.port, "--count", "2", "--format", "json").started()

    talk(one, two, 1)
    one.nic.send([one.to(BROADCAST)])

    single, flooded = (json.loads(line) for line in running.ended()[0].splitlines())
    assert ["taken", "decided", "claimed", "copied", "published"] == [row["stage"] for row in single["stages"]][:5]
    assert single["stages"][5]["stage"] in {"rung", "spared"}
    assert {two.port} == {row["port"] for row in single["stages"][2:]}
    moments = [row["ns"] for row in single["stages"]]
    assert 0 == moments[0]
    assert sorted(moments) == moments
    assert 2 == flooded["stages"][1]["ports"]
    assert 2 + 2 * 4 == len(flooded["stages"])
    assert [True, True] == [single["is_complete"], flooded["is_complete"]]


LAB = """
name: t
switches: {lan: }
guests:
  web: {kind: stack, nics: [{switch: lan, ip: 10.10.0.10/24}]}
  one: {kind: netns, nics: [{switch: lan, ip: 10.10.0.2/24}]}
"""


@pytest.mark.usefixtures("namespaces", "tun_device", "makes_links")
def test_a_ping_is_captured_intact(tmp_path: Path, program: Callable[[str], str]) -> None:
    """Echo requests out of the namespace and answers into it, each whole, as tcpdump sees them too."""
    for name in ("ping", "tcpdump", "nsenter"):
        program(name)
    file = tmp_path / "ping.pcapng"
    with real_lab(LAB, []) as lab:
        capturing = lab.start("capture", "one", "icmp", "-w", str(file), "--count", "6", stderr=subprocess.PIPE)
        assert capturing.stderr is not None
        assert capturing.stderr.readline().startswith("capturing one.eth0")

        lab.within("one", "ping", "-c", "3", "-i", "0.2", "10.10.0.10")
        _, said = capturing.communicate(timeout=PATIENCE)

    assert 0 == capturing.returncode, said
    packets = pcapng_reader.read(file).packets
    intact = [pcap_reader.check_frame(packet.frame) for packet in packets]
    assert [("10.10.0.2", OUTBOUND), ("10.10.0.10", INBOUND)] * 3 == [
        (packet.source, seen.direction) for packet, seen in zip(intact, packets, strict=True) if packet is not None
    ]
    read = subprocess.run([program("tcpdump"), "-nr", file], capture_output=True, text=True, check=True)
    assert (3, 3) == (read.stdout.count("ICMP echo request"), read.stdout.count("ICMP echo reply"))

"""Offloads between real kernels: what one leaves undone, another or the switch does, and every checksum is right.

One lab for all tests: two namespaces that have offloads, one that has none, a small IP host that never has, and an
uplink to the machine around it (a namespace of the test's own). The kernel at the far end counts checksums that are
wrong. Between two further switches stands a guest of the test's own process, which passes long frames on as they are.
"""

from __future__ import annotations

import itertools
import json
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Self

import pytest

from tests.support import socket_programs
from tests.support.machine import LIMIT_S, Machine
from tests.support.real_lab import RealLab, real_lab
from tests.support.waiting import eventually
from vbnet import Guest
from vbnet.bus.operator import SyncOperator
from vbnet.bus.rundir import RunDir
from vbnet.cluster.process import is_alive
from vbnet.devices.venet.driver import VenetDriver
from vbnet.devices.virtio_net.driver import VirtioNetDriver
from vbnet.errors import VbnetError
from vbnet.guestnode.nic import Nic
from vbnet.net.offload import RequestKind

LAB = """
name: t
switches: {lan: , jumbo: , large: , six: , left: , right: }
guests:
  one: {kind: netns, nics: [
    {switch: lan, ip: 10.10.0.2/24}, {switch: jumbo, ip: 10.11.0.2/24, mtu: 9000},
    {switch: large, ip: 10.12.0.2/24, mtu: 65521}, {switch: six, ip: "fd00::2/64"},
    {switch: left, ip: 10.14.0.2/24}]}
  two: {kind: netns, nics: [
    {switch: lan, ip: 10.10.0.3/24}, {switch: jumbo, ip: 10.11.0.3/24, mtu: 9000},
    {switch: large, ip: 10.12.0.3/24, mtu: 65521}, {switch: six, ip: "fd00::3/64"},
    {switch: right, ip: 10.14.0.3/24}]}
  old: {kind: netns, nics: [
    {switch: lan, ip: 10.10.0.4/24, offloads: false}, {switch: six, ip: "fd00::4/64", offloads: false}]}
  web: {kind: stack, nics: [{switch: lan, ip: 10.10.0.10/24}]}
uplinks: [{switch: lan, tap: vbup0, ip: 10.10.0.1/24}]
"""
WEB = "10.10.0.10"
ECHO_PORT = 7
FILE_BYTES = 8_000_000
EVERYTHING = ["checksum", "tso4", "tso6", "ecn", "uso"]

pytestmark = pytest.mark.usefixtures("namespaces", "tun_device", "no_leaked_links")


@pytest.fixture(scope="module")
def machine(program: Callable[[str], str]) -> Iterator[Machine]:
    """A namespace around the lab, which stands for the machine it runs on."""
    for name in ("ip", "nsenter", "ping"):
        program(name)
    with Machine() as made:
        yield made


@pytest.fixture(scope="module")
def lab(machine: Machine) -> Iterator[RealLab]:
    """The lab, up, its IPv6 addresses settled."""
    with real_lab(LAB, machine.prefix) as up:
        processes = up.everybody()

        def are_settled() -> bool:
            return not any("tentative" in up.within(guest, "ip", "-6", "addr") for guest in ("one", "two", "old"))

        eventually(are_settled, "no address is being probed any more")
        yield up
    eventually(lambda: not any(map(is_alive, processes)), "every process of the lab ended")


def bad_checksums(lab: RealLab, guest: str) -> int:
    """Everything a namespace's kernel found with a wrong checksum so far, TCP and UDP, both versions of IP."""
    both = [line.split() for line in lab.within(guest, "cat", "/proc/net/snmp").splitlines()]
    found = 0
    for names, values in zip(both[::2], both[1::2], strict=True):
        if "InCsumErrors" in names:
            found += int(values[names.index("InCsumErrors")])
    sixes = dict(line.split() for line in lab.within(guest, "cat", "/proc/net/snmp6").splitlines())
    return found + int(sixes["Udp6InCsumErrors"])


def send_file(lab: RealLab, sender: str, receiver: str, address: str) -> None:
    """Send a file over TCP from namespace to namespace, and see that it is the same there."""
    with lab.start_inside(receiver, sys.executable, "-c", socket_programs.FILE_RECEIVER, address, "9000") as process:
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
        program = (sys.executable, "-c", socket_programs.FILE_SENDER, address, "9000", str(FILE_BYTES))
        sent = json.loads(lab.within(sender, *program))
        received = json.loads(process.communicate(timeout=LIMIT_S)[0])
    assert FILE_BYTES == sent["bytes"]
    assert sent == received


def grown(before: dict[str, int], after: dict[str, int], port: str) -> dict[str, int]:
    """What a port counted meanwhile, by counter."""
    names = {name.split()[1] for name in after if name.startswith(f"{port} ")}
    return {name: after[f"{port} {name}"] - before.get(f"{port} {name}", 0) for name in names}


def test_ports_say_what_they_can_be_left_with(lab: RealLab) -> None:
    """A TAP with offloads everything, all others nothing."""
    offloads = {row["name"]: row["offloads"] for row in lab.rows("port", "list")}

    assert EVERYTHING == offloads["one.eth0"] == offloads["two.eth3"] == offloads["vbup0"]
    assert [] == offloads["old.eth0"] == offloads["web.eth0"]


@pytest.mark.parametrize(
    ("port", "address"),
    [("eth0", "10.10.0.3"), ("eth1", "10.11.0.3"), ("eth2", "10.12.0.3"), ("eth3", "fd00::3")],
    ids=["1500", "9000", "65521", "ipv6"],
)
def test_a_file_crosses_between_capable_kernels_uncut(lab: RealLab, port: str, address: str) -> None:
    """Far fewer frames than its bytes fill, no checksum touched by the switch, and none wrong."""
    before = lab.counted("")

    send_file(lab, "one", "two", address)

    counted = grown(before, lab.counted(""), f"two.{port}")
    assert counted["receive_offloads"] > 10
    assert counted["receive_frames"] < FILE_BYTES / 5000
    assert {0} == {counted.get(name, 0) for name in ("segmented_frames", "completed_checksums")}
    assert 0 == bad_checksums(lab, "two") == bad_checksums(lab, "one")


@pytest.mark.parametrize(("port", "address"), [("eth0", "10.10.0.4"), ("eth1", "fd00::4")], ids=["ipv4", "ipv6"])
def test_a_file_is_cut_for_a_kernel_without_offloads(lab: RealLab, port: str, address: str) -> None:
    """It gets frames no longer than its MTU, with checksums that it finds right."""
    before = lab.counted("")

    send_file(lab, "one", "old", address)

    counted = grown(before, lab.counted(""), f"old.{port}")
    assert counted["segmented_frames"] > 10
    assert counted["receive_frames"] > FILE_BYTES / 1500
    assert {0} == {counted.get(name, 0) for name in ("receive_offloads", "receive_drop_oversize")}
    assert 0 == bad_checksums(lab, "old")


def test_a_kernel_without_offloads_sends_to_one_that_has_them(lab: RealLab) -> None:
    """Frames as on a wire are taken as they are."""
    before = lab.counted("")

    send_file(lab, "old", "two", "10.10.0.3")

    after = lab.counted("")
    assert 0 == grown(before, after, "old.eth0").get("transmit_offloads", 0)
    assert grown(before, after, "two.eth0")["receive_frames"] > FILE_BYTES / 1500
    assert 0 == bad_checksums(lab, "two")


@pytest.mark.parametrize("where", ["namespace", "uplink"])
def test_a_small_host_gets_segments_with_right_checksums(lab: RealLab, machine: Machine, where: str) -> None:
    """A megabyte to its echo service and back; smoltcp drops what has a wrong checksum."""
    before = lab.counted("")
    command = (sys.executable, "-c", socket_programs.ECHO_CLIENT, WEB, str(ECHO_PORT), "1000000")

    said = json.loads(lab.within("one", *command) if where == "namespace" else machine.run(*command))

    assert {"tcp_is_equal": True, "tcp_rest": 0, "udp_are_equal": [True, True, True]} == said
    counted = grown(before, lab.counted(""), "web.eth0")
    assert counted["segmented_frames"] > 10
    assert counted["completed_checksums"] > 0
    assert 0 == counted.get("receive_drop_oversize", 0)


@pytest.mark.parametrize(
    ("receiver", "address", "how"),
    [
        ("two", "10.10.0.3", "receive_offloads"),
        ("two", "fd00::3", "receive_offloads"),
        ("old", "10.10.0.4", "segmented_frames"),
        ("old", "fd00::4", "segmented_frames"),
    ],
    ids=["whole, IPv4", "whole, IPv6", "cut, IPv4", "cut, IPv6"],
)
def test_datagrams_sent_together_arrive_one_by_one(lab: RealLab, receiver: str, address: str, how: str) -> None:
    """UDP_SEGMENT: forty datagrams in one send, the last shorter, arrive as forty with their bytes."""
    before = lab.counted(how)
    program = socket_programs.UDP_SEGMENTS_RECEIVER
    with lab.start_inside(receiver, sys.executable, "-c", program, address, "9001", "40") as process:
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
        program = socket_programs.UDP_SEGMENTS_SENDER
        sent = json.loads(lab.within("one", sys.executable, "-c", program, address, "9001", "40", "1200"))
        received = json.loads(process.communicate(timeout=LIMIT_S)[0])

    assert {"sent": 40 * 1200 - 1} == sent
    assert {"lengths": [1200] * 39 + [1199], "first": list(range(40))} == received
    assert sum(lab.counted(how).values()) > sum(before.values())
    assert 0 == bad_checksums(lab, receiver)


class Relay:
    """A guest between ``left`` and ``right`` that is granted everything and passes on what comes; a context manager.

    Every so many frames of a connection that can be told of congestion (ECT) it tells of some.

    Attributes:
        long: frames longer than the MTU that it passed on. answered: of those, with a request that has ECN.
    """

    MARK_EVERY = 40

    def __init__(self, lab: RealLab, model: str) -> None:
        self._place = RunDir(lab.folder)
        self._model = model
        self._stack = ExitStack()
        self._is_over = threading.Event()
        self._errors: list[VbnetError] = []
        self._ect = itertools.count(1)
        self.long = self.answered = 0

    def __enter__(self) -> Self:
        operator = self._stack.enter_context(SyncOperator(self._place, deadline_s=LIMIT_S))
        operator.bus_create("relay")
        self._stack.callback(operator.bus_delete, "relay", force=True)
        for side in ("left", "right"):
            operator.device_create(f"relay.{side}", self._model, {"switch": side})
            self._stack.callback(operator.device_delete, f"relay.{side}", force=True)
            operator.device_plug(f"relay.{side}", "relay")
        guest = Guest("relay", "relay", address=self._place, ram_bytes=16 << 20, deadline_s=LIMIT_S)
        self._stack.callback(guest.close)
        guest.register(VenetDriver(offloads=True))
        guest.register(VirtioNetDriver(offloads=True))
        nics = [guest.nic(side, LIMIT_S) for side in ("left", "right")]
        for nic, other in (nics, nics[::-1]):
            thread = threading.Thread(target=self._pass_on, args=(nic, other))
            thread.start()
            self._stack.callback(thread.join)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._is_over.set()
        self._stack.close()
        assert [] == self._errors

    def _pass_on(self, nic: Nic, other: Nic) -> None:
        try:
            while not self._is_over.is_set():
                for frame, request in nic.recv_requests(64, 0.05):
                    self.long += len(frame) > 1518
                    self.answered += bool(request and request[1] & RequestKind.ECN)
                    assert other.send_pieces([self._marked(frame)], request or None, LIMIT_S)
        except VbnetError as error:
            self._errors.append(error)

    def _marked(self, frame: bytes) -> bytes:
        """The frame, now and then with the mark that says that it met congestion."""
        is_ect = frame[12:14] == b"\x08\0" and frame[15] & 3 in {1, 2}
        if not is_ect or next(self._ect) % self.MARK_EVERY:
            return frame
        marked = bytearray(frame)
        marked[15] |= 3
        marked[24:26] = b"\0\0"
        total = sum(struct.unpack(">10H", marked[14:34]))
        total = (total & 0xFFFF) + (total >> 16)
        struct.pack_into(">H", marked, 24, 0xFFFF - ((total & 0xFFFF) + (total >> 16)))
        return bytes(marked)


def counted_by_kernel(lab: RealLab, guest: str, name: str) -> int:
    """One of a namespace's counters of IP."""
    names, values = (
        line.split() for line in lab.within(guest, "cat", "/proc/net/netstat").splitlines() if "IpExt" in line
    )
    return int(values[names.index(name)])


@pytest.mark.parametrize("model", ["venet", "virtio-net"])
def test_a_congested_connection_with_ecn_crosses_a_guest_uncut(lab: RealLab, model: str) -> None:
    """From a kernel through a driver that passes on what is left to be done, to another kernel, and back.

    The receiving kernel finds the marks and no wrong checksum; the sending one answers them, in long frames too.
    """
    for guest in ("one", "two"):
        lab.within(guest, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_ecn")
    before, counts = counted_by_kernel(lab, "two", "InCEPkts"), lab.counted("")
    wrong = bad_checksums(lab, "two") + bad_checksums(lab, "one")

    with Relay(lab, model) as relay:
        send_file(lab, "one", "two", "10.14.0.3")
        after = lab.counted("")
    counted = {name: value - counts.get(name, 0) for name, value in after.items()}

    assert counted_by_kernel(lab, "two", "InCEPkts") > before
    assert relay.long > 10
    assert relay.answered > 0
    assert counted["relay.left receive_offloads"] > 10
    if model == "venet":
        assert counted["relay.left merged_frames"] > 10
    assert counted["two.eth4 receive_offloads"] > 10
    assert 0 == counted.get("two.eth4 segmented_frames", 0) == counted.get("relay.left segmented_frames", 0)
    assert wrong == bad_checksums(lab, "two") + bad_checksums(lab, "one")


def test_a_connection_with_ecn_crosses_uncut_and_cut(lab: RealLab) -> None:
    """Both kernels agree on ECN, and the file arrives at one with offloads and at one without."""
    for guest in ("one", "two", "old"):
        lab.within(guest, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_ecn")

    send_file(lab, "one", "two", "10.10.0.3")
    send_file(lab, "one", "old", "10.10.0.4")

    assert counted_by_kernel(lab, "two", "InECT0Pkts") > 0
    assert 0 == bad_checksums(lab, "two") == bad_checksums(lab, "old")

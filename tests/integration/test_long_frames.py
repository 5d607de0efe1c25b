"""Frames of python guests in several pieces, in several buffers, and with requests: what a driver asks for and gets.

The same programs over each model of network card whose driver asks for offloads.
"""

import struct
from typing import Any

import pytest

from tests.support.lab import Net, Station
from tests.support.waiting import PATIENCE, eventually
from vbnet.devices.venet.driver import VenetDriver
from vbnet.devices.venet.wire import Capability
from vbnet.devices.virtio_net.driver import VirtioNetDriver
from vbnet.errors import UsageError
from vbnet.net.offload import REQUEST, RequestFlag, RequestKind

SEGMENT = 1400
HEADERS = 54


def tcp_frame(sender: Station, receiver: Station, payload: bytes) -> bytes:
    """A packet of TCP over IPv4, its checksum open: the pseudo-header's sum is where it belongs."""
    length = 20 + len(payload)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + length, 1, 0x4000, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    ip = ip[:10] + (0xFFFF - folded(ip)).to_bytes(2, "big") + ip[12:]
    pseudo = folded(ip[12:20] + struct.pack(">HH", 6, length))
    tcp = struct.pack(">HHIIBBHHH", 4660, 80, 1, 2, 0x50, 0x18, 256, pseudo, 0)
    return receiver.mac + sender.mac + b"\x08\0" + ip + tcp + payload


def folded(data: bytes) -> int:
    """The one's-complement sum of 16-bit words."""
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def has_right_checksums(frame: bytes) -> bool:
    """Both checksums of a TCP packet over IPv4 without options."""
    ip, segment = frame[14:34], frame[34:]
    pseudo = ip[12:20] + struct.pack(">HH", 6, len(segment))
    return 0xFFFF == folded(ip) == folded(pseudo + segment + b"\0" * (len(segment) % 2))


def own_memory(station: Station, data: bytes) -> memoryview:
    """Put bytes into the guest's own RAM, where no device has any."""
    device = station.nic._opened.device
    block = device.memory.allocate(len(data))
    view = memoryview(device.ram.view(block.offset, len(data)))
    view[:] = data
    return view


MODELS = {
    "venet": {"kind": "venet"},
    "virtio-net": {"kind": "virtio-net"},
    "virtio-net-mmio": {"kind": "virtio-net", "transport": "mmio"},
    "virtio-net-pci": {"kind": "virtio-net", "transport": "pci"},
}
"""Models whose drivers ask for offloads: how a station gets one."""


@pytest.fixture(params=list(MODELS.values()), ids=list(MODELS))
def model(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One model after the other."""
    found: dict[str, Any] = request.param
    return found


CUT = REQUEST.pack(RequestFlag.NEEDS_CSUM, RequestKind.TCP4, HEADERS, SEGMENT, 34, 16)


@pytest.mark.parametrize("mtu", [1500, 9000, 65535])
def test_long_request_crosses_whole_between_drivers_that_asked_for_it(
    net: Net, model: dict[str, Any], mtu: int
) -> None:
    """64 KiB from the guest's own memory arrive uncut, with what is left to be done, whatever the MTU."""
    sender, receiver = (net.station(wants=True, mtu=mtu, **model) for _ in range(2))
    frame = tcp_frame(sender, receiver, bytes(range(250)) * 260)
    head, payload = frame[:HEADERS], own_memory(sender, frame[HEADERS:])

    assert sender.nic.send_pieces([head, payload[:30000], payload[30000:]], CUT, PATIENCE)

    assert [(frame, CUT)] == receiver.nic.recv_requests(4, PATIENCE)
    eventually(lambda: sender.nic.pending() == 0, "the sender has its memory back")
    assert 1 == sender.counters["transmit_offloads"] == receiver.counters["receive_offloads"]


@pytest.mark.parametrize("other", ["venet", "virtio-net"])
def test_long_request_is_cut_for_a_driver_that_asked_for_nothing(net: Net, model: dict[str, Any], other: str) -> None:
    """Plain frames no longer than the MTU, in order, all checksums right."""
    sender, receiver = net.station(wants=True, **model), net.station(other)
    payload = bytes(range(250)) * 100
    count = -(-len(payload) // SEGMENT)

    assert sender.nic.send_pieces([tcp_frame(sender, receiver, payload)], CUT, PATIENCE)

    frames = receiver.gather(count)
    assert payload == b"".join(frame[HEADERS:] for frame in frames)
    assert all(has_right_checksums(frame) and len(frame) <= HEADERS + SEGMENT for frame in frames)
    assert 1 == receiver.counters["segmented_frames"]


@pytest.mark.parametrize(("one", "other"), [("venet", "virtio-net"), ("virtio-net", "venet")])
def test_long_request_crosses_whole_between_models(net: Net, one: str, other: str) -> None:
    """What one model's driver leaves undone, another's gets as it was."""
    sender, receiver = net.station(one, wants=True), net.station(other, wants=True)
    frame = tcp_frame(sender, receiver, bytes(range(250)) * 240)

    assert sender.nic.send_pieces([frame[:HEADERS], frame[HEADERS:]], CUT, PATIENCE)

    assert [(frame, CUT)] == receiver.nic.recv_requests(4, PATIENCE)
    assert 1 == receiver.counters["receive_offloads"]


def test_plain_driver_and_asking_driver_exchange_plain_frames(net: Net, model: dict[str, Any]) -> None:
    """``send`` and ``recv`` are what they were, on both ends."""
    asking, plain = net.station(wants=True, **model), net.station()

    asking.nic.send([asking.to(plain, 1000, 1)])
    plain.nic.send([plain.to(asking, 1000, 2)])

    assert [asking.to(plain, 1000, 1)] == plain.gather(1)
    assert [(plain.to(asking, 1000, 2), b"")] == asking.nic.recv_requests(4, PATIENCE)


def test_port_says_what_its_driver_can_be_left_with(net: Net) -> None:
    """As of a TAP: the names of what was granted for frames to the guest."""
    some = net.station(wants=Capability.CSUM | Capability.TSO4 | Capability.SG)
    ports = net.lab.ports()

    assert ["checksum", "tso4"] == ports[some.port]["offloads"]
    assert ["checksum", "tso4"] == some.nic.grant.takes == some.nic.grant.gives


def test_offloads_are_asked_for_by_name(net: Net, model: dict[str, Any]) -> None:
    """Those and no others; a name that there is not is refused."""
    some = net.station(wants=("checksum", "tso6", "ecn"), **model)

    assert ["checksum", "tso6", "ecn"] == some.nic.grant.takes == some.nic.grant.gives
    assert ["checksum", "tso6", "ecn"] == net.lab.ports()[some.port]["offloads"]
    for driver in (VenetDriver, VirtioNetDriver):
        with pytest.raises(UsageError, match="no offload 'tso5'"):
            driver(offloads=["tso4", "tso5"])


def test_card_that_grants_nothing_leaves_the_driver_whole_frames(net: Net, model: dict[str, Any]) -> None:
    """A driver that asks in vain goes on without: its pieces arrive, requests are refused."""
    sender, receiver = net.station(wants=True, offloads=0, **model), net.station()
    frame = sender.to(receiver, 500, 3)

    assert sender.nic.send_pieces([frame[:100], own_memory(sender, frame[100:])], None, PATIENCE)

    assert [frame] == receiver.gather(1)
    assert [] == sender.nic.grant.takes == net.lab.ports()[sender.port]["offloads"]
    with pytest.raises(UsageError, match="no requests"):
        sender.nic.send_pieces([frame], CUT)


@pytest.mark.parametrize("kind", ["venet", "virtio-net"])
def test_driver_that_asked_for_nothing_puts_pieces_together(net: Net, kind: str) -> None:
    """A plain driver sends a frame in pieces and tells that nothing is left to be done with what it gets."""
    sender, receiver = net.station(kind), net.station()
    frame = sender.to(receiver, 500, 3)

    assert sender.nic.send_pieces([frame[:100], own_memory(sender, frame[100:])], None, PATIENCE)
    receiver.nic.send([receiver.to(sender, 80, 4)])

    assert [frame] == receiver.gather(1)
    assert [(receiver.to(sender, 80, 4), b"")] == sender.nic.recv_requests(4, PATIENCE)


def test_what_cannot_be_sent_is_refused_before_anything_is(net: Net, model: dict[str, Any]) -> None:
    """Requests of another length, requests that were not granted, frames too long or of too many pieces; and views."""
    asking, plain = net.station(wants=True, **model), net.station(**model)
    frame = tcp_frame(asking, plain, bytes(3000))
    for nic, pieces, request in (
        (asking.nic, [frame], CUT[:-1]),
        (asking.nic, [frame], None),
        (asking.nic, [frame[:13]], CUT),
        (asking.nic, [bytes(2)] * 65, None),
        (asking.nic, [bytes(65554)], CUT),
        (plain.nic, [frame[:1000]], CUT),
    ):
        with pytest.raises(UsageError):
            nic.send_pieces(pieces, request)
    with pytest.raises(UsageError, match="views"):
        asking.nic.recv_views(1, 0)

    asking.nic.send([asking.to(plain)])
    assert [asking.to(plain)] == plain.gather(1)

"""What a hostile guest says on the bus sockets: refused with a reason, counted, and nobody else notices.

The peer here is made from the byte tables, shares no code with the bus, and runs against a host node process.
"""

import contextlib
import os
import select
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.support.waiting import PATIENCE, eventually
from vbnet.bus import admin
from vbnet.bus.operator import SyncOperator
from vbnet.sharedmem import Ram
from vbnet.testing.processes import HostProcess, count_fds
from vbnet.testing.wire import RawPeer, pack

RAM_BYTES = 16 * 4096
ENOSPC = 'vbnet_bus_refused_total{code="ENOSPC"}'
EPROTO = 'vbnet_bus_refused_total{code="EPROTO"}'
DROPPED = "vbnet_bus_refusal_drop_total"
EXPORTS_WAITING = 256
PEER_FDS = 2
"""What an attach connection costs the host: its socket and a pidfd."""


@pytest.fixture(scope="module")
def host(lab_root: Path) -> Iterator[HostProcess]:
    """A host node process with an echo device on the bus ``lan``, which outlives every attack of this module."""
    with HostProcess(lab_root) as process:
        with SyncOperator(process.run_dir) as operator:
            operator.bus_create("lan")
            operator.bus_create("other")
            operator.device_create("e", "echo")
            operator.device_plug("e", "lan")
        yield process


@pytest.fixture
def peer(host: HostProcess) -> Iterator[RawPeer]:
    """A process that may say anything."""
    with RawPeer(host.run_dir.path) as raw:
        yield raw


@pytest.fixture
def operating(host: HostProcess) -> Iterator[RawPeer]:
    """A process that may say anything at the operators' socket."""
    with RawPeer(host.run_dir.path, "operate.sock") as raw:
        yield raw


@pytest.fixture
def bystander(host: HostProcess) -> Iterator[RawPeer]:
    """A lawful guest with an open device, which must notice nothing; checked when the test is over."""
    with RawPeer(host.run_dir.path) as raw:
        raw.join(1, "bystander", "lan")
        handle = raw.ask(1, 3, [raw.OPEN, 1, 1])[1]
        yield raw
        assert [raw.ANSWER, b"fine"] == raw.ask(1, 4, [raw.CALL, handle, 0, b"fine", 0])
    eventually(lambda: "bystander" not in guests(host), "the bystander has left")


def unique() -> str:
    """A guest name nobody has."""
    return f"g-{uuid.uuid4()}"


def counters(host: HostProcess) -> dict[str, int]:
    """What the host counted."""
    with SyncOperator(host.run_dir) as operator:
        return operator.node_info().counters


def refusals(host: HostProcess, code: str) -> int:
    """How often the host refused with this code."""
    return counters(host).get(f'vbnet_bus_refused_total{{code="{code}"}}', 0)


HELLOS: list[tuple[str, list[Any], str]] = [
    ("other protocol", [1, "g", "lan", 1, "raw", 2, 1], "EPROTO"),
    ("other memory layout", [1, "g", "lan", 1, "raw", 1, 2], "EPROTO"),
    ("no such bus", [1, "g", "nowhere", 1, "raw", 1, 1], "ENOENT"),
    ("name taken", [1, "bystander", "lan", 1, "raw", 1, 1], "EEXIST"),
    ("malformed name", [1, "../g", "lan", 1, "raw", 1, 1], "EPROTO"),
    ("too few fields", [1, "g"], "EPROTO"),
    ("too many fields", [1, "g", "lan", 1, "raw", 1, 1, 1], "EPROTO"),
    ("unknown verb", [12], "EPROTO"),
    ("verb of the host", [64, b"", "", 0, "lan"], "EPROTO"),
    ("ready before hello", [2], "ENOENT"),
    ("call before hello", [5, 1, 0, b"", 0], "ENOENT"),
]


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(("body", "code"), [case[1:] for case in HELLOS], ids=[case[0] for case in HELLOS])
def test_a_wrong_beginning_is_refused_and_counted(host: HostProcess, peer: RawPeer, body: list[Any], code: str) -> None:
    """A process without a session learns what it did wrong."""
    before = refusals(host, code)

    reply = peer.ask(1, 9, body)

    assert (peer.REFUSED, code, before + 1) == (reply[0], reply[1], refusals(host, code))


@pytest.mark.usefixtures("bystander")
def test_another_version_is_refused_under_its_own_number(peer: RawPeer) -> None:
    """Even a message nobody can read is answered to the request it was."""
    peer.send(5, 17, ["from the future"], version=9)

    message = peer.receive()

    assert ([1, 5, 17], "EPROTO") == (message[:3], message[3][1])


@pytest.mark.usefixtures("bystander")
def test_a_second_hello_on_one_session_is_refused_and_the_first_lives(peer: RawPeer) -> None:
    """EEXIST, and the session goes on as it was."""
    peer.join(1, unique(), "lan")

    reply = peer.hello(1, unique(), "lan")

    assert [peer.REFUSED, "EEXIST"] == reply[:2]
    assert 2 == len(peer.ask(1, 5, [peer.LIST])[1])


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(
    ("verb", "handle"),
    [(RawPeer.CALL, 0), (RawPeer.CALL, 1 << 32), (RawPeer.CLOSE, 7), (RawPeer.SHM, 1 << 40), (RawPeer.SIGNAL, 1 << 33)],
)
def test_a_forged_handle_is_refused(peer: RawPeer, verb: int, handle: int) -> None:
    """No number made up finds anything."""
    peer.join(1, unique(), "lan")
    fields: dict[int, list[object]] = {RawPeer.CALL: [0, b"", 0], RawPeer.SHM: [0, 4096, 64, 0, -1, 0, 1]}
    rest = fields.get(verb, [])

    reply = peer.ask(1, 9, [verb, handle, *rest])

    assert [peer.REFUSED, "ENOENT"] == reply[:2]


def test_a_handle_of_another_guest_is_forged(host: HostProcess, peer: RawPeer, bystander: RawPeer) -> None:
    """Handles are looked up in the session's own table, even between guests of one process."""
    del host, bystander
    peer.join(1, unique(), "lan")
    peer.join(2, unique(), "lan")
    handle = peer.ask(1, 8, [peer.OPEN, 1, 1])[1]

    reply = peer.ask(2, 9, [peer.CALL, handle, 0, b"", 0])

    assert [peer.REFUSED, "ENOENT"] == reply[:2]


@pytest.mark.usefixtures("bystander")
def test_an_oversized_message_is_refused_whole(peer: RawPeer) -> None:
    """Longer than the limit but bearable: the sender is told."""
    peer.join(1, unique(), "lan")

    peer.bus.send(pack([1, 1, 9, [peer.CALL, 1, 0, bytes(70_000), 0]]))

    assert "EMSGSIZE" == peer.receive()[3][1]


@pytest.mark.usefixtures("bystander")
def test_an_enormous_message_costs_its_sender_the_connection(host: HostProcess, peer: RawPeer) -> None:
    """Beyond the hard limit nothing is read at all; the process is found gone, and its memory use stays its own."""
    name = unique()
    peer.join(1, name, "lan")

    peer.bus.send(bytes(4 << 20))

    with SyncOperator(host.run_dir) as operator:
        operator.device_create("probe", "echo")
        operator.device_plug("probe", "lan")
        assert b"" == peer.attach_socket.recv(1)
        names = {guest.name for guest in operator.guest_list()}
        operator.device_delete("probe", force=True)
    assert (True, False) == ("bystander" in names, name in names)


@pytest.mark.usefixtures("bystander")
def test_many_parts_are_thrown_away_and_refused(peer: RawPeer) -> None:
    """A message is one part."""
    peer.bus.send_multipart([b"x"] * 500)

    assert "EPROTO" == peer.receive()[3][1]


@pytest.mark.usefixtures("bystander")
def test_refusals_themselves_are_bounded(host: HostProcess, peer: RawPeer) -> None:
    """A flood of nonsense is counted whole and answered in part."""
    peer.join(1, unique(), "lan")
    before = counters(host)

    for _ in range(1000):
        peer.send(1, 9, [99])
    while refusals(host, "EPROTO") < before.get(EPROTO, 0) + 1000:
        pass

    assert counters(host)[DROPPED] - before.get(DROPPED, 0) > 800


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("verb", [[3, 4096, 1], [5, 1, 0, b"", 0]])
def test_requests_are_refused_by_name_however_many(peer: RawPeer, verb: list[Any]) -> None:
    """A guest that asks again and again, as one does that waits for another, is never left without an answer."""
    peer.join(1, unique(), "lan")

    answers = [peer.ask(1, 9, verb)[:2] for _ in range(300)]

    assert [[peer.REFUSED, "ENOENT"]] * 300 == answers


def test_strangers_cannot_use_up_what_a_guest_is_told(host: HostProcess, peer: RawPeer, bystander: RawPeer) -> None:
    """The allowance of refusals belongs to each process with a session."""
    before = refusals(host, "EPROTO")

    for _ in range(500):
        peer.send(1, 9, [99])
    while refusals(host, "EPROTO") < before + 500:
        pass

    assert [peer.REFUSED, "EPROTO"] == bystander.ask(1, 9, [99])[:2]


# ---- the attach socket -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("verb", [[2], [3, 1, 1], [5, 1, 0, b"", 0], [11], [8, 0xBF53EEF5, 1]])
def test_nothing_is_done_for_a_session_that_did_not_attach(peer: RawPeer, verb: list[Any]) -> None:
    """Identity first."""
    peer.hello(1, unique(), "lan")

    assert [peer.REFUSED, "EPERM"] == peer.ask(1, 9, verb)[:2]


@pytest.mark.usefixtures("bystander")
def test_a_forged_token_is_refused(peer: RawPeer) -> None:
    """Guessing changes nothing for the session it was meant for."""
    token = peer.hello(1, unique(), "lan")[1]

    peer.packet(1, [1, bytes(32), False])
    refused, _ = peer.receive_packet()
    peer.packet(2, [1, token, False])
    attached, _ = peer.receive_packet()

    assert ([1, 1, [65, "EPERM"]], [1, 2, [64, 1]]) == ([*refused[:2], refused[2][:2]], attached)


@pytest.mark.usefixtures("bystander")
def test_a_token_works_once(peer: RawPeer) -> None:
    """Spent is spent."""
    token = peer.hello(1, unique(), "lan")[1]
    peer.packet(1, [1, token, False])
    peer.receive_packet()

    peer.packet(2, [1, token, False])

    assert "EPERM" == peer.receive_packet()[0][2][1]


@pytest.mark.usefixtures("bystander")
def test_a_token_in_the_hands_of_another_process_is_refused(host: HostProcess, peer: RawPeer) -> None:
    """The kernel says who presents it, and hello said who should."""
    token = peer.hello(1, unique(), "lan", pid=1)[1]

    peer.packet(1, [1, token, False])

    assert "EPERM" == peer.receive_packet()[0][2][1]
    assert 1 == len([name for name in guests(host) if name == "bystander"])


def guests(host: HostProcess) -> list[str]:
    """Names of all guests."""
    with SyncOperator(host.run_dir) as operator:
        return [guest.name for guest in operator.guest_list()]


def _memfd(size: int) -> int:
    fd = os.memfd_create("raw", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("kind", ["unsealed memfd", "empty memfd", "file", "socket", "pipe", "eventfd"])
def test_memory_that_could_change_under_the_host_is_refused(peer: RawPeer, run_root: Path, kind: str) -> None:
    """Only a sealed memfd with a right header is mapped; everything else ends that session alone."""
    fd = {
        "unsealed memfd": lambda: _memfd(RAM_BYTES),
        "empty memfd": lambda: _memfd(0),
        "file": lambda: os.open(run_root / "file", os.O_CREAT | os.O_RDWR),
        "socket": lambda: os.dup(peer.attach_socket.fileno()),
        "pipe": lambda: os.pipe()[0],
        "eventfd": lambda: os.eventfd(0),
    }[kind]()
    token = peer.hello(1, unique(), "lan")[1]

    peer.packet(1, [1, token, True], [fd])
    reply, _ = peer.receive_packet()
    os.close(fd)

    assert reply[2][0] == 65
    assert reply[2][1] in {"EPROTO", "ENOSPC"}
    assert [peer.REFUSED, "EPIPE"] == peer.receive()[3][:2]


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(("has_ram", "count"), [(True, 0), (True, 2), (False, 1), (True, 200)])
def test_descriptors_that_do_not_belong_are_closed(
    host: HostProcess,
    peer: RawPeer,
    run_root: Path,
    has_ram: bool,
    count: int,
) -> None:
    """Too few, too many, uninvited: refused, and the host keeps none of them."""
    token = peer.hello(1, unique(), "lan")[1]
    path = run_root / "marked"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)

    peer.packet(1, [1, token, has_ram], [fd] * count)
    reply, _ = peer.receive_packet()
    os.close(fd)

    held = [entry for entry in Path(f"/proc/{host.pid}/fd").iterdir() if entry.readlink() == path]
    assert ("EPROTO", []) == (reply[2][1], held)


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("data", [b"\xc1", pack([1, 1, [9]]), pack([2, 1, [1, bytes(32), False]]), b"x" * 8000])
def test_a_malformed_packet_is_refused(peer: RawPeer, data: bytes) -> None:
    """Whatever comes is answered by name."""
    peer.attach_socket.send(data)

    assert "EPROTO" == peer.receive_packet()[0][2][1]


@pytest.mark.usefixtures("bystander")
def test_a_flood_of_malformed_packets_costs_the_process_its_place(host: HostProcess, peer: RawPeer) -> None:
    """After enough of it the host hangs up, and the guest's sessions end."""
    name = unique()
    peer.join(1, name, "lan")

    try:
        for _ in range(200):
            peer.attach_socket.send(b"\xc1")
            peer.receive_packet()
    except (BrokenPipeError, ConnectionResetError):
        pass

    assert [] == [guest for guest in guests(host) if guest == name]


@pytest.mark.usefixtures("bystander")
def test_gifts_for_someone_else_s_session_are_refused(peer: RawPeer) -> None:
    """A process gives to its own sessions only."""
    peer.join(1, unique(), "lan")
    fd = os.eventfd(0)

    peer.packet(7, [2, 99, 1], [fd])

    assert "EPERM" == peer.receive_packet()[0][2][1]
    os.close(fd)


@pytest.mark.usefixtures("bystander")
def test_gifts_are_bounded(peer: RawPeer) -> None:
    """A guest cannot fill the host's descriptor table."""
    peer.join(1, unique(), "lan")
    fd = os.eventfd(0)
    codes = []

    for ticket in range(20):
        peer.packet(ticket + 10, [2, 1, ticket], [fd])
        codes.append(peer.receive_packet()[0][2][0:2])
    os.close(fd)

    assert [[67, 1]] * 16 + [[65, "ENOSPC"]] * 4 == codes


# ---- operators on the operate socket ---------------------------------------------------------------------------------


@pytest.fixture
def desk(host: HostProcess) -> Iterator[SyncOperator]:
    """A lawful operator with a signal ``alarm``, on a host that has driven signals before."""
    with SyncOperator(host.run_dir) as operator:
        operator.signal_create("alarm")
        with SyncOperator(host.run_dir) as other:
            fd = os.eventfd(0)
            other.signal_drive("alarm", fd)
            os.close(fd)
        eventually(lambda: not drives(operator), "the first drive has ended")
        yield operator
        operator.signal_destroy("alarm")


def alarm(desk: SyncOperator) -> dict[str, Any]:
    """The signal as the host lists it."""
    [row] = desk.signal_list()
    return row


def drives(desk: SyncOperator) -> int:
    """By how many eventfds operators raise signals now."""
    return desk.node_info().counters["vbnet_attach_drives"]


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(
    ("body", "count", "code"),
    [
        ([3, "alarm"], 1, "EPROTO"),
        ([3, "alarm"], 200, "EPROTO"),
        ([4, "alarm", False], 0, "EPROTO"),
        ([4, "alarm", True], 2, "EPROTO"),
        ([4, "alarm", False], 1, "EINVAL"),
        ([4, "alarm", True], 1, "EINVAL"),
        ([3, "nobody/alarm"], 0, "ENOENT"),
        ([3, "99999999999999999999999"], 0, "ENOENT"),
        ([3, "\0" * 256], 0, "ENOENT"),
        ([4, "\U0010ffff" * 256, False], 1, "ENOENT"),
        ([3, "x" * 257], 0, "EPROTO"),
        ([4, "alarm", 1], 1, "EPROTO"),
        ([5, "web.eth0", b"", 64, 1 << 18, 0], 1, "EPROTO"),
        ([5, "web.eth0", b"", 64, 1 << 18], 0, "EPROTO"),
        ([5, "web.eth0", bytes(3585), 64, 1 << 18, 0], 0, "EPROTO"),
        ([5, "../web", b"", 64, 1 << 18, 0], 0, "EPROTO"),
        ([5, "web.eth0", b"", -1, 1 << 18, 0], 0, "EPROTO"),
        ([5, "nobody.eth0", b"", 64, 1 << 18, 0], 0, "ENOENT"),
    ],
)
def test_what_an_operator_hands_over_wrongly_is_refused_and_closed(
    desk: SyncOperator, operating: RawPeer, body: list[Any], count: int, code: str
) -> None:
    """Wrong numbers of descriptors, a file for an eventfd, no such signal: nothing changes, and nothing is kept."""
    fd = os.memfd_create(name := unique())

    operating.packet(7, body, [fd] * count)
    reply, fds = operating.receive_packet()
    os.close(fd)

    pid = desk.node_info().pid
    held = [entry for entry in Path(f"/proc/{pid}/fd").iterdir() if name in str(entry.readlink())]
    assert ([1, 7, 65, code], [], []) == ([*reply[:2], *reply[2][:2]], fds, held)
    row = alarm(desk)
    assert ("nowhere", 0, 0) == (row["route"], row["sources"], drives(desk))


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("body", [[3, "alarm"], [4, "alarm", False], [5, "web.eth0", b"", 64, 1 << 18, 0]])
@pytest.mark.parametrize("has_session", [True, False])
def test_nobody_operates_at_the_guests_socket(
    desk: SyncOperator, peer: RawPeer, body: list[Any], has_session: bool
) -> None:
    """Neither a guest, which asks its interrupt controller, nor whoever came there; a session goes on."""
    if has_session:
        peer.join(1, unique(), "lan")
    fd = os.eventfd(0)

    peer.packet(7, body, [fd] * (body[0] == 4))
    reply, _ = peer.receive_packet()
    os.close(fd)

    assert [65, "EPERM"] == reply[2][:2]
    assert not has_session or 2 == len(peer.ask(1, 5, [peer.LIST])[1])
    assert "nowhere" == alarm(desk)["route"]


@pytest.mark.usefixtures("bystander")
def test_a_guest_attaches_at_the_guests_socket_only(peer: RawPeer, operating: RawPeer) -> None:
    """Its token is not spent at the operators'."""
    token = peer.hello(1, unique(), "lan")[1]

    operating.packet(2, [1, token, False])
    refused, _ = operating.receive_packet()
    peer.packet(3, [1, token, False])
    attached, _ = peer.receive_packet()

    assert ([65, "EPERM"], [1, 3, [64, 1]]) == (refused[2][:2], attached)


@pytest.mark.usefixtures("bystander")
def test_drives_of_a_connection_are_bounded_and_end_with_it(
    host: HostProcess, desk: SyncOperator, operating: RawPeer
) -> None:
    """An operator cannot fill the host's descriptor table; when it hangs up, the host has what it had before."""
    operating.ask(1, 9, [operating.LIST])
    before = count_fds(host.pid)
    fd = os.eventfd(0)
    codes = []

    for seq in range(1, 71):
        operating.packet(seq, [4, "alarm", False], [fd])
        codes.append(operating.receive_packet()[0][2][:2])
    os.close(fd)
    held = (drives(desk), alarm(desk)["sources"])
    operating.attach_socket.close()
    eventually(lambda: not drives(desk), "the drives have ended")

    assert ([70] * 64, [[65, "ENOSPC"]] * 6) == ([code for code, _ in codes[:64]], codes[64:])
    assert (64, 64, 0) == (*held, alarm(desk)["sources"])
    assert before - PEER_FDS == count_fds(host.pid)


@pytest.mark.usefixtures("bystander")
def test_a_flood_of_exports_nobody_reads_is_bounded(host: HostProcess, desk: SyncOperator, operating: RawPeer) -> None:
    """Each leads the signal to another eventfd; so many wait and no more, and all are closed in the end."""
    operating.ask(1, 9, [operating.LIST])
    before = count_fds(host.pid)
    refused = desk.node_info().counters.get(ENOSPC, 0)

    def flood() -> bool:
        with contextlib.suppress(BlockingIOError):
            for seq in range(1, 1000):
                operating.attach_socket.send(pack([1, seq, [3, "alarm"]]), socket.MSG_DONTWAIT)
        return desk.node_info().counters.get(ENOSPC, 0) > refused

    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        eventually(flood, "exports are refused")
    most = count_fds(host.pid)
    operating.attach_socket.close()
    desk.signal_route("alarm", nowhere=True)

    assert most - before <= EXPORTS_WAITING + 1
    eventually(lambda: before - PEER_FDS == count_fds(host.pid), "no descriptor is left")


# ---- shared memory ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(
    ("region", "code"),
    [
        ([0, 0, 64, 0, -1, 0, 1], "EINVAL"),
        ([0, 4096, RAM_BYTES, 0, -1, 0, 1], "EINVAL"),
        ([0, 4096, (1 << 63) - 1, 0, -1, 0, 1], "EINVAL"),
        ([0, (1 << 63) - 1, (1 << 63) - 1, 0, -1, 0, 1], "EINVAL"),
        ([0, 4096, 64, 0, 64, 0, 1], "EINVAL"),
        ([0, 4096, 64, 0, -2, 0, 1], "EPROTO"),
        ([0, 4096, 0, 0, -1, 0, 1], "EPROTO"),
        ([0, 4096, 64, 0, -1, 8, 1], "EPROTO"),
        ([1, 4096, 64, 0, -1, 0, 1], "EINVAL"),
    ],
)
def test_an_impossible_region_is_refused(peer: RawPeer, region: list[int], code: str) -> None:
    """Nothing outside the guest's own memory is ever touched for it."""
    ram = Ram.create(RAM_BYTES)
    peer.join(1, unique(), "lan", ram.fileno())
    handle = peer.ask(1, 8, [peer.OPEN, 2, 1])[1]

    reply = peer.ask(1, 9, [peer.SHM, handle, *region])

    assert [peer.REFUSED, code] == reply[:2]
    peer.ask(1, 10, [peer.CLOSE, handle])
    ram.close()


@pytest.mark.usefixtures("bystander")
def test_a_signal_comes_with_its_descriptors_and_both_ends_work(peer: RawPeer) -> None:
    """The answer names the handle, the packet carries kick and call, and the slow kick is accepted."""
    ram = Ram.create(RAM_BYTES)
    peer.join(1, unique(), "lan", ram.fileno())
    handle = peer.ask(1, 8, [peer.OPEN, 2, 1])[1]

    signal = peer.ask(1, 9, [peer.SHM, handle, 0, 4096, 64, 0, 0, 7, 1 << 63])[1]
    packet, fds = peer.receive_packet()
    peer.send(1, 0, [peer.SIGNAL, signal])
    peer.ask(1, 10, [peer.LIST])
    peer.ask(1, 11, [peer.CALL, handle, 0, b"", 0])

    assert [1, 0, [66, 1, signal]] == packet
    assert [([fd], [], []) for fd in fds] == [select.select([fd], [], [], PATIENCE) for fd in fds]
    assert [1, 1] == [os.eventfd_read(fd) for fd in fds]
    peer.send(1, 12, [peer.CLOSE, handle])
    assert [peer.SHM_CLOSE, 1 << 63] == peer.receive()[3]
    for fd in fds:
        os.close(fd)
    ram.close()


def test_a_subscriber_s_endless_topic_is_cut_off(host: HostProcess) -> None:
    """A subscription longer than any message costs the subscriber its connection, not the host its memory."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.connect(str(host.run_dir.events_socket))
    listener.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    metadata = b"\x0bSocket-Type\x00\x00\x00\x03SUB"
    listener.sendall(bytes([4, 6 + len(metadata)]) + b"\x05READY" + metadata)

    listener.sendall(b"\x02" + (2 << 20).to_bytes(8, "big") + b"\x01topic")
    while listener.recv(4096):
        pass

    assert [] == guests(host)
    listener.close()


def test_a_connection_that_says_nothing_blocks_nobody(host: HostProcess) -> None:
    """Many half-open connections to the bus socket leave it open for guests."""
    silent = []
    for _ in range(64):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(host.run_dir.bus_socket))
        silent.append(sock)

    with RawPeer(host.run_dir.path) as peer:
        events = peer.join(1, unique(), "lan")

    assert 2 == len(events)
    for sock in silent:
        sock.close()


@pytest.mark.usefixtures("bystander")
def test_a_guest_that_does_not_read_is_cut_off(host: HostProcess, peer: RawPeer) -> None:
    """Events for it are bounded; then it loses its place and hears so where it may still look."""
    name = unique()
    peer.bus.setsockopt(zmq.RCVHWM, 10)
    peer.join(1, name, "other")
    with SyncOperator(host.run_dir) as operator:
        for _ in range(40):
            operator.apply([admin.DevicePlug("e", "other"), admin.DeviceUnplug("e", "other")] * 256)
            if name not in guests(host):
                break

    assert b"" == peer.attach_socket.recv(1)
    assert name not in guests(host)

"""Disks across real processes: files that operators put in, guests that use them, and either of them dying."""

import asyncio
import errno
import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vbnet
from tests.support.real_lab import lab_files, real_lab
from tests.support.waiting import eventually
from vbnet.bus.operator import SyncOperator
from vbnet.devices.virtio import wire
from vbnet.devices.virtio.driver import DiskFile
from vbnet.errors import (
    BusyError,
    ClosedError,
    NotFoundError,
    PeerGone,
    ResourceError,
    UnsupportedError,
    UsageError,
)
from vbnet.guestnode import GuestNode
from vbnet.telemetry import read_counted
from vbnet.testing.processes import HostProcess, PythonProcess, count_fds

SIZE = 4 << 20
READING_GUEST = """
import sys, vbnet
with vbnet.Guest(sys.argv[2], "lan", address=sys.argv[1]) as guest:
    disk = guest.disk("disk0").disk
    print("reading", flush=True)
    at = 0
    while True:
        disk.write_at(at, disk.read_at(at, 65536))
        at = (at + 65536) % disk.size
"""


def content(length: int, seed: int) -> bytes:
    """Bytes that look like nothing else, and are always the same."""
    return hashlib.shake_256(seed.to_bytes(8, "little")).digest(length)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file of random bytes, always the same."""
    path = tmp_path / "disk.img"
    path.write_bytes(content(SIZE, seed=7))
    return path


@pytest.fixture
def host(run_root: Path) -> Iterator[HostProcess]:
    """A host node in a process of its own."""
    with HostProcess(run_root) as process:
        yield process


@pytest.fixture
def operator(host: HostProcess) -> Iterator[SyncOperator]:
    """Its operator, with a bus."""
    operator = SyncOperator(host.run_dir)
    operator.bus_create("lan")
    yield operator
    operator.close()


@pytest.fixture
def make_disk(operator: SyncOperator) -> Callable[..., str]:
    """Return a function that makes ``disk0`` of a file, on the bus."""

    def make(path: Path, *, is_read_only: bool = False, **attributes: str) -> str:
        operator.device_create("disk0", "virtio-blk", attributes)
        put(operator, path, is_read_only=is_read_only)
        operator.device_plug("disk0", "lan")
        return "disk0"

    return make


def put(operator: SyncOperator, path: Path, *, is_read_only: bool = False, flags: int = 0) -> None:
    """Put a file into ``disk0``."""
    fd = os.open(path, (os.O_RDONLY if is_read_only else os.O_RDWR) | flags)
    try:
        operator.device_insert("disk0", fd, str(path), is_read_only=is_read_only)
    finally:
        os.close(fd)


def read_for_ever(disk: DiskFile) -> None:
    """Read until something is raised."""
    while True:
        disk.disk.read_at(0, 65536)


@contextmanager
def guest_disk(host: HostProcess, name: str = "app") -> Iterator[DiskFile]:
    """A guest of this process, and its disk."""
    with vbnet.Guest(name, "lan", address=host.run_dir) as guest:
        yield guest.disk("disk0")


@pytest.fixture(params=[False, True], ids=["messages", "fastcalls"])
def way(operator: SyncOperator, request: pytest.FixtureRequest) -> None:
    """Have registers reached by messages, or through memory."""
    if request.param:
        operator.device_create("fastcall0", "fastcall")
        operator.device_plug("fastcall0", "lan")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("transport", wire.TRANSPORTS)
def test_disk_reads_and_writes_the_file_beneath(
    host: HostProcess, make_disk: Callable[..., str], image: Path, transport: str
) -> None:
    """Over every transport, with registers as messages and through memory: the same bytes, in whole and in part."""
    make_disk(image, transport=transport, serial="abc-123")
    expected = bytearray(image.read_bytes())

    with guest_disk(host) as disk:
        found = disk.read()
        assert hashlib.sha256(expected).digest() == hashlib.sha256(found or b"").digest()
        assert (SIZE, "abc-123", False) == (disk.size, disk.disk.serial, disk.disk.is_read_only)
        for offset, length in [(0, 512), (511, 2), (70_000, 300_001), (SIZE - 1, 1)]:
            data = content(length, seed=offset)
            disk.seek(offset)
            assert length == disk.write(data)
            expected[offset : offset + length] = data
        disk.flush()

    assert bytes(expected) == image.read_bytes()


def test_disk_that_is_opened_is_a_file(host: HostProcess, make_disk: Callable[..., str], image: Path) -> None:
    """As `guest.disk` gives it, which goes on working; nothing has to be known of drivers."""
    make_disk(image)

    with vbnet.Guest("app", "lan", address=host.run_dir) as guest, guest.open("disk0") as disk:
        found = disk.read(512)
        disk.seek(1000)
        assert 5 == disk.write(b"hello")
        disk.seek(-5, io.SEEK_CUR)
        assert b"hello" == disk.read(5)
        assert found == guest.disk("disk0").read(512)
        assert found == guest.open("virtio:2").read(512)
        with pytest.raises(UsageError, match="version"):
            guest.open("disk0", version=2)

    assert image.read_bytes()[:512] == found


def test_disk_that_is_opened_on_an_event_loop_is_a_file(
    host: HostProcess, make_disk: Callable[..., str], image: Path
) -> None:
    """It waits in a thread of its own."""
    make_disk(image)

    async def program() -> bytes:
        async with await GuestNode.connect(host.run_dir, "app") as node:
            guest = await node.join("app", "lan")
            disk = await guest.open("disk0")
            found: bytes = await asyncio.to_thread(disk.read, 4096)
            return found

    assert image.read_bytes()[:4096] == asyncio.run(program())


def test_open_device_says_where_a_drivers_methods_are(host: HostProcess, operator: SyncOperator) -> None:
    """What is no file has none of its methods, and the error names what has."""
    operator.device_create("console0", "virtio-console")
    operator.device_plug("console0", "lan")

    with vbnet.Guest("app", "lan", address=host.run_dir) as guest:
        with guest.open("console0") as opened, pytest.raises(AttributeError, match=r"close it.*bind\('console0'\)"):
            opened.write(b"hello")
        assert 5 == guest.bind("console0").write(b"hello")


def test_file_of_a_disk_is_a_raw_file(host: HostProcess, make_disk: Callable[..., str], image: Path) -> None:
    """Positions, ends, and what the standard library builds on it."""
    content = image.read_bytes()
    make_disk(image)
    with guest_disk(host) as disk:
        assert (True, True, True) == (disk.readable(), disk.writable(), disk.seekable())
        assert SIZE - 10 == disk.seek(-10, io.SEEK_END)
        assert content[-10:] == disk.read(100)
        assert (b"", SIZE) == (disk.read(1), disk.tell())
        disk.seek(-3, io.SEEK_CUR)
        assert 3 == disk.write(b"12345")
        with pytest.raises(ResourceError) as full:
            disk.write(b"6")
        assert errno.ENOSPC == full.value.errno
        with pytest.raises(UsageError):
            disk.seek(-1)
        with pytest.raises(UsageError):
            disk.seek(0, 3)

        buffered = io.BufferedRandom(disk)
        buffered.seek(5)
        buffered.write(b"through a buffer")
        buffered.flush()
        buffered.seek(0)
        assert content[:5] + b"through a buffer" + content[21:600] == buffered.read(600)
        buffered.close()
        with pytest.raises(ClosedError):
            disk.seek(0)


def test_sectors_are_discarded_and_zeroed(host: HostProcess, make_disk: Callable[..., str], image: Path) -> None:
    """Whole sectors only; the file keeps its size, and zeroes are zeroes."""
    make_disk(image)
    with guest_disk(host) as disk:
        disk.write_zeroes(65536, 131072)
        disk.discard(1 << 20, 1 << 20)
        disk.flush()
        with pytest.raises(UsageError):
            disk.discard(1, 512)
        with pytest.raises(UsageError):
            disk.discard(SIZE, 512)

    content = image.read_bytes()
    assert (SIZE, bytes(131072)) == (len(content), content[65536:196608])


def test_disk_that_may_only_be_read_stays_as_it_is(
    host: HostProcess, make_disk: Callable[..., str], image: Path
) -> None:
    """Also when the descriptor could be written to by others."""
    before = image.read_bytes()
    make_disk(image, is_read_only=True)

    with guest_disk(host) as disk:
        assert not disk.writable()
        with pytest.raises(ResourceError) as refused:
            disk.write(b"x" * 512)
        with pytest.raises(ResourceError):
            disk.discard(0, 512)

    assert (errno.EROFS, before) == (refused.value.errno, image.read_bytes())


def test_several_threads_take_turns(host: HostProcess, make_disk: Callable[..., str], image: Path) -> None:
    """Each finds what it wrote, whoever else is at work."""
    make_disk(image)
    mistakes: list[int] = []
    with guest_disk(host) as disk:

        def work(number: int) -> None:
            for step in range(50):
                offset = (number * 50 + step) * 4096
                disk.disk.write_at(offset, bytes([number]) * 4096)
                if disk.disk.read_at(offset, 4096) != bytes([number]) * 4096:
                    mistakes.append(offset)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert [] == mistakes


def test_only_files_that_can_be_disks_are_taken(operator: SyncOperator, tmp_path: Path, image: Path) -> None:
    """A pipe, a folder, a descriptor that appends, one that cannot be written: each is refused with its reason."""
    operator.device_create("disk0", "virtio-blk")
    reader, writer = os.pipe()
    for fd in (reader, writer):
        with pytest.raises(UsageError, match="regular file or a block device"):
            operator.device_insert("disk0", fd, "pipe")
        os.close(fd)
    with pytest.raises(UsageError, match="regular file or a block device"):
        put(operator, tmp_path, is_read_only=True)
    with pytest.raises(UsageError, match="O_APPEND"):
        put(operator, image, flags=os.O_APPEND)
    fd = os.open(image, os.O_RDONLY)
    with pytest.raises(UsageError, match="reading and writing"):
        operator.device_insert("disk0", fd, "read-only descriptor")
    os.close(fd)
    with pytest.raises(UsageError, match="not open"):
        operator.device_insert("disk0", 1 << 20, "no descriptor")

    assert ("", "0") == tuple(operator.device_get("disk0").attributes[name] for name in ("image", "bytes"))


def test_file_goes_into_a_device_that_takes_one(
    host: HostProcess, operator: SyncOperator, make_disk: Callable[..., str], image: Path
) -> None:
    """Not into one that is not there, takes none, or is open in a guest."""
    make_disk(image)
    operator.device_create("echo0", "echo")
    fd = os.open(image, os.O_RDWR)
    with pytest.raises(NotFoundError):
        operator.device_insert("disk7", fd, "image")
    with pytest.raises(UnsupportedError):
        operator.device_insert("echo0", fd, "image")
    with guest_disk(host), pytest.raises(BusyError):
        operator.device_insert("disk0", fd, "image")
    os.close(fd)


def test_drive_without_a_disk_has_no_sectors(host: HostProcess, operator: SyncOperator) -> None:
    """It can be opened, and there is nothing to read."""
    operator.device_create("disk0", "virtio-blk")
    operator.device_plug("disk0", "lan")

    with guest_disk(host) as disk:
        assert (0, b"") == (disk.size, disk.read(512))


def test_guest_killed_with_requests_under_way_frees_the_disk(
    host: HostProcess, operator: SyncOperator, make_disk: Callable[..., str], image: Path
) -> None:
    """``kill -9``, again and again: the host holds what it held, the file is whole, and the next guest goes on."""
    before = hashlib.sha256(image.read_bytes()).digest()
    make_disk(image)
    held = []
    for number in range(3):
        with PythonProcess(READING_GUEST, [str(host.run_dir.path), f"victim{number}"]) as victim:
            assert "reading" == victim.line()
            victim.kill()
        eventually(lambda: operator.guest_list() == [], "the guest to be gone")
        held.append(count_fds(host.pid))
    with guest_disk(host) as disk:
        assert before == hashlib.sha256(disk.read() or b"").digest()

    assert [held[0]] * 3 == held


def test_requests_end_when_the_host_is_killed(host: HostProcess, make_disk: Callable[..., str], image: Path) -> None:
    """Whoever waits, and whoever asks later, gets PeerGone."""
    make_disk(image)
    with guest_disk(host) as disk:
        host.kill()
        with pytest.raises(PeerGone):
            read_for_ever(disk)
        with pytest.raises(PeerGone):
            disk.disk.read_at(0, 512)


def test_disk_that_leaves_ends_its_requests(
    host: HostProcess, operator: SyncOperator, make_disk: Callable[..., str], image: Path
) -> None:
    """Unplugged under load: the guest's calls end, its memory is free, and the disk can come again."""
    make_disk(image)
    with vbnet.Guest("app", "lan", address=host.run_dir) as guest:
        disk = guest.disk("disk0")
        operator.device_unplug("disk0", "lan")
        with pytest.raises(PeerGone):
            read_for_ever(disk)
        operator.device_plug("disk0", "lan")

        assert image.read_bytes()[:512] == guest.disk("disk0").read(512)


def test_disk_counts_requests_bytes_errors_and_latency(
    host: HostProcess, operator: SyncOperator, make_disk: Callable[..., str], image: Path
) -> None:
    """What ``vbnet metrics`` and the dashboards show."""
    make_disk(image)
    with guest_disk(host) as disk:
        disk.read(4096)
        disk.seek(0)
        disk.write(bytes(8192))
        disk.flush()
        os.truncate(image, 512)
        with pytest.raises(ResourceError):
            disk.disk.read_at(8192, 512)
        [blk] = read_counted(host.run_dir.counters, "virtio_blk")

    assert {"guest": "app", "device": "disk0"} == blk.labels
    wanted = {"reads": 1, "read_bytes": 4096, "writes": 1, "write_bytes": 8192, "flushes": 1, "error_io": 1}
    assert wanted == {name: blk.values[name] for name in wanted}
    assert operator.device_get("disk0").attributes["bytes"] == str(SIZE)


LAB = """
name: t
guests:
  writer: {kind: python, run: "disks.py:write", disks: [{image: data.img, serial: "note 1"}]}
  readers: {kind: python, count: 2, run: "disks.py:read", disks: [{image: base.img, name: base, readonly: true}]}
"""
FUNCTIONS = """
import hashlib

def write(guest):
    disk = guest.disk("disk0")
    disk.write(b"written by a guest")
    disk.flush()
    print("written on", disk.disk.serial, flush=True)
    guest.wait_device("never", 3600)

def read(guest):
    disk = guest.disk("base")
    print(hashlib.sha256(disk.read()).hexdigest(), disk.writable(), flush=True)
    guest.wait_device("never", 3600)
"""


@pytest.mark.usefixtures("no_leaked_processes")
def test_lab_has_disks() -> None:
    """Its lab file names files; the lab opens them, and its guests read and write them."""
    base = "base image " * 1000
    base = base[: len(base) // 512 * 512]
    files = {"disks.py": FUNCTIONS, "data.img": "\0" * 4096, "base.img": base}
    with real_lab(LAB, files=files) as lab:
        digest = hashlib.sha256(base.encode()).hexdigest()
        eventually(lambda: "written on note 1\n" in "".join(lab.logs("writer")), "the writer")
        found = eventually(
            lambda: said if len(said := [log for log in lab.logs("readers") if digest in log]) == 2 else None,
            "both readers",
        )
        assert [f"{digest} False\n"] * 2 == found
        assert (lab.file.parent / "data.img").read_bytes().startswith(b"written by a guest\0")


def test_lab_with_an_image_that_is_not_there_does_not_come_up() -> None:
    """It says which file, and why."""
    with lab_files(LAB, files={"disks.py": FUNCTIONS, "base.img": " " * 512}) as lab:
        said = lab.start("up", str(lab.file), "-d", stderr=-2).communicate()[0]

    assert "data.img" in said
    assert "No such file" in said

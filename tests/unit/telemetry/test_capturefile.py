"""What is in a capture file is whole, whatever the disk, the reader and the user do."""

import os
import resource
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vbnet.errors import ExistsError, PeerGone, ResourceError
from vbnet.telemetry.capturefile import BlockFile, BlockPipe, whole_blocks


def block(length: int, mark: int = 7) -> bytes:
    """A block of so many bytes."""
    return struct.pack("<II", mark, length) + bytes(length - 12) + struct.pack("<I", length)


HEAD, TAIL = block(28, 1), block(20, 5)


def tail() -> bytes:
    """What each file ends with."""
    return TAIL


@contextmanager
def file_bytes_at_most(limit: int) -> Iterator[None]:
    """Let no file of this process grow longer, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_has_head_blocks_and_tail_for_its_owner_only(tmp_path: Path) -> None:
    """Frames are secrets of their guests."""
    path = tmp_path / "a.pcapng"
    sink = BlockFile(path, HEAD, tail)

    sink.write(block(100))
    sink.finish()
    sink.finish()

    assert HEAD + block(100) + TAIL == path.read_bytes()
    assert 0o600 == path.stat().st_mode & 0o777
    assert [str(path)] == sink.names()


def test_a_file_that_is_there_is_overwritten_only_by_force(tmp_path: Path) -> None:
    """Without force it is not even opened."""
    path = tmp_path / "a.pcapng"
    path.write_text("precious " * 100)

    with pytest.raises(ExistsError, match="--force"):
        BlockFile(path, HEAD, tail)
    kept = path.read_text()
    BlockFile(path, HEAD, tail, is_forced=True).finish()

    assert "precious " * 100 == kept
    assert HEAD + TAIL == path.read_bytes()


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    """With the path and the system's reason."""
    with pytest.raises(ResourceError, match=r"nowhere.*No such file"):
        BlockFile(tmp_path / "nowhere" / "a.pcapng", HEAD, tail)


def test_rotation_keeps_the_last_files_each_whole(tmp_path: Path) -> None:
    """A new file begins once one is long enough; of too many the oldest goes."""
    sink = BlockFile(tmp_path / "a.pcapng", HEAD, tail, rotate_bytes=200, keep_files=2)

    for mark in range(3):
        sink.write(block(100, mark))
    sink.write(b"".join(block(100, mark) for mark in range(3, 7)))
    sink.finish()

    names = ["a.00003.pcapng", "a.00004.pcapng"]
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert [str(tmp_path / name) for name in names] == sink.names()
    assert HEAD + block(100, 4) + block(100, 5) + TAIL == (tmp_path / names[0]).read_bytes()
    assert HEAD + block(100, 6) + TAIL == (tmp_path / names[1]).read_bytes()


@pytest.mark.parametrize("room", [28, 29, 127, 128, 240, 399])
def test_a_full_disk_leaves_a_whole_file(tmp_path: Path, room: int) -> None:
    """It is cut back to its last whole block, and the message says what happened."""
    path = tmp_path / "a.pcapng"
    sink = BlockFile(path, HEAD, lambda: b"")

    with file_bytes_at_most(room), pytest.raises(ResourceError, match=r"cannot be written: File too large") as refused:
        sink.write(block(100) * 4)
    sink.finish()

    blocks = (room - len(HEAD)) // 100
    assert HEAD + block(100) * blocks == path.read_bytes()
    assert blocks == refused.value.fields["blocks"]


def test_a_disk_that_fills_up_behind_a_rotation_says_what_all_files_have(tmp_path: Path) -> None:
    """Of one write, some blocks are in a file that was finished and some in the one that found no room."""
    sink = BlockFile(tmp_path / "a.pcapng", HEAD, tail, rotate_bytes=200)

    with file_bytes_at_most(300), pytest.raises(ResourceError) as refused:
        sink.write(block(100) * 2 + block(150) + block(180))
    sink.finish()

    assert 3 == refused.value.fields["blocks"]
    assert HEAD + block(150) + TAIL == (tmp_path / "a.00002.pcapng").read_bytes()


def test_a_tail_that_finds_no_room_is_left_out(tmp_path: Path) -> None:
    """The file stays as it was."""
    path = tmp_path / "a.pcapng"
    sink = BlockFile(path, HEAD, tail)

    with file_bytes_at_most(len(HEAD) + 3):
        sink.finish()

    assert HEAD == path.read_bytes()


def test_whole_blocks_are_counted_wherever_the_bytes_end() -> None:
    """Up to the last block that is all there."""
    blocks = block(20) + block(40)

    assert [0] * 20 + [20] * 40 + [60] == [whole_blocks(blocks[:end]) for end in range(61)]


@contextmanager
def pipe() -> Iterator[tuple[int, int, int]]:
    """Reading end, writing end, and an eventfd that says stop."""
    reading, writing = os.pipe()
    stop = os.eventfd(0)
    yield reading, writing, stop
    for fd in (writing, stop):
        os.close(fd)


def test_a_reader_of_a_pipe_gets_all_of_it() -> None:
    """More than a pipe holds, in order."""
    with pipe() as (reading, writing, stop):
        got = bytearray()

        def read() -> None:
            while piece := os.read(reading, 1 << 16):
                got.extend(piece)
                if got.endswith(TAIL):
                    return

        reader = threading.Thread(target=read)
        reader.start()
        sink = BlockPipe(writing, HEAD, tail, stop)
        sink.write(block(100_000) * 5)
        sink.finish()
        reader.join(10)
        os.close(reading)

    assert HEAD + block(100_000) * 5 + TAIL == bytes(got)


def test_a_reader_that_ended_is_said() -> None:
    """Nothing is written any more, not even the tail."""
    with pipe() as (reading, writing, stop):
        sink = BlockPipe(writing, HEAD, tail, stop)
        os.close(reading)

        with pytest.raises(PeerGone, match="has ended"):
            sink.write(block(100))
        sink.finish()


def test_a_reader_that_does_not_read_keeps_nobody_from_ending() -> None:
    """Once the capture is to end, it is waited for a moment and no longer."""
    with pipe() as (reading, writing, stop):
        sink = BlockPipe(writing, HEAD, tail, stop)
        os.eventfd_write(stop, 1)

        with pytest.raises(PeerGone, match="stopped reading"):
            sink.write(block(1 << 20))
        sink.finish()
        os.close(reading)

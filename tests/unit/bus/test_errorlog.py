"""Distinct errors: each once, bounded, and readable whatever became of the node."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import struct
import zlib
from pathlib import Path

import pytest

from vbnet.bus.errorlog import SLOT_BYTES, SLOTS, DistinctError, ErrorLog, read_errors
from vbnet.bus.rundir import RunDir
from vbnet.errors import NotFoundError, NotPermittedError, PeerFault, ResourceError


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """A folder where a host node might run."""
    return RunDir(tmp_path)


def open_log(run_dir: RunDir) -> ErrorLog:
    """A node's log, whose clock goes on by a second with each error."""
    return ErrorLog(run_dir, itertools.count(1000).__next__)


def test_an_error_that_comes_again_is_counted_not_listed_again(run_dir: RunDir) -> None:
    """First and last time, how often, and what it said last."""
    log = open_log(run_dir)
    for text in ("got 900", "got 901", "got 902"):
        log.note("guest.fault", "web-0", "next < size", text)
    log.note("guest.fault", "web-1", "next < size", "got 7")

    found = read_errors(run_dir)

    assert [
        DistinctError("guest.fault", "web-1", "next < size", 1003, 1003, 1, "got 7"),
        DistinctError("guest.fault", "web-0", "next < size", 1000, 1002, 3, "got 902"),
    ] == found.errors
    assert (0, 0) == (found.evicted, found.unreadable)


def test_who_makes_up_errors_without_end_drives_out_their_own(run_dir: RunDir) -> None:
    """What was counted often stays; what made room is counted."""
    log = open_log(run_dir)
    for _ in range(3):
        log.note("port.fault", "honest", "rule", "seen often")
    for number in range(3 * SLOTS):
        log.note("bus.refused", f"liar-{number}", "ENOENT", "")

    found = read_errors(run_dir)

    names = {error.whose for error in found.errors}
    assert (SLOTS, 2 * SLOTS + 1) == (len(found.errors), found.evicted)
    assert {"honest", f"liar-{3 * SLOTS - 1}"} <= names
    assert "liar-0" not in names


def test_the_next_node_goes_on_with_what_is_there(run_dir: RunDir) -> None:
    """A restart forgets nothing, and does not list an error twice."""
    first = open_log(run_dir)
    first.note("guest.fault", "a", "rule", "before")
    first.close()
    second = open_log(run_dir)
    second.note("guest.fault", "a", "rule", "after")
    second.note("guest.fault", "b", "rule", "")

    found = read_errors(run_dir)

    assert [("b", 1, ""), ("a", 2, "after")] == [(error.whose, error.count, error.message) for error in found.errors]


def test_texts_of_any_kind_and_length_fit_their_slot(run_dir: RunDir) -> None:
    """Quotes, line breaks, other alphabets and lone surrogates are cut and made harmless."""
    for number, text in enumerate(['"' * 5000, "\n\x1b[31m" * 1000, "\\" * 5000, "ж" * 5000, "\ud800" * 5000]):
        open_log(run_dir).note(text, text, f"{number}{text}", text)

    found = read_errors(run_dir)

    assert (5, 0) == (len(found.errors), found.unreadable)
    assert all(text.isprintable() for error in found.errors for text in (error.what, error.whose, error.message))


def test_a_slot_is_what_the_document_says(run_dir: RunDir) -> None:
    """Read here with a decoder of the test's own."""
    open_log(run_dir).note("port.fault", "web-0", "rule", "text")

    data = run_dir.errors_file.read_bytes()

    length, crc = struct.unpack_from("<II", data, SLOT_BYTES)
    payload = data[SLOT_BYTES + 8 : SLOT_BYTES + 8 + length]
    assert (257 * 1024, crc) == (len(data), zlib.crc32(payload))
    assert {"what": "port.fault", "whose": "web-0", "count": 1}.items() <= json.loads(payload).items()


def test_a_damaged_slot_costs_that_slot_only(run_dir: RunDir) -> None:
    """A node that was killed while it wrote leaves the rest readable, and its successor takes the slot again."""
    log = open_log(run_dir)
    log.note("guest.fault", "a", "rule", "")
    log.note("guest.fault", "b", "rule", "")
    log.close()
    with run_dir.errors_file.open("r+b") as file:
        file.seek(SLOT_BYTES + 20)
        file.write(b"\xff\xff")

    damaged = read_errors(run_dir)
    open_log(run_dir).note("guest.fault", "c", "rule", "")

    mended = read_errors(run_dir)
    assert (["b"], 1) == ([error.whose for error in damaged.errors], damaged.unreadable)
    assert ({"b", "c"}, 0) == ({error.whose for error in mended.errors}, mended.unreadable)


@pytest.mark.parametrize("content", [b"", b"short", bytes(257 * 1024), b"\xff" * 257 * 1024])
def test_a_file_that_is_no_log_is_one_clear_message(run_dir: RunDir, content: bytes) -> None:
    """Cut short, empty or something else: the reader says so, and a node makes it anew."""
    run_dir.errors_file.write_bytes(content)

    with pytest.raises(PeerFault, match=r"errors\.log is no log of distinct errors"):
        read_errors(run_dir)

    open_log(run_dir)
    assert [] == read_errors(run_dir).errors


def test_where_no_node_ran_there_is_no_log(run_dir: RunDir) -> None:
    """Not to be mistaken for a node without errors."""
    with pytest.raises(NotFoundError, match="no host node has kept errors"):
        read_errors(run_dir)


def test_a_link_in_place_of_the_file_is_not_followed(run_dir: RunDir, tmp_path: Path) -> None:
    """Neither end can be led elsewhere."""
    run_dir.errors_file.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(NotPermittedError, match=r"errors\.log"):
        read_errors(run_dir)
    with pytest.raises(ResourceError, match=r"errors\.log"):
        open_log(run_dir)


def _note_without_end(path: Path) -> None:
    log = ErrorLog(RunDir(path), itertools.count(1).__next__)
    while True:
        log.note("guest.fault", "a", "rule", "x" * 300)
        log.note("guest.fault", "a", "rule", "y")


def test_a_reader_never_sees_half_an_entry(run_dir: RunDir) -> None:
    """Another process writes without a pause; each copy is whole, and counts never go back."""
    writer = multiprocessing.get_context("spawn").Process(target=_note_without_end, args=(run_dir.path,), daemon=True)
    writer.start()
    try:
        while not run_dir.errors_file.exists() or not any(run_dir.errors_file.read_bytes()[SLOT_BYTES:]):
            assert writer.is_alive()
        seen = [error for _ in range(200) for error in read_errors(run_dir).errors]
    finally:
        writer.kill()
        writer.join()

    assert {"x" * 300, "y"} >= {error.message for error in seen}
    assert len(seen) > 100
    assert sorted(error.count for error in seen) == [error.count for error in seen]

"""The last events of a run directory: whole lines, bounded, and there after the node is dead."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest

from vbnet.bus.history import LINE_BYTES, EventHistory, encode_event, read_history
from vbnet.bus.rundir import RunDir
from vbnet.errors import NotPermittedError, ResourceError


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """A folder where a host node might run."""
    return RunDir(tmp_path)


def event(seq: int, **fields: object) -> bytes:
    """An event as a node encodes it."""
    return encode_event({"topic": "bus.created", "seq": seq, "time": 1000.0 + seq, **fields})


def write(run_dir: RunDir, *numbers: int, file_bytes: int = 1 << 20) -> EventHistory:
    """A node that keeps events with these numbers."""
    history = EventHistory(run_dir, file_bytes)
    for seq in numbers:
        history.append(event(seq))
    return history


def numbers(run_dir: RunDir) -> list[int]:
    """What a reader finds."""
    return [found["seq"] for found in read_history(run_dir).events]


def test_events_can_be_read_while_their_writer_holds_the_file(run_dir: RunDir) -> None:
    """Nothing waits in a buffer, so a node that hangs has told all it did."""
    write(run_dir, 1, 2, 3)

    assert [1, 2, 3] == numbers(run_dir)


def test_each_line_is_one_json_object(run_dir: RunDir) -> None:
    """A program in any language can follow the file, whatever line breaks fields have."""
    history = EventHistory(run_dir)
    history.append(event(1, text="two\nlines"))

    [line] = run_dir.events_file.read_text().splitlines()

    assert "two\nlines" == json.loads(line)["text"]


def test_the_files_stay_bounded_and_hold_the_last_events(run_dir: RunDir) -> None:
    """A full file becomes the old one, and the one before that goes."""
    limit = 20 * len(event(100))

    write(run_dir, *range(1, 500), file_bytes=limit)

    kept = numbers(run_dir)
    sizes = [path.stat().st_size for path in (run_dir.events_file, run_dir.old_events_file)]
    assert max(sizes) <= limit
    assert kept == list(range(500 - len(kept), 500))
    assert len(kept) > 19


def test_a_half_line_of_a_killed_node_is_skipped_and_not_continued(run_dir: RunDir) -> None:
    """The next node begins a line of its own."""
    write(run_dir, 1).close()
    with run_dir.events_file.open("ab") as file:
        file.write(event(2)[:20])

    before = numbers(run_dir)
    write(run_dir, 3)

    found = read_history(run_dir)
    assert [1] == before
    assert ([1, 3], 1) == (numbers(run_dir), found.damaged)


@pytest.mark.parametrize(
    "line",
    [b"{", b"[1]", b"\xff\xfe", b"7", b'{"topic":"a"}', b'{"topic":1,"seq":1,"time":1}', b"[" * 5000],
    ids=["cut", "array", "no text", "number", "no seq", "topic is a number", "deep"],
)
def test_lines_that_are_no_events_are_counted_and_skipped(run_dir: RunDir, line: bytes) -> None:
    """A damaged file costs its damaged lines."""
    write(run_dir, 1).close()
    with run_dir.events_file.open("ab") as file:
        file.write(line + b"\n")
    write(run_dir, 2)

    found = read_history(run_dir)

    assert ([1, 2], 1) == ([each["seq"] for each in found.events], found.damaged)


def test_a_full_disk_loses_events_and_nothing_else(run_dir: RunDir) -> None:
    """What does not fit is counted; afterwards lines are whole again."""
    history = write(run_dir, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(event(1)) + 10, before[1]))
    try:
        history.append(event(2))
        history.append(event(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    history.append(event(4))

    assert (2, [1, 4]) == (history.lost, numbers(run_dir))


def test_an_event_that_is_too_long_keeps_its_head() -> None:
    """A line has a bound, whatever a device puts into an event."""
    data = event(7, text="x" * LINE_BYTES)

    found = json.loads(data)

    assert len(data) < LINE_BYTES
    assert ("bus.created", 7) == (found["topic"], found["seq"])
    assert found["cut_bytes"] > LINE_BYTES


def test_a_value_that_json_does_not_have_is_shown_all_the_same() -> None:
    """An event of a device from outside cannot stop the host."""
    found = json.loads(event(1, what=1j))

    assert "1j" == found["what"]


def test_a_link_in_place_of_the_file_is_not_followed(run_dir: RunDir, tmp_path: Path) -> None:
    """Neither end can be led elsewhere."""
    run_dir.events_file.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(NotPermittedError, match=r"events\.jsonl"):
        read_history(run_dir)
    with pytest.raises(ResourceError, match=r"events\.jsonl"):
        EventHistory(run_dir)


def test_there_is_no_history_where_no_node_ran(run_dir: RunDir) -> None:
    """Nothing happened, and that is no error."""
    assert [] == read_history(run_dir).events

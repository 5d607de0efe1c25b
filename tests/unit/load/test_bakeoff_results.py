"""What a bake-off says of what it measured."""

import json
import re
from pathlib import Path

import pytest

from tests.support.bakeoff_records import readings, record_of
from vbnet.errors import ResourceError, UsageError
from vbnet.load.bakeoff.figures import FIGURES, figures
from vbnet.load.bakeoff.record import Median, cells, load_record
from vbnet.load.bakeoff.report import headline, html_page, markdown, worth_rows
from vbnet.load.bakeoff.usage import Usage, read_usage
from vbnet.load.bakeoff.verdict import changes, comparisons, worths
from vbnet.load.counting import Counts, Latency
from vbnet.load.store import as_json


def test_figures_are_a_frame_of_all_that_arrived() -> None:
    """Costs are shared by everybody's frames; rate and loss are of those who are told."""
    found = figures(
        counts=Counts(sent=200, received=100, received_bytes=6400),
        latency=Latency(),
        usage=Usage(cpu_ns=40_000, sleeps=20, system_calls=40),
        traps=400,
        arrived=400,
        seconds=2.0,
    )

    assert {
        "rate": 50,
        "wakeups": 0.05,
        "traps": 1,
        "system_calls": 0.1,
        "bytes_a_wakeup": 320,
        "cpu": 100,
        "loss": 0.5,
    } == found
    assert set(found) <= set(FIGURES)


def test_subject_through_which_nothing_came_has_a_rate_of_zero() -> None:
    """And no figure that would be divided by nothing."""
    found = figures(counts=Counts(sent=9), latency=Latency(), usage=Usage(cpu_ns=1), traps=1, arrived=0, seconds=1.0)

    assert {"rate": 0} == found


def test_repeats_become_one_cell_with_its_range() -> None:
    """In the order in which they came first."""
    found = list(cells(readings("venet", "flood", 3, 1, 2) + readings("e1000", "flood", 5)))

    assert ["venet", "e1000"] == [cell.subject for cell in found]
    assert Median(2, 1, 3, 3) == found[0].figures["rate"]


def test_ahead_is_only_who_is_better_in_every_repeat() -> None:
    """Ranges that overlap are level, and say so."""
    record = record_of(
        readings("venet", "flood", 10, 11, 12)
        + readings("e1000", "flood", 1, 2, 3, wakeups=3)
        + readings("virtio-net", "flood", 9, 12, 10, wakeups=0.05)
    )

    found = {(item.model, item.figure): item for item in comparisons(record)}

    assert "ahead" == found["e1000", "rate"].standing
    assert ("level", "within the spread of 3 repeats") == (
        found["virtio-net", "rate"].standing,
        found["virtio-net", "rate"].why,
    )
    behind = found["virtio-net", "wakeups"]
    assert ("behind", "wake-ups of host and guests a frame: 0.1 against 0.05") == (behind.standing, behind.why)
    assert "ahead 2" in headline(record)


def test_worth_of_a_mechanism_is_how_much_better_it_is_with_it() -> None:
    """Of the figure that its workload is judged by, whichever way is better."""
    record = record_of(
        readings("venet", "flood", 10, 11, 12)
        + readings("venet without batching", "flood", 5, 5.5, 6)
        + readings("venet", "requests", 1, p99=1000)
        + readings("venet without parking", "requests", 1, p99=4000)
    )

    found = {item.mechanism: item for item in worths(record)}

    assert (2, True) == (found["batching"].gain, found["batching"].is_certain)
    assert ("p99", 4) == (found["parking"].figure, found["parking"].gain)
    assert ["parking", "batching"] == [row["mechanism"] for row in worth_rows(found.values())]


def test_change_is_what_chance_does_not_explain() -> None:
    """Overlapping ranges, small steps and what was measured twice only are none."""
    old = record_of(
        readings("venet", "flood", 10, 11, 10)
        + readings("e1000", "flood", 5, 6, 5)
        + readings("rtl8139", "flood", 100, 101, 100)
        + readings("virtio-net", "flood", 1, 1)
    )
    new = record_of(
        readings("venet", "flood", 20, 21, 20)
        + readings("e1000", "flood", 6, 7, 6)
        + readings("rtl8139", "flood", 102, 103, 102)
        + readings("virtio-net", "flood", 9, 9)
    )

    assert [("venet", "rate", True)] == [(item.subject, item.figure, item.is_better) for item in changes(old, new)]


def test_reports_show_every_subject_and_hold_the_record() -> None:
    """The page needs nothing else, and a program reads the record out of it."""
    record = record_of(
        readings("venet", "flood", 10, 11) + readings("e1000", "flood", 1),
        missing={"rtl8139": "guest rtl8139-sender <ended>"},
        notes=["a & b"],
    )

    page, text = html_page(record), markdown(record)

    inside = re.search(r'<script type="application/json" id="result">(.*?)</script>', page, re.DOTALL)
    assert inside is not None
    assert json.loads(as_json(record)) == json.loads(inside[1])
    assert "guest rtl8139-sender &lt;ended&gt;" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    for subject in ("venet", "e1000"):
        assert f"| flood | {subject} |" in text


def test_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """So that a later bake-off can be compared with it."""
    record = record_of(readings("venet", "flood", 10, 11))
    place = tmp_path / "result.json"
    place.write_bytes(as_json(record))

    assert record == load_record(place)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2]", b"\xff\xfe", b"no json"])
def test_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    """With what to give instead."""
    place = tmp_path / "result.json"
    place.write_bytes(content)

    with pytest.raises(UsageError, match=r"give the result\.json of its folder"):
        load_record(place)


def test_record_of_another_format_is_refused(tmp_path: Path) -> None:
    """Its figures may mean something else."""
    place = tmp_path / "result.json"
    place.write_bytes(as_json(record_of([], format=99)))

    with pytest.raises(UsageError, match="has format 99"):
        load_record(place)


def test_record_that_is_not_there_is_told(tmp_path: Path) -> None:
    """By its path."""
    with pytest.raises(ResourceError, match=r"cannot read .*nowhere.json"):
        load_record(tmp_path / "nowhere.json")


def test_usage_is_of_every_thread(tmp_path: Path) -> None:
    """Threads are added up; a process that is gone used nothing."""
    for thread in (7, 8):
        folder = tmp_path / "7" / "task" / str(thread)
        folder.mkdir(parents=True)
        (folder / "schedstat").write_text(f"{thread}000 5 6\n")
        (folder / "status").write_text(
            f"Name:\tx\nvoluntary_ctxt_switches:\t{thread}\nnonvoluntary_ctxt_switches:\t9\n"
        )
    (tmp_path / "7" / "io").write_text("rchar: 99\nsyscr: 3\nsyscw: 4\n")

    assert Usage(cpu_ns=15_000, sleeps=15, system_calls=7) == read_usage([7, 99], tmp_path)


def test_usage_of_this_process_grows() -> None:
    """With the kernel's own files."""
    import os  # noqa: PLC0415 - of this test alone

    before = read_usage([os.getpid()])
    for _ in range(20):
        Path("/proc/self/stat").read_bytes()
    sum(range(300_000))

    used = read_usage([os.getpid()]).since(before)

    assert used.cpu_ns > 0
    assert used.system_calls >= 20

"""What a run counts, what it says of it, and where it writes it down."""

import errno
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vbnet._native import TRAFFIC_SINK_COUNTERS, TRAFFIC_SOURCE_COUNTERS, CounterBlock, CounterFile, histogram_bounds
from vbnet.errors import ExistsError, ResourceError
from vbnet.load.bench.machine import describe
from vbnet.load.counting import Counter, Counts, Latency
from vbnet.load.figures import say_count, say_figure, say_rate, say_time
from vbnet.load.report import html_page, markdown
from vbnet.load.result import GuestResult, Outcome, Result, Sample, Trial, figures, judge
from vbnet.load.store import Store
from vbnet.load.thresholds import parse_threshold

SAMPLE = Sample(at_s=1, seconds=1, sent=10, received=9, received_bytes=576, under_way=1, reordered=0, corrupted=0)


def latency_of(*nanoseconds: int) -> Latency:
    """A histogram of these."""
    bounds = histogram_bounds()
    buckets = [0] * len(bounds)
    for value in nanoseconds:
        buckets[next(place for place, bound in enumerate(bounds) if value <= bound)] += 1
    return Latency((len(nanoseconds), sum(nanoseconds), min(nanoseconds), max(nanoseconds), *buckets))


def result_of(**over: Any) -> Result:
    """A result of a run that went well."""
    thresholds = [parse_threshold("p99 < 100us"), parse_threshold("loss == 0")]
    found = figures(
        Counts(sent=100, received=100, received_bytes=6400), latency_of(*[1000] * 100), 2.0, is_recorded=False
    )
    fields: dict[str, Any] = {
        "profile": {"name": "small"},
        "began": "2026-01-01T00:00:00+00:00",
        "vbnet": "1",
        "machine": describe(),
        "outcome": Outcome(state="finished"),
        "seconds": 2.0,
        "figures": found,
        "guests": [GuestResult(name="load-0", role="sends", sent=100, received=0)],
        "samples": [SAMPLE, msgspec.structs.replace(SAMPLE, at_s=2, latency_ns={"p99": 1000})],
        "verdicts": judge(thresholds, found),
    }
    return Result(**{**fields, **over})


def test_figures_say_what_was_lost_and_how_fast_the_rest_was() -> None:
    """Rates are of what arrived."""
    counts = Counts(sent=1000, received=990, received_bytes=99_000, corrupted=2, late_max_ns=5000)

    found = figures(counts, latency_of(*range(1000, 2000)), 2.0, is_recorded=False)

    assert (495, 396_000, 0.01, 10, 2, 5000) == tuple(
        found[name] for name in ("rate", "bits", "loss", "lost", "corrupted", "late")
    )
    assert 1400 < found["p50"] < 1700 < found["p99"] <= found["max"]


def test_frames_of_a_capture_arrive_as_foreign_ones() -> None:
    """They have no number and no time."""
    found = figures(Counts(sent=10, foreign=9), Latency(), 1.0, is_recorded=True)

    assert (9, 1, False) == (found["rate"], found["lost"], "p99" in found)


def test_latencies_are_added_up_and_taken_apart() -> None:
    """By buckets; least and largest are kept where they are known."""
    early, late = latency_of(10, 2000), latency_of(10, 2000, 500_000)

    assert 1 == late.since(early).count
    assert {"p50": 507903, "max": 507903}.items() <= late.since(early).percentiles_ns().items()
    assert (5, 10, 500_000) == ((early + late).count, (early + late).words[2], (early + late).words[3])
    assert {} == Latency().percentiles_ns()


def write(file: CounterFile, sent: int, received: int) -> list[CounterBlock]:
    """Counters of one guest; they are gone when nobody holds them."""
    source = file.allocate("traffic_source", "guest=a", len(TRAFFIC_SOURCE_COUNTERS))
    source.set(0, sent)
    sink = file.allocate("traffic_sink", "guest=a", len(TRAFFIC_SINK_COUNTERS) + 4 + len(histogram_bounds()))
    sink.set(0, received)
    return [source, sink]


def test_a_guest_that_was_replaced_counts_on(tmp_path: Path) -> None:
    """What the one before had counted is kept, also while there is none."""
    path = tmp_path / "a.counters"
    counter = Counter({"a": path, "b": tmp_path / "never.counters"})
    first = write(CounterFile.create(path, 16 << 10), 100, 40)
    counter.look()
    path.unlink()
    counter.look()
    between = counter.total()
    second = write(CounterFile.create(path, 16 << 10), 5, 2)
    counter.look()

    assert (2, 2) == (len(first), len(second))
    assert ((100, 40), (105, 42)) == (
        (between.sent, between.received),
        (counter.total().sent, counter.total(["a"]).received),
    )
    assert counter.total(["b"]) == Counts()


def test_last_words_of_a_guest_are_read_after_its_file_is_gone(tmp_path: Path) -> None:
    """What it counted between the last look and its end."""
    path = tmp_path / "a.counters"
    counter = Counter({"a": path})
    source, sink = write(CounterFile.create(path, 16 << 10), 100, 40)
    counter.look()
    source.set(0, 130)
    sink.set(0, 60)
    path.unlink()

    counter.look()

    assert (130, 60) == (counter.total().sent, counter.total().received)
    counter.close()
    assert (130, 60) == (counter.total().sent, counter.total().received)


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("p99 < 100us", 99_999, True),
        ("p99 < 100us", 100_000, False),
        ("p99.9 <= 1ms", 1e6, True),
        ("loss <= 0.1%", 0.001, True),
        ("loss == 0", 0.0001, False),
        ("rate >= 1.5M", 1.5e6, True),
        ("lost > 3", 3, False),
        ("max < 1s", None, False),
    ],
)
def test_a_threshold_holds_or_does_not(text: str, value: float | None, holds: bool) -> None:
    """A figure that was not measured meets none."""
    assert holds is parse_threshold(text).holds(value)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (say_time(38_400), "38.4 µs"),
        (say_time(None), "-"),
        (say_time(999.9), "1000 ns"),
        (say_rate(1_250_000), "1.25 M/s"),
        (say_rate(0), "0/s"),
        (say_count(9999), "9999"),
        (say_count(12_345), "12.3 k"),
        (say_figure("loss", 0.0012), "0.12 %"),
        (say_figure("bits", 2.5e9), "2.5 Gbit/s"),
        (say_figure("p99", 1.5e6), "1.5 ms"),
    ],
)
def test_figures_are_written_as_people_say_them(said: str, expected: str) -> None:
    """Three digits and a unit."""
    assert expected == said


def test_a_run_is_good_when_it_ended_and_everything_holds() -> None:
    """Each of the four alone spoils it."""
    bad = judge([parse_threshold("p99 < 1ns")], {"p99": 5.0})

    assert result_of().is_good
    assert not result_of(verdicts=bad).is_good
    assert not result_of(outcome=Outcome(state="broken", detail="guest load-1 ended")).is_good
    assert not result_of(limit=0).is_good


def test_the_page_has_the_whole_result_inside_and_nothing_that_runs() -> None:
    """A name from a file is text, whatever it says."""
    result = result_of(guests=[GuestResult(name="</script><script>alert(1)", role="sends", sent=1, received=0)])

    page = html_page(result)

    inside = page.split('id="result">')[1].split("</script>")[0]
    assert result == msgspec.json.decode(inside.replace("<\\/", "</"), type=Result)
    assert "<script>alert" not in page.split("<script type")[0]
    assert 2 == page.count("<polyline")


def test_markdown_names_figures_thresholds_and_the_steps_of_a_search() -> None:
    """In units for people."""
    trial = Trial(rate=1e6, figures={}, passes=False, why_not="5 frames lost (0.001%)")
    text = markdown(result_of(limit=5e5, trials=[trial]))

    for line in ("| p99 | 1.02 µs |", "| loss == 0 | 0 % | yes |", "| 1 M/s | fails | 5 frames lost (0.001%) |"):
        assert line in text
    assert "limit of each sender: 500 k/s" in text


def test_what_is_written_down_is_there_at_once(tmp_path: Path) -> None:
    """A line is flushed when it is written."""
    store = Store(tmp_path / "deep" / "run")
    store.sample(SAMPLE)
    store.trial(Trial(rate=1, figures={}, passes=True))

    lines = (store.folder / "samples.jsonl").read_text().splitlines()
    store.finish(result_of())

    assert [SAMPLE] == [msgspec.json.decode(line, type=Sample) for line in lines]
    assert "small" == json.loads((store.folder / "result.json").read_text())["profile"]["name"]
    assert {"samples.jsonl", "trials.jsonl", "result.json", "report.md", "report.html"} == {
        path.name for path in store.folder.iterdir()
    }


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    """Nothing of it is touched."""
    (tmp_path / "mine").write_text("x")

    with pytest.raises(ExistsError, match="is not empty"):
        Store(tmp_path)

    assert ["mine"] == [path.name for path in tmp_path.iterdir()]


def test_a_place_that_cannot_be_a_folder_is_told(tmp_path: Path) -> None:
    """A file is in the way."""
    (tmp_path / "file").write_text("x")

    with pytest.raises(ResourceError, match=r"cannot write results into .*: Not a directory"):
        Store(tmp_path / "file" / "run")


def test_a_disk_that_is_full_ends_the_writing_and_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on; what was written before stays, and no report is half there."""
    store = Store(tmp_path / "run")
    store.sample(SAMPLE)

    def full(_self: Path, _content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    store.finish(result_of())

    assert "No space left on device" in str(store.problem)
    assert ["samples.jsonl"] == [path.name for path in store.folder.iterdir()]

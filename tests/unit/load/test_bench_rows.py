"""Rows, the registry, and how both are printed."""

import io
import json

import pytest

from vbnet.errors import NotFoundError, UsageError
from vbnet.load import bench
from vbnet.load.bench.machine import Machine
from vbnet.load.bench.registry import BENCHES
from vbnet.load.bench.report import Report, as_markdown, as_text, in_words
from vbnet.load.bench.row import Row
from vbnet.load.bench.summary import AtLeast, AtMost, Summary, Wanted

MACHINE = Machine(
    processor="Example",
    cores=2,
    is_virtual=True,
    caches="L1 48K",
    memory_bytes=8 << 30,
    huge_pages=0,
    kernel="6.1",
    python="3.11",
)


def summary(median: float) -> Summary:
    """Samples around ``median``."""
    return Summary(minimum=median / 2, median=median, maximum=median * 2, count=3)


def row(*, placement: str = "near", wanted: Wanted | None = None, ratio: float = 0.5) -> Row:
    """A row of the bench ``ring`` with a baseline of 50 M/s."""
    baseline = ("bare ring", summary(50e6))
    params: dict[str, str | int | float] = {"frame_bytes": 64}
    return Row.of("ring", params, "frames/s", summary(50e6 * ratio), placement, baseline=baseline, wanted=wanted)


def test_a_row_is_judged_by_its_ratio_when_it_has_a_baseline() -> None:
    """The limit is one of the ratio, not of the figure."""
    missed = row(wanted=AtLeast(0.8), ratio=0.5)
    reached = row(wanted=AtLeast(0.8), ratio=0.9)

    assert (0.5, False) == (missed.ratio, missed.is_reached)
    assert (0.9, True) == (reached.ratio, reached.is_reached)


def test_a_row_without_a_baseline_is_judged_by_its_figure() -> None:
    """``idle`` and ``launch`` are held against fixed figures."""
    judged = Row.of("idle", {"guests": 100}, "% of one core", summary(0.5), "-", wanted=AtMost(1.0))

    assert (None, True) == (judged.ratio, judged.is_reached)


@pytest.mark.parametrize("placement", ["moved", "near, busy", "moved, busy"])
def test_a_disturbed_row_is_not_judged(placement: str) -> None:
    """A figure from a machine that did not hold still neither reaches nor misses anything."""
    assert None is row(placement=placement, wanted=AtLeast(0.1)).is_reached


def test_json_holds_every_field_of_every_row() -> None:
    """Programs read one document: the machine and the rows, each with what the table shows."""
    out = io.StringIO()
    report = Report("json", MACHINE, out)
    report.add(row(wanted=AtLeast(0.8)))

    report.finish()

    document = json.loads(out.getvalue())
    [found] = document["rows"]
    assert "Example" == document["machine"]["processor"]
    assert {"name": "ring", "params": {"frame_bytes": 64}, "value": 25e6, "unit": "frames/s", "placement": "near"} == {
        name: found[name] for name in ("name", "params", "value", "unit", "placement")
    }
    assert ("bare ring", 50e6, 0.5) == (found["baseline"], found["baseline_value"], found["ratio"])
    assert {"minimum": 12.5e6, "median": 25e6, "maximum": 50e6, "count": 3} == found["samples"]
    assert {"type": "at least", "limit": 0.8} == found["wanted"]


def test_a_table_off_a_terminal_is_plain_text() -> None:
    """One line a row, no box characters, empty columns left out."""
    out = io.StringIO()
    report = Report("table", MACHINE, out)
    report.add(row(wanted=AtLeast(0.8)))

    report.finish()

    header, line = out.getvalue().splitlines()[-2:]
    assert header.startswith("bench  what")
    assert "note" not in header
    assert line.startswith("ring   frame_bytes 64  25 M/s")
    assert line.endswith("≥ 0.8 missed  near")
    assert out.getvalue().isascii() is False
    assert "│" not in out.getvalue()


def test_markdown_tables_have_one_line_a_row() -> None:
    """What the documentation shows is made by the bench itself."""
    header, rule, *lines = as_markdown([row(), row()]).splitlines()

    assert ["what", "median", "min .. max", "against", "its median", "ratio", "placement"] == [
        cell.strip() for cell in header.strip("|").split("|")
    ]
    assert 2 == len(lines)
    assert {8} == {line.count("|") for line in (header, rule, *lines)}


def test_plain_tables_have_columns_of_one_width_and_none_that_says_nothing() -> None:
    """What a bake-off prints of benches is what they print themselves."""
    header, *lines = as_text([row(), row()]).splitlines()

    assert header.split("  ")[0] == "bench"
    assert "note" not in header
    assert "wanted" not in header
    assert [header.index("placement")] * 2 == [line.index("near") for line in lines]


def test_figures_are_said_in_the_units_people_use() -> None:
    """Millions a second, microseconds, kibibytes."""
    said = [in_words(52.1e6, "frames/s"), in_words(240.0, "ns"), in_words(2048.0, "bytes"), in_words(5e6, "ns")]

    assert ["52.1 M/s", "0.24 µs", "2 KiB", "5000 µs"] == said


def test_every_bench_has_a_name_and_says_what_it_measures() -> None:
    """``vbnet bench list`` shows one line each."""
    listed = dict(bench.list_benches())

    frames = {
        "ring",
        "switch",
        "rtt",
        "rtt.asleep",
        "python",
        "idle",
        "launch",
        "scale",
        "limit",
        "netns.tcp",
        "offloads",
    }
    signals = {"fastcall", "fastcall.python", "signal.raise", "signal.priority", "signal.eoi"}
    timers = {"timer.arm", "timer.late"}
    costs = {"capture.cost", "metrics.cost", "metrics.scrape", "offloads"}
    assert frames | signals | timers | costs | {"state", "sched", "blk", "virtio-net", "vhost", "vhost.rtt"} == set(
        listed
    )
    assert all(summary.endswith(".") and "\n" not in summary for summary in listed.values())
    assert list(listed) == list(BENCHES)


def test_an_unknown_bench_is_refused_before_anything_runs() -> None:
    """The error names what there is."""
    rows: list[Row] = []

    with pytest.raises(NotFoundError, match=r"rings.*there are ring, switch"):
        bench.run(["limit", "rings"], on_row=rows.append)

    assert [] == rows


def test_the_list_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """``list`` prints every bench and cannot be mixed with names; JSON has the same."""
    assert 0 == bench.main(["list"])
    table = capsys.readouterr().out
    assert 0 == bench.main(["list"], format="json")
    document = json.loads(capsys.readouterr().out)

    assert [entry["name"] for entry in document] == [line.split()[0] for line in table.splitlines()]
    with pytest.raises(UsageError):
        bench.main(["list", "ring"])
    with pytest.raises(UsageError):
        bench.main(["list"], format="xml")

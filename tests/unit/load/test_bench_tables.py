"""The tool that puts measured tables into the documentation."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.bakeoff_records import readings, record_of
from vbnet.load.bench.registry import BENCHES
from vbnet.load.bench.row import Row
from vbnet.load.bench.summary import AtLeast, Summary

ROOT = Path(__file__).parents[3]


@pytest.fixture
def tool() -> Any:
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location("bench_tables", ROOT / "tools/bench_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(tool: Any, *names: str) -> Any:
    """A run of these benches, through JSON and back."""
    samples = Summary(minimum=1.0, median=2.0, maximum=3.0, count=3)
    rows = [
        Row.of(name, {"frame_bytes": 64}, "s", samples, "near", baseline=("bare", samples), wanted=AtLeast(0.8))
        for name in names
    ]
    machine = {
        "processor": "Example",
        "cores": 2,
        "is_virtual": False,
        "caches": "L1 48K",
        "memory_bytes": 1 << 30,
        "huge_pages": 0,
        "kernel": "6.1",
        "python": "3.11",
    }
    run = msgspec.json.decode(msgspec.json.encode({"machine": machine, "rows": rows}), type=tool.Run)
    assert rows == run.rows
    return run


def test_tables_of_a_run_replace_those_of_the_page(tool: Any) -> None:
    """What was measured is replaced, what was not stays, text between is left alone."""
    page = "a\n<!-- bench: ring -->\nold\n<!-- end -->\nb\n<!-- bench: idle -->\nkept\n<!-- end -->\n"

    found = tool.filled_in(page, run_of(tool, "ring"))

    assert "old" not in found
    assert "| frame_bytes 64 | 2 s |" in found
    assert found.endswith("b\n<!-- bench: idle -->\nkept\n<!-- end -->\n")


@pytest.mark.parametrize(("names", "is_whole"), [(("ring",), False), (("ring", "idle"), True)])
def test_page_names_the_machine_of_every_table(tool: Any, names: tuple[str, ...], is_whole: bool) -> None:
    """A part measured elsewhere does not pass for the whole."""
    places = "".join(f"<!-- bench: {name} -->\nold\n<!-- end -->\n" for name in ("machine", "ring", "idle"))
    run = run_of(tool, *names)

    found = tool.filled_in(places, run)

    assert is_whole == found.startswith(f"<!-- bench: machine -->\n{run.machine}\n")
    assert is_whole != (f"Measured on another machine: {run.machine}." in found)
    assert found == tool.filled_in(found, run)


def test_tables_of_a_bake_off_are_of_models_as_they_are(tool: Any) -> None:
    """One line a model with what judges it, and one a model in each workload; none of what was switched off."""
    found = [
        *readings("venet", "flood", 2e6, 3e6, 4e6),
        *readings("e1000", "flood", 4e5),
        *readings("venet without parking", "flood", 1e6),
        *readings("venet", "requests", 30e3, p99=90_000),
    ]
    record = record_of(found, contest={"models": ["venet", "e1000"]})
    run = tool.Run(record.machine, [], record)
    page = "<!-- bench: contest -->\n<!-- end -->\n<!-- bench: models -->\n<!-- end -->\n"

    made = tool.filled_in(page, run)

    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in made.splitlines() if line.startswith("|")]
    assert [["model", "flood, rate", "requests, p99"], ["venet", "3 M/s", "90 µs"], ["e1000", "400 k/s", "-"]] == [
        *rows[:1],
        *rows[2:4],
    ]
    assert [["flood", "venet"], ["flood", "e1000"], ["requests", "venet"]] == [row[:2] for row in rows[6:]]


@pytest.mark.parametrize("page", ["README.md", "docs/bakeoff.md"])
def test_pages_say_what_the_committed_bake_off_measured(tool: Any, page: str) -> None:
    """Figures there are never typed by hand, nor of a run that somebody stopped or dropped out of."""
    run = tool.Run.read(ROOT / "docs/bakeoff/result.json")
    text = (ROOT / page).read_text()

    assert ("finished", {}) == (run.record.state, run.record.missing)
    assert {"venet", "virtio-net", "e1000", "rtl8139"} <= set(run.record.contest["models"])
    assert text == tool.filled_in(text, run)


def test_the_page_has_a_place_for_every_bench() -> None:
    """No bench is measured and never told."""
    page = (ROOT / "docs/performance.md").read_text()

    places = set(re.findall(r"<!-- bench: ([a-z.-]+) -->", page))

    assert set(BENCHES) | {"machine"} == places

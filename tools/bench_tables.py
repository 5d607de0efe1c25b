"""Puts the tables of a run into the documentation: figures there are never typed by hand.

    vbnet bench all --format json > bench.json
    python tools/bench_tables.py bench.json docs/performance.md

    vbnet bakeoff -o report
    cp report/result.json report/report.md docs/bakeoff/
    python tools/bench_tables.py docs/bakeoff/result.json README.md docs/bakeoff.md

Between ``<!-- bench: NAME -->`` and ``<!-- end -->`` a page gets the rows of that bench, and between ``<!-- bench:
machine -->`` and ``<!-- end -->`` the machine they were measured on; ``<!-- bench: wanted -->`` gets every row that
has to reach something, of all benches. Of a bake-off, ``<!-- bench: models -->`` gets every model in every workload,
and ``<!-- bench: contest -->`` the one figure of each that matters most. What the run did not measure stays. A run
that measured a part of the page on another machine says so below each of its tables.
"""

import re
import sys
from pathlib import Path

import msgspec

from vbnet.load.bakeoff.figures import FIGURES
from vbnet.load.bakeoff.record import Record, cells
from vbnet.load.bakeoff.report import result_rows
from vbnet.load.bakeoff.workloads import WORKLOADS
from vbnet.load.bench.machine import Machine
from vbnet.load.bench.report import as_markdown
from vbnet.load.bench.row import Row
from vbnet.load.page import markdown_table

PLACE = re.compile(r"(<!-- bench: ([a-z.-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
OF_MANY = {"machine", "wanted", "models", "contest"}
"""Places that are not of one bench."""


class Run(msgspec.Struct):
    """What ``vbnet bench --format json`` prints, or what a bake-off has of it."""

    machine: Machine
    rows: list[Row]
    record: Record | None = None

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read what either of them wrote."""
        content = path.read_bytes()
        if "readings" not in msgspec.json.decode(content):
            return msgspec.json.decode(content, type=cls)
        record = msgspec.json.decode(content, type=Record)
        return cls(record.machine, record.aside, record)


def models(record: Record) -> str:
    """Return the table of models as they are, without what venet does with a mechanism switched off."""
    whole = {cell.subject for cell in cells(record.readings) if not cell.without}
    rows = [row for row in result_rows(record) if row["subject"] in whole]
    return "\n".join(markdown_table(list(rows[0]), [list(row.values()) for row in rows])) + "\n"


def contest(record: Record) -> str:
    """Return one row a model with what judges it in each workload, medians."""
    judges = {name: workload.judged_by for name, workload in WORKLOADS.items()}
    found: dict[str, dict[str, str]] = {}
    for cell in cells(record.readings):
        if not cell.without:
            figure = judges[cell.workload]
            said = FIGURES[figure].say(cell.figures[figure].median) if figure in cell.figures else "-"
            found.setdefault(cell.workload, {})[cell.model] = said
    workloads = [name for name in judges if name in found]
    head = ["model", *(f"{name}, {judges[name]}" for name in workloads)]
    rows = [[model, *(found[name].get(model, "-") for name in workloads)] for model in record.contest["models"]]
    return "\n".join(markdown_table(head, rows)) + "\n"


OF_RECORDS = {"models": models, "contest": contest}
"""Tables of a whole bake-off."""


def filled_in(page: str, run: Run) -> str:
    """Return the page with every table that the run has figures for."""
    places = {place[2]: place[3].strip() for place in PLACE.finditer(page)}
    is_whole = set(places) - OF_MANY <= {row.name for row in run.rows}
    is_elsewhere = not is_whole and places.get("machine") not in {None, str(run.machine)}

    def table(place: re.Match[str]) -> str:
        name = place[2]
        if name == "machine":
            return f"{place[1]}{run.machine}\n{place[4]}" if is_whole else place[0]
        if name in OF_RECORDS:
            return f"{place[1]}\n{OF_RECORDS[name](run.record)}\n{place[4]}" if run.record else place[0]
        rows = [row for row in run.rows if row.name == name or (name == "wanted" and row.wanted is not None)]
        if not rows:
            return place[0]
        told = as_markdown(rows, with_names=name == "wanted")
        if is_elsewhere:
            told += f"\nMeasured on another machine: {run.machine}.\n"
        return f"{place[1]}\n{told}\n{place[4]}"

    return PLACE.sub(table, page)


def main() -> None:
    """Rewrite the pages in place."""
    run = Run.read(Path(sys.argv[1]))
    for page in map(Path, sys.argv[2:]):
        page.write_text(filled_in(page.read_text(), run))


if __name__ == "__main__":
    main()

"""Puts the tables of a bench run into the documentation: figures there are never typed by hand.

    vbnet bench all --format json > bench.json
    python tools/bench_tables.py bench.json docs/performance.md

Between ``<!-- bench: NAME -->`` and ``<!-- end -->`` the page gets the rows of that bench, and between
``<!-- bench: machine -->`` and ``<!-- end -->`` the machine they were measured on; ``<!-- bench: wanted -->`` gets
every row that has to reach something, of all benches. What the run did not measure stays.
"""

import re
import sys
from pathlib import Path

import msgspec

from vbnet.load.bench.machine import Machine
from vbnet.load.bench.report import as_markdown
from vbnet.load.bench.row import Row

PLACE = re.compile(r"(<!-- bench: ([a-z.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Run(msgspec.Struct):
    """What ``vbnet bench --format json`` prints."""

    machine: Machine
    rows: list[Row]


def filled_in(page: str, run: Run) -> str:
    """Return the page with every table that the run has figures for."""

    def table(place: re.Match[str]) -> str:
        name = place[2]
        if name == "machine":
            return f"{place[1]}{run.machine}\n{place[3]}"
        if name == "wanted":
            rows = [row for row in run.rows if row.wanted is not None]
            return f"{place[1]}\n{as_markdown(rows, with_names=True)}\n{place[3]}" if rows else place[0]
        rows = [row for row in run.rows if row.name == name]
        return f"{place[1]}\n{as_markdown(rows)}\n{place[3]}" if rows else place[0]

    return PLACE.sub(table, page)


def main() -> None:
    """Rewrite the page in place."""
    run = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Run)
    page = Path(sys.argv[2])
    page.write_text(filled_in(page.read_text(), run))


if __name__ == "__main__":
    main()

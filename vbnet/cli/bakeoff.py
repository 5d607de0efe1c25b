"""`vbnet bakeoff`: the same workloads over every model of network card, and over venet without each mechanism."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vbnet.cli import measuring, output
from vbnet.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from vbnet.load.bakeoff.contest import Contest
    from vbnet.load.bakeoff.record import Reading, Record
    from vbnet.load.store import ReportFolder

app = output.application(
    "Put every model of network card, and venet without each of its mechanisms, through the same workloads on this "
    "machine: throughput, latency, wake-ups, traps, system calls and processor time of each, and what others offer "
    "beside it.\n\nWithout a file it measures everything. It brings up labs of its own, and takes them down. Exit code "
    "1 when a model could not go on; after Ctrl-C the report is of what was measured until then.",
    [
        ("vbnet bakeoff --quick", "everything, in three minutes"),
        ("vbnet bakeoff -o results", "at full length; reports go there"),
        ("vbnet bakeoff mine.yaml --quick", "only what a file names"),
        ("vbnet bakeoff -o new --compare old/result.json", "and what changed beyond chance"),
    ],
)


@app.command()
def bakeoff(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="What to measure (YAML).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short measurements, and no benches of others.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="What the order of measurements follows from.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for readings, result and reports.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="OLD.json", help="The result.json of an earlier bake-off.")
    ] = None,
    *,
    check: Annotated[bool, typer.Option("--check", help="Check the file and print it; start nothing.")] = False,
    how: FormatOption = Format.table,
) -> None:
    """Hold every model against every other."""
    from vbnet.load.bakeoff.contest import QUICK, load_contest, settings  # noqa: PLC0415 - native code stays out of --help
    from vbnet.load.bakeoff.record import load_record  # noqa: PLC0415

    contest = load_contest(file, over={**(QUICK if quick else {}), "seed": seed})
    if check:
        output.print_record(settings(contest), how)
        return
    old = load_record(compare) if compare is not None else None
    sys.exit(_run(contest, out, old, is_quick=quick, how=how))


def _run(contest: Contest, out: Path | None, old: Record | None, *, is_quick: bool, how: Format) -> int:
    from vbnet.load.bakeoff.report import html_page, markdown  # noqa: PLC0415 - with the run
    from vbnet.load.store import ReportFolder, as_json  # noqa: PLC0415

    folder = ReportFolder(out, first="readings") if out is not None else None
    record = asyncio.run(_measure(contest, folder, is_quick=is_quick, how=how))
    if folder is not None:
        folder.replace("result.json", as_json(record))
        folder.replace("report.md", markdown(record).encode())
        folder.replace("report.html", html_page(record).encode())
        folder.close()
    if how is Format.json:
        output.print_json(record)
    else:
        _print(record, old)
    return measuring.outcome(
        folder,
        how,
        "readings and reports",
        is_interrupted=record.state == "interrupted",
        is_good=not record.missing,
    )


async def _measure(contest: Contest, folder: ReportFolder | None, *, is_quick: bool, how: Format) -> Record:
    from vbnet.load.bakeoff.run import Bakeoff  # noqa: PLC0415 - loads native code

    with _Shown(how, folder, "the bake-off", {"stopping", "stopped"}) as watch:
        return await measuring.until_stopped(lambda stop: Bakeoff(contest, watch=watch, is_quick=is_quick, stop=stop))


class _Shown(measuring.Shown):
    """Shows a bake-off as it goes, and writes it down."""

    def reading(self, reading: Reading, done: int, total: int) -> None:
        from vbnet.load.figures import say_rate, say_time  # noqa: PLC0415 - with the run

        self.progress.close()
        if self.folder is not None:
            self.folder.append("readings", reading)
        p99 = say_time(reading.figures.get("p99"))
        self.note(
            f"{done:4}/{total}  {reading.workload:<10}  {reading.subject:<34}  "
            f"{say_rate(reading.figures.get('rate')):>8}  p99 {p99:>7}"
        )

    def missing(self, subject: str, why: str) -> None:
        self.note(f"vbnet: {subject} cannot go on: {why}; the others do")

    def aside(self, name: str) -> None:
        self.note(f"bench {name}")


def _print(record: Record, old: Record | None) -> None:
    from vbnet.load.bakeoff import report, verdict  # noqa: PLC0415 - with the run
    from vbnet.load.bench.report import as_text  # noqa: PLC0415 - with the run

    rows: list[dict[str, Any]] = report.result_rows(record)
    _section(f"bake-off: {report.headline(record)}", rows)
    _section("against other models", report.comparison_rows(verdict.comparisons(record)))
    _section("what each mechanism is worth", report.worth_rows(verdict.worths(record)))
    if record.aside:
        output.say(f"beside it\n{as_text(record.aside).rstrip()}")
    if old is not None:
        changes = report.change_rows(verdict.changes(old, record))
        _section("changed beyond chance" if changes else "nothing changed beyond chance", changes)
    for note in record.notes:
        output.note(f"vbnet: {note}")


def _section(title: str, rows: list[dict[str, Any]]) -> None:
    output.say(title)
    if rows:
        output.print_rows(rows, list(rows[0]), Format.table)

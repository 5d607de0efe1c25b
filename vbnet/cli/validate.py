"""`vbnet validate`: check a lab file without starting anything, or print its JSON Schema."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from vbnet.bus.rundir import RunDir, run_root
from vbnet.cli import output
from vbnet.cli.output import Format, FormatOption
from vbnet.cluster.plan import make_plan
from vbnet.cluster.privileges import check_privileges
from vbnet.cluster.source import Problem, TopologyError
from vbnet.cluster.topology import json_schema, load_topology
from vbnet.errors import NotFoundError, UsageError

app = output.application(
    "Check lab files: every problem is printed as file:line: what; what to do.",
    [
        ("vbnet validate lab.yaml", "check a file"),
        ("vbnet validate lab.yaml --here", "also: does this machine allow it?"),
        ("vbnet validate --schema", "the JSON Schema, for editors"),
    ],
)


@app.command()
def validate(
    files: Annotated[list[Path] | None, typer.Argument(help="Lab files (YAML).", show_default=False)] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of lab files.")] = False,
    here: Annotated[bool, typer.Option("--here", help="Also check that this machine allows it.")] = False,
    how: FormatOption = Format.table,
) -> None:
    """Check lab files."""
    if schema:
        output.print_json(json_schema())
        return
    if not files:
        raise UsageError("give a lab file, or --schema")
    results = [_check(file, here) for file in files]
    if how is Format.json:
        output.print_json(results)
    else:
        for result in results:
            if not result["problems"]:
                output.say(f"{result['file']}: no problem; guests: {result['guests']}")
    if any(result["problems"] for result in results):
        sys.exit(2)


def _check(file: Path, here: bool) -> dict[str, object]:
    problems: list[Problem] = []
    guests = 0
    try:
        lab_file = load_topology(file)
        guests = sum(1 for _ in make_plan(lab_file).guests)
        if here:
            check_privileges(lab_file)
            _check_folders(lab_file.topology.name)
    except TopologyError as error:
        problems = error.problems
    return {"file": str(file), "guests": guests, "problems": [_shown(file, problem) for problem in problems]}


def _check_folders(lab: str) -> None:
    """Check the folders in which the lab would run, as far as they are there.

    Raises:
        NotPermittedError: one is a link, another user's, or open to others.
    """
    for run_dir in (RunDir(run_root()), RunDir.for_node(lab)):
        with suppress(NotFoundError):
            run_dir.check()


def _shown(file: Path, problem: Problem) -> dict[str, object]:
    output.note(problem.render(str(file)))
    return {"line": problem.line, "what": problem.what, "fix": problem.fix}

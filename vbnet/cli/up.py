"""`vbnet up`: bring up the lab of a file, in the foreground or in the background."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from vbnet.cli import output
from vbnet.cli.detached import run_reporting, start_detached
from vbnet.cli.output import Format, FormatOption
from vbnet.cli.progress import Progress
from vbnet.cli.ps import COLUMNS, guest_rows
from vbnet.cluster.lab import READY_TIMEOUT_S, Lab
from vbnet.cluster.plan import Plan, make_plan
from vbnet.cluster.privileges import check_privileges
from vbnet.cluster.supervise import own_command, supervise
from vbnet.cluster.topology import load_topology

app = output.application(
    "Bring up the lab of a file: host node, switches, devices, guests.\n\nReady means that every guest can pass "
    "traffic. "
    "In the foreground the lab lasts until Ctrl-C or until all its guests have ended; then nothing of it is left.",
    [
        ("vbnet up lab.yaml", "run it here; Ctrl-C ends it"),
        ("vbnet up lab.yaml -d", "return when it is ready; `vbnet down` ends it"),
        ("vbnet up lab.yaml --dry-run", "print what would be done"),
    ],
)


@app.command()
def up(
    file: Annotated[Path, typer.Argument(help="The lab file (YAML).", show_default=False)],
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when the lab is ready.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; start nothing.")
    ] = False,
    *,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until every guest must be ready.")] = READY_TIMEOUT_S,
    how: FormatOption = Format.table,
    report_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Bring up the lab of a file."""
    lab_file = load_topology(file)
    check_privileges(lab_file)
    plan = make_plan(lab_file)
    if dry_run:
        _print_plan(plan, how)
    elif detach:
        _run_detached(file, plan, timeout, how)
    elif report_fd is not None:
        sys.exit(run_reporting(plan, timeout, report_fd))
    else:
        sys.exit(_run_here(plan, timeout, how))


def _print_plan(plan: Plan, how: Format) -> None:
    if how is Format.json:
        output.print_json(plan)
        return
    for number, line in enumerate(plan.describe(), 1):
        output.say(f"{number:>4}  {line}")


def _run_here(plan: Plan, timeout_s: float, how: Format) -> int:
    with Progress(how) as progress:
        lab = Lab(plan, watch=progress.show)

        def tell() -> None:
            progress.close()
            if how is Format.table:
                output.print_rows(guest_rows(lab.state), COLUMNS, how)
                output.note(f"lab {plan.lab} is up; Ctrl-C ends it")

        return asyncio.run(supervise(lab, timeout_s, tell))


def _run_detached(file: Path, plan: Plan, timeout_s: float, how: Format) -> None:
    command = [*own_command(), "up", str(file.resolve()), "--timeout", f"{timeout_s:g}"]
    start_detached(command, plan.lab, Progress(how))
    if how is Format.table:
        output.note(f"lab {plan.lab} is up; `vbnet ps` lists its guests, `vbnet down` ends it")

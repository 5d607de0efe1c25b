"""`vbnet down`: end a lab, from any shell, and remove every trace of it."""

from __future__ import annotations

from typing import Annotated

import typer

from vbnet.cli import output
from vbnet.cli.labs import LabArgument
from vbnet.cli.output import Format, FormatOption
from vbnet.cluster.state import choose_lab, lab_folders
from vbnet.cluster.supervise import stop_lab
from vbnet.errors import UsageError

app = output.application(
    "End a lab and remove every trace of it: processes, namespaces, TAPs, sockets, files.\n\nAsks the lab's "
    "supervisor; if "
    "that does not answer or is dead, ends what it recorded by force.",
    [
        ("vbnet down", "end the only lab"),
        ("vbnet down demo", "end one of several"),
        ("vbnet down --all", "end all of them"),
    ],
)


@app.command()
def down(
    lab: LabArgument = None,
    every: Annotated[bool, typer.Option("--all", help="End every lab of this user.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait before using force.")] = 20.0,
    how: FormatOption = Format.table,
) -> None:
    """End a lab and remove every trace of it."""
    if every and lab is not None:
        raise UsageError("give the name of a lab or --all, not both")
    folders = lab_folders() if every else [choose_lab(lab)]
    results = [{"lab": folder.name, "result": stop_lab(folder, timeout)} for folder in folders]
    if how is Format.json:
        output.print_json(results)
    for result in results if how is Format.table else []:
        output.say(f"lab {result['lab']} is down ({result['result']})")

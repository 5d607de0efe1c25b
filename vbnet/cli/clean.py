"""`vbnet clean`: remove what killed labs and host nodes left."""

from __future__ import annotations

from typing import Annotated

import typer

from vbnet.cli import output
from vbnet.cli.output import Format, FormatOption
from vbnet.cluster import clean as cleaning

app = output.application(
    "Remove what killed labs and host nodes left: processes, TAPs, sockets, files.\n\nRunning labs are not "
    "touched, nor is "
    "any process that merely got the number of one that was recorded.",
    [("vbnet clean --dry-run", "only list it"), ("vbnet clean", "remove it")],
)


@app.command()
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed; remove nothing.")] = False,
    how: FormatOption = Format.table,
) -> None:
    """Remove what killed labs and host nodes left."""
    found = cleaning.find_leftovers() if dry_run else cleaning.clean()
    output.print_rows(found, ("lab", "kind", "name", "detail"), how, empty="nothing is left over")

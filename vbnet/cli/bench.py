"""`vbnet bench`: measure vbnet beside its baselines."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vbnet.cli import output
from vbnet.cli.output import Format, FormatOption

app = output.application(
    "Measure vbnet beside its baselines, in one run: the bare ring limit built into the bench, and peers when "
    "installed.",
    [
        ("vbnet bench list", "what there is"),
        ("vbnet bench ring --quick", "one, shortly"),
        ("vbnet bench all --format json", "for a program"),
    ],
)


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="list|all|NAME...", help="Benches to run; `list` lists them.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter runs, rougher numbers.")] = False,
    how: FormatOption = Format.table,
) -> None:
    """Measure vbnet beside its baselines."""
    from vbnet.load import bench as benches  # noqa: PLC0415 -- loads native code

    sys.exit(benches.main(names or ["list"], quick=quick, format=how.value))

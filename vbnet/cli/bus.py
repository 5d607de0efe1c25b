"""`vbnet bus`: the buses of a host node."""

from __future__ import annotations

from typing import Annotated

import typer

from vbnet.bus.operator import SyncOperator
from vbnet.cli import output
from vbnet.cli.connection import on_host
from vbnet.cli.output import Format, FormatOption

app = output.application(
    "List, create and delete buses. A bus is a container: guests on it see the devices plugged into it.",
    [
        ("vbnet bus list", "all buses"),
        ("vbnet bus create lab", "an empty one"),
        ("vbnet bus delete lab --force", "with all on it"),
    ],
    is_group=True,
)

NameArgument = Annotated[str, typer.Argument(help="Name of the bus.", show_default=False)]


@app.command("list")
@on_host
def list_(
    operator: SyncOperator,
    *,
    how: FormatOption = Format.table,
) -> None:
    """List buses with their devices and guests."""
    output.print_rows(operator.bus_list(), ("name", "is_private", "devices", "guests"), how, empty="no bus yet")


@app.command()
@on_host
def create(
    operator: SyncOperator,
    name: NameArgument,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Create an empty bus."""
    operator.bus_create(name)
    output.print_done(f"bus {name} created", {"name": name, "result": "created"}, how)


@app.command()
@on_host
def delete(
    operator: SyncOperator,
    name: NameArgument,
    force: Annotated[bool, typer.Option("--force", help="End its guests and unplug its devices first.")] = False,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Delete a bus."""
    operator.bus_delete(name, force=force)
    output.print_done(f"bus {name} deleted", {"name": name, "result": "deleted"}, how)

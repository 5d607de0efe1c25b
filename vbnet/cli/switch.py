"""`vbnet switch`: the switches of a host node."""

from __future__ import annotations

from typing import Annotated

import typer

from vbnet.bus.operator import SyncOperator
from vbnet.cli import output
from vbnet.cli.connection import on_host
from vbnet.cli.output import Format, FormatOption

app = output.application(
    "List, create and delete switches, and show the MAC addresses they learned.",
    [("vbnet switch list", "all switches"), ("vbnet switch macs lan", "what a switch learned")],
    is_group=True,
)

NameArgument = Annotated[str, typer.Argument(help="Name of the switch.", show_default=False)]


@app.command("list")
@on_host
def list_(
    operator: SyncOperator,
    *,
    how: FormatOption = Format.table,
) -> None:
    """List switches with their ports."""
    ports = operator.port_list()
    rows = [
        {"name": name, "ports": [port["name"] for port in ports if port["switch"] == name]}
        for name in operator.switch_list()
    ]
    output.print_rows(rows, ("name", "ports"), how, empty="no switch yet")


@app.command()
@on_host
def macs(
    operator: SyncOperator,
    name: NameArgument,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Show the MAC addresses a switch learned, and on which port."""
    names = {port["id"]: port["name"] for port in operator.port_list()}
    rows = [{**row, "name": names.get(row["port"])} for row in operator.switch_macs(name)]
    output.print_rows(rows, ("mac", "port", "name", "age_s"), how, empty=f"{name} has learned nothing yet")


@app.command()
@on_host
def create(
    operator: SyncOperator,
    name: NameArgument,
    ageing: Annotated[float, typer.Option(min=1, help="Seconds after which a silent address is forgotten.")] = 300.0,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Create a switch."""
    operator.switch_create(name, ageing_s=ageing)
    output.print_done(f"switch {name} created", {"name": name, "result": "created"}, how)


@app.command()
@on_host
def delete(
    operator: SyncOperator,
    name: NameArgument,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Delete a switch without ports."""
    operator.switch_delete(name)
    output.print_done(f"switch {name} deleted", {"name": name, "result": "deleted"}, how)

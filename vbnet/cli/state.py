"""`vbnet state`: what state devices hold right now."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from vbnet.cli import output
from vbnet.cli.connection import KeysOption, NodeOption, ServerKeyOption, connect
from vbnet.cli.output import Format, FormatOption
from vbnet.errors import UsageError

app = output.application(
    "List state devices, and show their latest values.",
    [("vbnet state list", "all state devices"), ("vbnet state show position", "values, owners and ages of one")],
    is_group=True,
)

_TYPE = "state"


@app.command("list")
def list_(
    *,
    node: NodeOption = None,
    keys: KeysOption = None,
    server_key: ServerKeyOption = None,
    how: FormatOption = Format.table,
) -> None:
    """List state devices with their schemas."""
    with connect(node, keys, server_key) as operator:
        rows = [
            {"name": device.name, **{name: device.attributes[name] for name in ("schema", "records", "memory")}}
            for device in operator.device_list()
            if device.type == _TYPE
        ]
    output.print_rows(rows, ("name", "schema", "records", "memory"), how, empty="no state device yet")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of the device.", show_default=False)],
    *,
    node: NodeOption = None,
    keys: KeysOption = None,
    server_key: ServerKeyOption = None,
    how: FormatOption = Format.table,
) -> None:
    """Show the latest value of each record, whose it is, and how old."""
    with connect(node, keys, server_key) as operator:
        device = operator.device_get(name)
    if device.type != _TYPE:
        raise UsageError(f"{name} is no state device", device=name, type=device.type)
    rows: list[dict[str, Any]] = msgspec.json.decode(device.attributes["now"])
    output.print_rows(
        rows, ("record", "owner", "age_ms", "values"), how, empty=f"nobody has claimed a record of {name}"
    )

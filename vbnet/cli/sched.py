"""`vbnet sched`: scheduler coordinators of a host node."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vbnet.cli import output
from vbnet.cli.connection import KeysOption, NodeOption, ServerKeyOption, connect
from vbnet.cli.output import Format, FormatOption
from vbnet.errors import UsageError

app = output.application(
    "Show what scheduler coordinators do. They are devices: `device create s type=sched` makes one, "
    "`device set s enabled=0` switches it off.",
    [
        ("vbnet sched show s", "each thread: wanted, applied, boosted, refused"),
        ("vbnet sched show s --format json", "for a program"),
    ],
    is_group=True,
)

_COLUMNS = ("guest", "tid", "wanted", "applied", "is_running", "is_boosted", "age_s", "weight", "refusal")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of the device.", show_default=False)],
    *,
    node: NodeOption = None,
    keys: KeysOption = None,
    server_key: ServerKeyOption = None,
    how: FormatOption = Format.table,
) -> None:
    """Show every thread in hand, and those refused with the reason."""
    with connect(node, keys, server_key) as operator:
        device = operator.device_get(name)
    if device.type != "sched":
        raise UsageError(f"device {name!r} is of type {device.type!r}, no scheduler coordinator", device=name)
    rows = json.loads(device.attributes["threads"])
    output.print_rows(rows, _COLUMNS, how, empty="no thread takes part yet")

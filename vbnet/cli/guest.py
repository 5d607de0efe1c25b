"""`vbnet guest`: the guests of a host node."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from vbnet.bus.operator import SyncOperator
from vbnet.cli import output
from vbnet.cli.connection import KeysOption, NodeOption, ServerKeyOption, on_host, resolve, secrets
from vbnet.cli.output import Format, FormatOption
from vbnet.cli.wedged import guest_text

COLUMNS = ("name", "bus", "kind", "state", "pid", "devices", "faults", "age_s", "detail")

app = output.application(
    "List, reset and run guests.",
    [
        ("vbnet guest list", "all guests of the host node"),
        ("vbnet guest reset web-0", "close all it has open and show it its devices anew"),
        ("vbnet guest run hello.py:main --bus lab", "run a function as a guest, here"),
    ],
    is_group=True,
)


@app.command("list")
@on_host
def list_(
    operator: SyncOperator,
    *,
    how: FormatOption = Format.table,
) -> None:
    """List guests. A wedged one has a handler that does not return, a stuck one does nothing; the detail says more."""
    rows = [{**msgspec.to_builtins(guest), "detail": guest_text(guest)} for guest in operator.guest_list()]
    output.print_rows(rows, COLUMNS, how, empty="no guest yet")


@app.command()
@on_host
def reset(
    operator: SyncOperator,
    name: Annotated[str, typer.Argument(help="Name of the guest.", show_default=False)],
    *,
    how: FormatOption = Format.table,
) -> None:
    """Reset a guest without restarting it: close all it has open and show it its devices anew."""
    operator.guest_reset(name)
    output.print_done(f"guest {name} was reset", {"name": name, "result": "reset"}, how)


@app.command()
def run(
    target: Annotated[str, typer.Argument(help="`path/to/file.py:function` or `module:function`.", show_default=False)],
    name: Annotated[
        str | None, typer.Option(help="Name of the guest; the function's name and this process when left out.")
    ] = None,
    bus: Annotated[str | None, typer.Option(help="Bus to join; a private one when left out.")] = None,
    *,
    node: NodeOption = None,
    keys: KeysOption = None,
    server_key: ServerKeyOption = None,
) -> None:
    """Run a function as a guest in this process, until it returns; a number it returns is the exit code.

    On another machine than the host node it can call devices; what needs shared memory, as network interfaces do, is
    refused.
    """
    from vbnet.cluster.guests.python import Where, run_function  # noqa: PLC0415 -- only this verb is a guest

    address = resolve(node)
    where = Where(address, secrets(address, keys, server_key))
    function = target.rpartition(":")[2]
    sys.exit(run_function(target, Path.cwd(), where, name or f"{function}-{os.getpid()}", bus))

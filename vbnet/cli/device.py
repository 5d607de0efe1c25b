"""`vbnet device`: the devices of a host node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from vbnet.bus.descriptors import opened_image, opened_log
from vbnet.bus.operator import SyncOperator
from vbnet.cli import output
from vbnet.cli.connection import on_host
from vbnet.cli.output import Format, FormatOption
from vbnet.cli.settings import read_settings
from vbnet.errors import UsageError

_CONSOLE: Final = "virtio-console"
"""The class whose files are logs."""

app = output.application(
    "List, create, set, fill, plug, unplug and delete devices.\n\nCreation has two steps: a device gets its type once, "
    "and only then "
    "attributes. `create NAME type=CLASS key=value ...` does both.",
    [
        ("vbnet device create nic0 type=venet switch=lan", "create, type and set"),
        ("vbnet device set nic0 mtu=9000", "set attributes"),
        ("vbnet device plug nic0 lab", "show it on a bus"),
        ("vbnet device insert disk0 ./image.raw", "put a file into a virtio-blk device"),
        ("vbnet device insert console0 ./guest.log", "keep what a virtio-console says; the log is made if need be"),
        ("vbnet device classes", "what types there are"),
    ],
    is_group=True,
)

NameArgument = Annotated[str, typer.Argument(help="Name of the device.", show_default=False)]
BusArgument = Annotated[str, typer.Argument(help="Name of the bus.", show_default=False)]


@app.command("list")
@on_host
def list_(
    operator: SyncOperator,
    *,
    how: FormatOption = Format.table,
) -> None:
    """List devices with their attributes and plugs."""
    rows = [_row(msgspec.to_builtins(device)) for device in operator.device_list()]
    output.print_rows(rows, ("name", "type", "attributes", "buses"), how, empty="no device yet")


@app.command()
@on_host
def show(
    operator: SyncOperator,
    name: NameArgument,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Show one device."""
    output.print_record(_row(msgspec.to_builtins(operator.device_get(name))), how)


@app.command()
@on_host
def classes(
    operator: SyncOperator,
    *,
    how: FormatOption = Format.table,
) -> None:
    """List device classes: the values of `type`."""
    output.print_rows(operator.class_list(), ("name", "kind", "abi_types"), how)


@app.command()
@on_host
def create(
    operator: SyncOperator,
    name: NameArgument,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="type=CLASS key=value...", help="Type and attributes.")
    ] = None,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Create a device, all or nothing."""
    attributes = read_settings(settings or [])
    kind = attributes.pop("type", None)
    operator.device_create(name, kind, attributes)
    output.print_done(f"device {name} created", {"name": name, "result": "created"}, how)


@app.command("set")
@on_host
def set_(
    operator: SyncOperator,
    name: NameArgument,
    settings: Annotated[
        list[str], typer.Argument(metavar="key=value...", help="Attributes, set in order.", show_default=False)
    ],
    *,
    how: FormatOption = Format.table,
) -> None:
    """Set attributes; the type once, and first."""
    attributes = read_settings(settings)
    for attribute, value in attributes.items():
        operator.device_set(name, attribute, value)
    output.print_record(_row(msgspec.to_builtins(operator.device_get(name))), how)


@app.command()
@on_host
def insert(
    operator: SyncOperator,
    name: NameArgument,
    file: Annotated[
        Path,
        typer.Argument(
            help="A file or block device that is there, or a console's log; opened here and handed to the host.",
            show_default=False,
        ),
    ],
    *,
    is_read_only: Annotated[bool, typer.Option("--read-only", help="The device only reads it.")] = False,
    how: FormatOption = Format.table,
) -> None:
    """Put a file into a device, as a disk into a drive, or as a console's log."""
    is_log = operator.device_get(name).type == _CONSOLE
    if is_log and is_read_only:
        raise UsageError("a console writes to its log; leave --read-only out", name=name)
    with opened_log(file) if is_log else opened_image(file, is_read_only=is_read_only) as fd:
        operator.device_insert(name, fd, str(file), is_read_only=is_read_only)
    output.print_done(f"{file} put into {name}", {"name": name, "file": str(file), "result": "inserted"}, how)


@app.command()
@on_host
def plug(
    operator: SyncOperator,
    name: NameArgument,
    bus: BusArgument,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Plug a device into a bus; its guests see it at once."""
    ids = operator.device_plug(name, bus)
    shown = ", ".join(str(number) for number in ids)
    output.print_done(f"device {name} plugged into {bus} as {shown}", {"name": name, "bus": bus, "dev_ids": ids}, how)


@app.command()
@on_host
def unplug(
    operator: SyncOperator,
    name: NameArgument,
    bus: BusArgument,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Unplug a device from a bus; guests that use it are told."""
    operator.device_unplug(name, bus)
    output.print_done(f"device {name} unplugged from {bus}", {"name": name, "bus": bus, "result": "unplugged"}, how)


@app.command()
@on_host
def delete(
    operator: SyncOperator,
    name: NameArgument,
    force: Annotated[bool, typer.Option("--force", help="Unplug it everywhere first.")] = False,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Delete a device."""
    operator.device_delete(name, force=force)
    output.print_done(f"device {name} deleted", {"name": name, "result": "deleted"}, how)


def _row(device: dict[str, Any]) -> dict[str, Any]:
    return {**device, "buses": [f"{plug['bus']}:{plug['dev_id']}" for plug in device["plugs"]]}

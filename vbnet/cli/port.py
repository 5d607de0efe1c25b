"""`vbnet port`: the ports of a host node's switches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from vbnet.bus.operator import SyncOperator
from vbnet.cli import output
from vbnet.cli.connection import NodeOption, connect, on_host, resolve
from vbnet.cli.output import Format, FormatOption
from vbnet.cli.settings import read_settings
from vbnet.errors import NotFoundError, UnsupportedError, UsageError

PortArgument = Annotated[str, typer.Argument(metavar="PORT", help="The port's name, or its id.", show_default=False)]

_AUTO: Final = "auto"
"""A socket in the run directory."""

app = output.application(
    "List, add and remove switch ports. Ports of guests come and go with their devices; TAPs of this machine, and "
    "sockets for virtual machines and DPDK applications (vhost-user), are added here.",
    [
        ("vbnet port list", "all ports"),
        ("vbnet port stats", "what each port counted, drops by reason"),
        ("vbnet port add lan vb0", "join the TAP vb0 to a switch"),
        ("vbnet port add lan vb0 --no-offloads", "the same, for a program that wants frames as on a wire"),
        ("vbnet port add lan vm1 --vhost-user auto", "listen for a virtual machine's network card"),
        ("vbnet port add lan fw --vhost-user /run/fw.sock --connect", "join one that listens itself"),
        (
            "vbnet port add lan up --vhost-user /run/vpp.sock --front-end",
            "join the device that DPDK, VPP or vbnet serves there",
        ),
        ("vbnet port set vm1 hold=0", "frames that it has no room for are dropped at once"),
        ("vbnet port set vm1 enabled=0", "unplug its cable"),
        ("vbnet port remove vm1", "also by its id: `vbnet port remove 7`"),
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
    """List ports."""
    output.print_rows(
        operator.port_list(),
        ("id", "name", "switch", "kind", "mac", "mtu", "offloads", "is_up", "is_served", "device", "detail"),
        how,
        empty="no port yet",
    )


@app.command()
def stats(
    port: Annotated[
        str | None,
        typer.Argument(
            help="The port's name, or its id, for which the host node is asked; all without.", show_default=False
        ),
    ] = None,
    *,
    zeroes: Annotated[bool, typer.Option("--zeroes", help="Also show counters that are 0.")] = False,
    node: NodeOption = None,
    how: FormatOption = Format.table,
) -> None:
    """Show what ports counted. Reads shared memory only: works on a host node that hangs, and disturbs none."""
    from vbnet.telemetry import read_counted  # noqa: PLC0415 - native code only where it is used

    where = resolve(node)
    if isinstance(where, str):
        raise UnsupportedError(
            f"counters are read from shared memory, and {where} is on another machine; run this there"
        )
    if port is not None and _is_id(port):
        with connect(node) as operator:
            port = _name_of(operator, int(port))
    counted = read_counted(where.counters, "port")
    rows = [
        {"port": block.labels.get("device", ""), "counter": name, "value": value}
        for block in counted
        for name, value in block.values.items()
        if port in {None, block.labels.get("device")} and (value or zeroes)
    ]
    if port is not None and port not in {block.labels.get("device") for block in counted}:
        known = ", ".join(block.labels.get("device", "") for block in counted) or "none"
        raise NotFoundError(f"there is no port {port!r}; there are: {known}", port=port)
    output.print_rows(rows, ("port", "counter", "value"), how, empty="nothing counted yet")


@app.command()
@on_host
def add(
    operator: SyncOperator,
    switch: Annotated[str, typer.Argument(help="Name of the switch.", show_default=False)],
    name: Annotated[
        str, typer.Argument(help="Name of a TAP that is there; with --vhost-user, of the new port.", show_default=False)
    ],
    *,
    mtu: Annotated[int, typer.Option(min=68, max=65535, help="Largest IP packet in bytes.")] = 1500,
    offloads: Annotated[
        bool,
        typer.Option("--offloads/--no-offloads", help="A TAP's kernel leaves checksums and segments to the switch."),
    ] = True,
    vhost_user: Annotated[
        str | None,
        typer.Option(
            "--vhost-user",
            metavar="SOCKET",
            help="Listen on this socket for QEMU or DPDK: a path on the host node's machine, or `auto`.",
            show_default=False,
        ),
    ] = None,
    mac: Annotated[
        str | None, typer.Option(help="With --vhost-user: address of the network card.", show_default=False)
    ] = None,
    connect: Annotated[
        bool | None,
        typer.Option(
            "--connect/--listen",
            help="With --vhost-user: connect to the socket, where the other end listens, or listen there. "
            "Back ends listen and front ends connect when nothing is said.",
            show_default=False,
        ),
    ] = None,
    front_end: Annotated[
        bool,
        typer.Option(
            "--front-end",
            help="With --vhost-user: the port is the front end of a device that DPDK, VPP or vbnet serves.",
        ),
    ] = False,
    how: FormatOption = Format.table,
) -> None:
    """Join a TAP of the host node's machine to a switch, or wait for front ends of vhost-user, or connect to one."""
    if vhost_user is None:
        if mac is not None:
            raise UsageError("a TAP has the address that the kernel gave it; --mac goes with --vhost-user", mac=mac)
        if connect is not None or front_end:
            raise UsageError("--connect, --listen and --front-end go with --vhost-user")
        number = operator.port_add(switch, name, mtu=mtu, offloads=offloads)
        output.print_done(
            f"port {number} added: {name} on {switch}", {"id": number, "switch": switch, "tap": name}, how
        )
        return
    if not offloads:
        raise UsageError("front and back end agree on offloads themselves; --no-offloads goes with a TAP")
    does_connect = front_end if connect is None else connect
    socket = None if vhost_user == _AUTO else str(Path(vhost_user).absolute())
    number = operator.port_listen(
        switch, name, socket=socket, mac=mac, mtu=mtu, connect=does_connect, front_end=front_end
    )
    where = next(port["device"] for port in operator.port_list() if port["id"] == number)
    told = {"id": number, "switch": switch, "name": name, "socket": where}
    other = "back end" if front_end else "front end"
    who = f"its {other} listens on" if does_connect else f"{other}s connect to"
    output.print_done(f"port {number} added: {name} on {switch}, {who} {where}", told, how)


@app.command("set")
@on_host
def set_(
    operator: SyncOperator,
    port: PortArgument,
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="key=value...",
            help="enabled (0 or 1), hold and burstthresh (µs), budget (frames a turn); as of a card, set in order.",
            show_default=False,
        ),
    ],
    *,
    how: FormatOption = Format.table,
) -> None:
    """Set attributes of a TAP's port, or of one for front ends; those of guests are set at their devices."""
    number = _id_of(operator, port)
    for attribute, value in read_settings(settings).items():
        operator.port_set(number, attribute, value)
    found = next(row for row in operator.port_list() if row["id"] == number)
    shown = ("id", "name", "switch", "kind", "is_up", "hold_us", "burst_threshold_us", "budget")
    output.print_record({column: found[column] for column in shown}, how)


@app.command()
@on_host
def remove(
    operator: SyncOperator,
    port: PortArgument,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Take a port off its switch."""
    number = _id_of(operator, port)
    operator.port_remove(number)
    output.print_done(f"port {port} removed", {"id": number, "result": "removed"}, how)


def _is_id(port: str) -> bool:
    return port.isascii() and port.isdigit()


def _id_of(operator: SyncOperator, port: str) -> int:
    """The id of a port that is named, or is a number and so its id already.

    Raises:
        NotFoundError: no port has this name.
    """
    if _is_id(port):
        return int(port)
    number = next((row["id"] for row in operator.port_list() if row["name"] == port), None)
    if number is None:
        raise NotFoundError(f"there is no port {port!r}; `vbnet port list` has all", port=port)
    return int(number)


def _name_of(operator: SyncOperator, number: int) -> str:
    """The name of a port; NotFoundError: there is none of this id."""
    name = next((row["name"] for row in operator.port_list() if row["id"] == number), None)
    if name is None:
        raise NotFoundError(f"there is no port {number}; `vbnet port list` has all", port=number)
    return str(name)

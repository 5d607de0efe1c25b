"""`vbnet link`: a network cable between virtual machines, in one command."""

from __future__ import annotations

import asyncio
import os
import shlex
import string
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from vbnet.bus.rundir import RunDir
from vbnet.cli import output
from vbnet.cli.detached import run_reporting, start_detached
from vbnet.cli.output import Format, FormatOption
from vbnet.cli.progress import Progress
from vbnet.cluster.lab import READY_TIMEOUT_S, Lab, LabEvent
from vbnet.cluster.plan import Plan, make_plan
from vbnet.cluster.qemu import ASSUMED, card_arguments, memory_arguments, qemu_version
from vbnet.cluster.supervise import own_command, supervise
from vbnet.cluster.topology import SOCKET_PATH_MAX_BYTES, derive_mac, parse_topology
from vbnet.errors import NotFoundError, NotPermittedError, UsageError, VbnetError

_ENDS: Final = string.ascii_lowercase[:16]
_SWITCH: Final = "link"
_LOOK_S: Final = 1.0
_USUAL_MTU: Final = 1500
_SHOWN: Final = ("transmit_frames", "transmit_bytes", "receive_frames", "receive_bytes")

app = output.application(
    "Join virtual machines by a network of their own: a host node with one switch, and a vhost-user socket for each "
    "end.\n\nPrints what QEMU must be told, complete; a machine may start before or after, stop, and come again. "
    "Needs no root. Lasts until Ctrl-C and shows who is connected and what passes; then nothing of it is left. "
    "`vbnet ps` and `vbnet down` know it by its name, as any other lab.",
    [
        ("vbnet link", "two ends, a and b"),
        ("vbnet link lan --ends 4 -d", "four, in the background; `vbnet down lan` ends it"),
        ("vbnet link --queues 4 --memory 8G", "several queues, and how much memory machines have"),
        ("vbnet link --format json", "for a program that starts the machines"),
    ],
)


class LinkEnd(msgspec.Struct, frozen=True):
    """One end of a link.

    Attributes:
        name: of the port. socket: where QEMU connects. mac: of the card.
        arguments: all that QEMU must be told besides what the machine is.
    """

    name: str
    socket: str
    mac: str
    arguments: list[str]


class Link(msgspec.Struct, frozen=True):
    """A link as it is printed.

    Attributes:
        link: its name, and that of its host node.
        mtu: longest IP packet; the card tells the machine's driver.
        ends: in order.
        capture: the command that shows what passes.
    """

    link: str
    mtu: int
    ends: list[LinkEnd]
    capture: str


@app.command()
def link(
    name: Annotated[str, typer.Argument(help="Name of the link.")] = "link",
    *,
    ends: Annotated[int, typer.Option(min=2, max=len(_ENDS), help="Machines that it joins.")] = 2,
    queues: Annotated[int, typer.Option(min=1, max=8, help="Pairs of queues of each card.")] = 1,
    mtu: Annotated[int, typer.Option(min=68, max=65535, help="Longest IP packet in bytes.")] = 1500,
    memory: Annotated[str, typer.Option(help="Memory of each machine, as QEMU writes it: 512M, 1.5G.")] = "1G",
    sockets: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the sockets are; the run directory by default.", show_default=False),
    ] = None,
    qemu: Annotated[
        str, typer.Option(metavar="PROGRAM", help="The QEMU that will be used, asked for its version; or that, as 7.2.")
    ] = "qemu-system-x86_64",
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when the sockets are there.")] = False,
    how: FormatOption = Format.table,
    report_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Join virtual machines by a network of their own."""
    folder = RunDir.for_node(name).path if sockets is None else sockets.absolute()
    if sockets is not None:
        _check_folder(folder)
    found = _describe(name, _ENDS[:ends], folder, mtu)
    found = _with_arguments(found, memory, queues, _version(qemu) if report_fd is None else ASSUMED)
    plan = _plan(found)
    if report_fd is not None:
        sys.exit(run_reporting(plan, READY_TIMEOUT_S, report_fd))
    if detach:
        options = ["--ends", str(ends), "--mtu", str(mtu)] + ([] if sockets is None else ["--sockets", str(folder)])
        start_detached([*own_command(), "link", name, *options], name, Progress(Format.table))
        _show(found, how)
        if how is Format.table:
            output.note(f"link {name} is up; `vbnet ps {name}` shows who is connected, `vbnet down {name}` ends it")
    else:
        sys.exit(_run_here(plan, found, how))


def _version(qemu: str) -> tuple[int, int]:
    """The version of the QEMU that will be used; where it cannot be told, what is assumed, and a word about that."""
    version = qemu_version(qemu)
    if version is None:
        assumed = ".".join(map(str, ASSUMED))
        output.note(
            f"{qemu} was not found or does not tell its version: what follows is for QEMU {assumed} or newer; "
            "name another with --qemu PROGRAM, or --qemu 7.2"
        )
    return version or ASSUMED


def _check_folder(folder: Path) -> None:
    """Say what is wrong with the folder for the sockets before anything is started.

    Raises:
        NotFoundError: it is not there.
        NotPermittedError: nothing may be made in it.
    """
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder} for the sockets; make it, or leave --sockets out")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise NotPermittedError(f"no socket may be made in {folder}; choose another folder, or leave --sockets out")


def _describe(name: str, ends: str, folder: Path, mtu: int) -> Link:
    """Return the link, without what QEMU is told.

    Raises:
        UsageError: the path of a socket would be too long.
    """
    sockets = {end: RunDir(folder).front_end_socket(end) for end in ends}
    for socket in sockets.values():
        if (length := len(os.fsencode(socket))) > SOCKET_PATH_MAX_BYTES:
            raise UsageError(
                f"{socket} has {length} bytes, and the path of a socket at most {SOCKET_PATH_MAX_BYTES}; "
                "choose a folder with --sockets"
            )
    made = [LinkEnd(end, str(socket), derive_mac(name, end, "eth0"), []) for end, socket in sockets.items()]
    return Link(name, mtu, made, f"vbnet capture {ends[0]} --node {name} -w {name}.pcapng")


def _with_arguments(link: Link, memory: str, queues: int, version: tuple[int, int]) -> Link:
    """Return the link with what QEMU is told.

    Raises:
        UsageError: ``memory`` is no size.
    """
    mtu = None if link.mtu == _USUAL_MTU else link.mtu
    ends = [
        msgspec.structs.replace(
            end,
            arguments=[
                *memory_arguments(memory),
                *card_arguments(Path(end.socket), mac=end.mac, queues=queues, mtu=mtu, version=version),
            ],
        )
        for end in link.ends
    ]
    return msgspec.structs.replace(link, ends=ends)


def _plan(link: Link) -> Plan:
    """The link as a lab: one switch, and a socket for each end."""
    ports = {end.name: {"switch": _SWITCH, "socket": end.socket, "mac": end.mac, "mtu": link.mtu} for end in link.ends}
    lab = {"name": link.link, "switches": {_SWITCH: None}, "vhost-user": ports}
    return make_plan(parse_topology(msgspec.json.encode(lab).decode(), "vbnet link", {}))


def _show(link: Link, how: Format) -> None:
    """Print what each machine's QEMU must be told."""
    if how is Format.json:
        output.print_json_line(link)
        return
    for end in link.ends:
        output.say(f"# machine {end.name}")
        pairs = [shlex.join(end.arguments[at : at + 2]) for at in range(0, len(end.arguments), 2)]
        output.say(" \\\n  ".join(pairs))
    output.say(f"# what passes: {link.capture}")


def _run_here(plan: Plan, link: Link, how: Format) -> int:
    watching: list[asyncio.Task[None]] = []
    board = _Board(link, how)
    with Progress(Format.table) as progress:

        def watch(event: LabEvent) -> None:
            if (event.step, event.state) == ("lab", "stopping"):
                board.count(lab.run_dir)
            progress.show(event)

        lab = Lab(plan, watch=watch)

        def tell() -> None:
            progress.close()
            _show(link, how)
            if how is Format.table:
                output.note(f"link {link.link} is up; Ctrl-C ends it")
            watching.append(asyncio.ensure_future(board.follow(lab)))

        try:
            return asyncio.run(supervise(lab, READY_TIMEOUT_S, tell))
        finally:
            board.close()


class _Board:
    """What becomes of the ends: a line for each change, and on a terminal what passes now, on a line of its own.

    Args:
        link: whose ends.
        how: JSON makes every change a line of standard output.
    """

    def __init__(self, link: Link, how: Format) -> None:
        self._link, self._how = link, how
        self._is_live = how is Format.table and sys.stderr.isatty() and output.is_terminal()
        self._shown: dict[str, tuple[str, str]] = {}
        self._counted: dict[str, dict[str, int]] = {}

    async def follow(self, lab: Lab) -> None:
        """Look once a second, until it is called off; a look that fails is made up for by the next."""
        from vbnet.bus.operator import Operator  # noqa: PLC0415 -- ZeroMQ is loaded when there is somebody to ask

        operator = await Operator.connect(lab.run_dir)
        try:
            while True:
                with suppress(VbnetError):
                    self._tell({port["name"]: port for port in await operator.port_list()})
                    self._tell_traffic(lab.run_dir)
                await asyncio.sleep(_LOOK_S)
        finally:
            await operator.close()

    def count(self, run_dir: RunDir) -> None:
        """Read what has passed until now: the last time before the host node ends."""
        with suppress(VbnetError):
            self._tell_traffic(run_dir)

    def close(self) -> None:
        """Say what passed in all."""
        if self._is_live:
            self._write("")
        for end, counts in self._counted.items():
            record = {"end": end, **{name: counts[name] for name in _SHOWN}}
            if self._how is Format.json:
                output.print_json_line(record)
            else:
                output.note("{end}: {transmit_frames:,} frames sent, {receive_frames:,} received".format(**record))

    def _tell(self, ports: Mapping[str, Mapping[str, Any]]) -> None:
        for end in self._link.ends:
            port = ports[end.name]
            now = ("connected" if port["is_served"] else "waiting", str(port["detail"]))
            if self._shown.get(end.name) == now:
                continue
            self._shown[end.name] = now
            state, detail = now
            if self._how is Format.json:
                output.print_json_line({"end": end.name, "state": state, "detail": detail})
            else:
                if self._is_live:
                    self._write("")
                output.note(f"{end.name}: {state}" + (f" ({detail})" if detail else ""))

    def _tell_traffic(self, run_dir: RunDir) -> None:
        from vbnet.telemetry import read_counted  # noqa: PLC0415 -- native code only where it is used

        before = self._counted
        found = {block.labels.get("device", ""): block.values for block in read_counted(run_dir.counters, "port")}
        self._counted = {end.name: dict(found[end.name]) for end in self._link.ends if end.name in found}
        if self._is_live and before:
            rates = [
                f"{end} {counts['transmit_frames'] - before[end]['transmit_frames']:,} frames/s sent, "
                f"{(counts['transmit_bytes'] - before[end]['transmit_bytes']) * 8 / 1e6:,.1f} Mbit/s"
                for end, counts in self._counted.items()
            ]
            self._write("   ".join(rates))

    def _write(self, text: str) -> None:
        """Put ``text`` in the place of the last line."""
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()

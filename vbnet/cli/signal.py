"""`vbnet signal`: the signals of a host node, where they lead, and what became of their raises."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from vbnet.bus import admin
from vbnet.bus.operator import SyncOperator
from vbnet.cli import output
from vbnet.cli.connection import KeysOption, NodeOption, ServerKeyOption, connect, connect_async, on_host
from vbnet.cli.output import Format, FormatOption
from vbnet.errors import NotFoundError, PeerGone, ResourceError, UsageError, VbnetError

EXPORTED_FD: Final = 3
"""The descriptor under which a program gets the eventfd of ``vbnet signal export``."""
FD_VARIABLE: Final = "VBNET_SIGNAL_FD"
"""Environment variable that tells the program its number."""

COLUMNS = ("signal", "leads_to", "priority", "raises", "coalesced", "wakeups", "spurious", "masked", "state")
ALL_COLUMNS = (
    "id",
    "signal",
    "device",
    "leads_to",
    "priority",
    "raises",
    "coalesced_signal",
    "coalesced_device",
    "coalesced_across",
    "wakeups",
    "spurious",
    "masked",
    "masked_by_guest",
    "unrouted",
    "blocked",
    "state",
    "granted",
    "sources",
)

app = output.application(
    "List, make, route, mask, raise, grant, export and drive signals. A signal is named GUEST/NAME, or NAME when an "
    "operator made it, or by its number.",
    [
        ("vbnet signal list", "where each leads, and what became of its raises"),
        ("vbnet signal list web --all", "every counter of one guest's"),
        ("vbnet signal raise web/tick --count 3", "raise it three times"),
        ("vbnet signal set web/tick --priority 6", "serve it before others from now on"),
        ("vbnet signal route web/tick --vcpu 1", "serve it elsewhere from now on"),
        ("vbnet signal create alarm", "a signal of your own; it leads nowhere yet"),
        ("vbnet signal route alarm --like web/tick", "lead it to where another leads"),
        ("vbnet signal grant web/tick db", "let guest db raise it"),
        ("vbnet signal export alarm -- ./siren", "hand a program the eventfd to which it leads"),
        ("vbnet signal drive alarm --fd 5", "let an eventfd of the caller's raise it"),
    ],
    is_group=True,
)


def complete_signal(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of signals that begin so."""
    with suppress(VbnetError), connect(ctx.params.get("node")) as operator:
        names = [full_name(row) for row in operator.signal_list()]
        return [name for name in names if name.startswith(incomplete)]
    return []


SignalArgument = Annotated[
    str,
    typer.Argument(
        help="GUEST/NAME, an operator's NAME, or a number.", autocompletion=complete_signal, show_default=False
    ),
]
GuestArgument = Annotated[str, typer.Argument(help="Name of the guest.", show_default=False)]
PriorityOption = Annotated[
    int | None, typer.Option(min=0, max=7, help="0 to 7, 7 the most urgent.", show_default=False)
]


@app.command("list")
@on_host
def list_(
    operator: SyncOperator,
    guest: Annotated[
        str | None,
        typer.Argument(help="Only signals that are this guest's or lead to it.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every counter, in a wide table.")] = False,
    *,
    how: FormatOption = Format.table,
) -> None:
    """List signals. LEADS TO is a guest with vCPU:vector, eventfd, or nowhere.

    COALESCED counts raises that cost no wake-up, because one had been rung for this signal, for another of the same
    device, or for another device's.
    """
    found = operator.signal_list()
    rows = [shown_row(row) for row in found if guest in {None, row["guest"], row["to"]}]
    empty = "no signal yet" if guest is None else f"no signal is guest {guest}'s or leads to it"
    output.print_rows(rows, ALL_COLUMNS if everything else COLUMNS, how, empty=empty)


@app.command()
@on_host
def create(
    operator: SyncOperator,
    name: Annotated[str, typer.Argument(help="Its name, without a slash.", show_default=False)],
    priority: Annotated[int, typer.Option(min=0, max=7, help="0 to 7, 7 the most urgent.")] = 0,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Make a signal of your own. It leads nowhere until it is routed; raises until then are kept as one."""
    number = operator.signal_create(name, priority)
    output.print_done(f"signal {name} created as number {number}", {"name": name, "id": number}, how)


@app.command()
@on_host
def route(
    operator: SyncOperator,
    signal: SignalArgument,
    like: Annotated[
        str | None,
        typer.Option(help="Lead it to where this signal leads.", autocompletion=complete_signal, show_default=False),
    ] = None,
    guest: Annotated[str | None, typer.Option(help="Lead it to this guest.", show_default=False)] = None,
    vcpu: Annotated[int | None, typer.Option(min=0, help="The vCPU that serves it.", show_default=False)] = None,
    *,
    vector: Annotated[
        int | None, typer.Option(min=0, help="The guest's vector for it, from 0.", show_default=False)
    ] = None,
    nowhere: Annotated[bool, typer.Option("--nowhere", help="Lead it nowhere: raises are kept as one.")] = False,
    how: FormatOption = Format.table,
) -> None:
    """Lead a signal elsewhere, while it is being raised: no raise is lost. What you do not say stays as it is."""
    is_placed = any(part is not None for part in (like, guest, vcpu, vector))
    if is_placed == nowhere:
        raise UsageError("say where: --like SIGNAL, or any of --guest, --vcpu and --vector; or --nowhere alone")
    operator.signal_route(signal, like=like, guest=guest, vcpu=vcpu, vector=vector, nowhere=nowhere)
    output.print_done(*_now(operator.signal_list(), signal, "leads to {leads_to}"), how)


@app.command("set")
@on_host
def set_(
    operator: SyncOperator,
    signal: SignalArgument,
    priority: PriorityOption = None,
    is_masked: Annotated[
        bool | None, typer.Option("--mask/--unmask", help="Keep raises back as one, or let them through.")
    ] = None,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Change a signal's priority for raises to come; mask it, or unmask it and deliver what was kept."""
    if priority is None and is_masked is None:
        raise UsageError("say what to change: --priority N, --mask or --unmask")
    operator.signal_set(signal, priority=priority, is_masked=is_masked)
    output.print_done(*_now(operator.signal_list(), signal, "has priority {priority}, state {state}"), how)


@app.command("raise")
@on_host
def raise_(
    operator: SyncOperator,
    signal: SignalArgument,
    count: Annotated[int, typer.Option(min=1, help="How often; raises may be served as one.")] = 1,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Raise a signal."""
    operator.apply([admin.SignalRaise(signal)] * count)
    times = "once" if count == 1 else f"{count} times"
    output.print_done(f"signal {signal} raised {times}", {"signal": signal, "raised": count}, how)


@app.command()
@on_host
def grant(
    operator: SyncOperator,
    signal: SignalArgument,
    guest: GuestArgument,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Let a guest raise a signal that is not its own; also before that guest is there."""
    operator.signal_grant(signal, guest)
    output.print_done(f"guest {guest} may raise {signal}", {"signal": signal, "guest": guest, "result": "granted"}, how)


@app.command()
@on_host
def revoke(
    operator: SyncOperator,
    signal: SignalArgument,
    guest: GuestArgument,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Take a grant back; the guest's doorbells for it ring nothing from then on."""
    operator.signal_grant(signal, guest, revoke=True)
    output.print_done(
        f"guest {guest} may raise {signal} no more", {"signal": signal, "guest": guest, "result": "revoked"}, how
    )


@app.command(
    epilog=output.epilog(
        [
            ("vbnet signal export alarm -- ./siren --loud", "./siren gets an eventfd as descriptor 3"),
            ("vbnet signal export web/tick -- python3 watch.py", "also of a guest's or a device's signal"),
            ("vbnet signal route alarm --nowhere", "afterwards: keep its raises until it is led elsewhere"),
        ]
    )
)
def export(
    signal: SignalArgument,
    command: Annotated[
        list[str], typer.Argument(metavar="-- PROGRAM [ARG]...", help="What to run.", show_default=False)
    ],
    *,
    node: NodeOption = None,
    keys: KeysOption = None,
    server_key: ServerKeyOption = None,
) -> None:
    """Lead a signal to an eventfd, and run a program that has it as descriptor 3 (VBNET_SIGNAL_FD=3).

    Each raise makes the descriptor readable; reading eight bytes makes it wait for the next. It is non-blocking: wait
    with poll or select. The exit code is the program's own. The signal goes on leading there when the program has
    ended; `vbnet signal route` leads it elsewhere.
    """
    program = shutil.which(command[0])
    if program is None:
        raise NotFoundError(f"there is no program `{command[0]}` on this machine; nothing was changed")
    with connect(node, keys, server_key) as operator:
        fd = operator.signal_export(signal)
    _run_with(fd, program, command, signal)


def _run_with(fd: int, program: str, command: list[str], signal: str) -> None:
    """Become a program that has ``fd`` as descriptor 3."""
    if fd == EXPORTED_FD:
        os.set_inheritable(fd, True)  # noqa: FBT003 -- the standard library's signature
    else:
        os.dup2(fd, EXPORTED_FD)
        os.close(fd)
    os.environ[FD_VARIABLE] = str(EXPORTED_FD)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(program, command)  # noqa: S606 -- the user's own command
    except OSError as error:
        raise ResourceError(
            f"cannot run `{program}` ({error.strerror}). Signal {signal} leads to an eventfd that nobody has; "
            f"`vbnet signal route` leads it elsewhere",
            errno=error.errno or 0,
        ) from error


def _handed_down(ctx: typer.Context, fd: int) -> int:
    """Check ``--fd``: a descriptor that came with this process, before it opens any of its own."""
    if ctx.resilient_parsing:
        return fd
    try:
        came_along = os.get_inheritable(fd)
    except OSError:
        came_along = False
    if not came_along:
        raise UsageError(
            f"the caller left no descriptor {fd} open for this command; "
            f"in Python: subprocess.Popen(..., pass_fds=[{fd}])",
            fd=fd,
        )
    return fd


@app.command(
    epilog=output.epilog(
        [
            ("vbnet signal drive alarm --fd 5", "from a program that has an eventfd as 5: its writes raise alarm"),
            ("vbnet signal drive web/tick --fd 5 --keep", "return at once, and let it drive on"),
        ]
    )
)
def drive(
    signal: SignalArgument,
    fd: Annotated[
        int,
        typer.Option(
            "--fd", min=0, callback=_handed_down, help="An eventfd that the caller left open.", show_default=False
        ),
    ],
    keep: Annotated[bool, typer.Option("--keep", help="Return at once; the eventfd drives on.")] = False,
    *,
    node: NodeOption = None,
    keys: KeysOption = None,
    server_key: ServerKeyOption = None,
    how: FormatOption = Format.table,
) -> None:
    """Let an eventfd raise a signal: each write to it is a raise, and several may become one.

    It says so and stays in the foreground: it ends well when the signal is destroyed, with 7 when the host node or the
    program that called it has ended, with 130 when interrupted; the eventfd drives nothing from then on. With --keep it
    returns at once, and only the end of the signal or of the host node ends it.
    """
    asyncio.run(_drive(signal, fd, node, keys, server_key, is_kept=keep, how=how))


async def _drive(
    signal: str,
    fd: int,
    node: str | None,
    keys: Path | None,
    server_key: str | None,
    *,
    is_kept: bool,
    how: Format,
) -> None:
    caller = os.getppid()
    async with await connect_async(node, keys, server_key) as operator:
        number = await operator.signal_drive(signal, fd, keep=is_kept)
        if how is Format.json:
            # One line, for the caller waits for it before it writes, and must not wait for more.
            output.print_json_line({"signal": signal, "fd": fd, "drive": number, "keep": is_kept})
        else:
            output.say(f"signal {signal} is driven by descriptor {fd}")
        if is_kept:
            return
        gone = asyncio.ensure_future(operator.signal_drive_ended(number))
        orphaned = asyncio.ensure_future(_process_ended(caller))
        await asyncio.wait({gone, orphaned}, return_when=asyncio.FIRST_COMPLETED)
        if not gone.done():
            gone.cancel()
            raise PeerGone(f"process {caller}, whose descriptor {fd} is, has ended; it drives {signal} no more")
        orphaned.cancel()
        await gone
    output.note(f"signal {signal} was destroyed; nothing drives it any more")


async def _process_ended(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


@app.command()
@on_host
def destroy(
    operator: SyncOperator,
    signal: SignalArgument,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Remove a signal that you or a guest named; those of devices go with their device."""
    operator.signal_destroy(signal)
    output.print_done(f"signal {signal} destroyed", {"signal": signal, "result": "destroyed"}, how)


def full_name(row: dict[str, Any]) -> str:
    """Return the name under which operators know a signal."""
    return f"{row['guest']}/{row['name']}" if row["guest"] else str(row["name"])


def shown_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a signal's row with what only people need: full name, route, coalescing and state as short texts."""
    routes = {"vector": f"{row['to']} {row['vcpu']}:{row['vector']}"}
    states = [word for word in ("masked", "latched", "blocked") if row[f"is_{word}"]]
    return {
        "signal": full_name(row),
        **row,
        "leads_to": routes.get(row["route"], row["route"]),
        "coalesced": "/".join(str(row[f"coalesced_{by}"]) for by in ("signal", "device", "across")),
        "state": "+".join(states) or "open",
    }


def _now(rows: list[dict[str, Any]], signal: str, text: str) -> tuple[str, dict[str, Any]]:
    """Return a sentence about a signal as it is now, and its row; another operator may have destroyed it."""
    for row in map(shown_row, rows):
        if signal in {row["signal"], str(row["id"])}:
            return f"signal {signal} " + text.format_map(row), row
    return f"signal {signal} was changed", {"signal": signal}

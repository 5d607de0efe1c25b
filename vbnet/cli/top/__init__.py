"""`vbnet top`: a host node's guests, ports, signals, timers and workers, live, in a terminal or a browser.

The screen (``screen``, ``grid``) and the server (``web``) are imported only where they are shown.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from vbnet.bus.rundir import RunDir
from vbnet.cli import output
from vbnet.cli.metrics import NodeOption, which
from vbnet.cli.output import Format, FormatOption
from vbnet.errors import UsageError

__all__ = ["app"]

Tab = StrEnum(
    "Tab", ["guests", "devices", "ports", "queues", "signals", "timers", "workers", "switches", "buses", "errors"]
)
"""The tables, as `vbnet.telemetry.watch.tabs` has them; written out so that help needs none of it."""

SERVER_VARIABLE: Final = "VBNET_TOP_SERVER"
"""Set for a page's process by the server that stands between it and a browser: the server's process id."""
_PR_SET_PDEATHSIG: Final = 1

app = output.application(
    "Watch what a host node counts: guests, devices, ports, queues, "
    "signals, timers, workers, switches, buses, errors.\n\n"
    "On a terminal it is a screen that follows the node and remembers the last ten minutes; `?` shows the keys. Piped, "
    "or with --once, it prints every table once. It reads shared memory and files only, so it works on a node that "
    "hangs, is stopped or was killed, and disturbs none. --web shows the same screen in a browser.",
    [
        ("vbnet top", "of the node that runs here; q leaves"),
        ("vbnet top --node lab --interval 0.5", "of this one, twice a second"),
        ("vbnet top --once --tab ports", "print one table, with rates of one second"),
        ("vbnet top --once --format json", "print all tables, for a program"),
        ("vbnet top --web --listen 127.0.0.1:8010", "show it in a browser on this machine"),
    ],
)


@app.command()
def top(
    *,
    node: NodeOption = None,
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.1, max=60, help="Seconds between two looks.")
    ] = 1.0,
    tab: Annotated[
        Tab | None,
        typer.Option("--tab", "-t", help="Table to begin with; with --once the only one.", show_default=False),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look twice, print plain tables, and end.")] = False,
    web: Annotated[bool, typer.Option("--web", help="Show it in a browser instead; Ctrl-C ends it.")] = False,
    listen: Annotated[
        str, typer.Option("--listen", help="HOST:PORT for --web. Whoever reaches it sees everything.")
    ] = "127.0.0.1:8010",
    how: FormatOption = Format.table,
) -> None:
    """Watch what a host node counts."""
    run_dir = which(node)
    if web:
        if once or how is Format.json:
            raise UsageError("--web shows a screen; --once and --format json print: choose one of them")
        from vbnet.cli.top import web as server  # noqa: PLC0415 -- needs packages that few install

        server.serve(run_dir, interval, tab, listen)
    elif once or how is Format.json or not _has_screen():
        _print_once(run_dir, interval, tab, how)
    else:
        _show(run_dir, interval, tab)


def _has_screen() -> bool:
    """Say whether there is a terminal, or a server that stands between this process and a browser."""
    return SERVER_VARIABLE in os.environ or (output.is_terminal() and sys.stdin.isatty())


def _show(run_dir: RunDir, interval_s: float, tab: Tab | None) -> None:
    if SERVER_VARIABLE in os.environ:
        _end_with(int(os.environ[SERVER_VARIABLE]))
    from vbnet.cli.top.screen import TopApp  # noqa: PLC0415 -- Textual takes a third of a second to load
    from vbnet.telemetry.watch.look import Watcher  # noqa: PLC0415 -- same
    from vbnet.telemetry.watch.viewer import Viewer  # noqa: PLC0415 -- same

    TopApp(Viewer(Watcher(run_dir), tab=str(tab or Tab.guests)), interval_s).run()


def _end_with(server: int) -> None:
    """Let the kernel kill this process when the server that started it ends, also when it has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        sys.exit(0)


def _print_once(run_dir: RunDir, interval_s: float, tab: Tab | None, how: Format) -> None:
    from vbnet.telemetry.catalogue import installed  # noqa: PLC0415 -- native code only where it is used
    from vbnet.telemetry.watch.look import Watcher, condition  # noqa: PLC0415 -- same
    from vbnet.telemetry.watch.rates import Pair, Places  # noqa: PLC0415 -- same
    from vbnet.telemetry.watch.sheets import sheet  # noqa: PLC0415 -- same
    from vbnet.telemetry.watch.table import Step, arranged, plain_lines, records  # noqa: PLC0415 -- same

    watcher = Watcher(run_dir)
    before = watcher.look()
    time.sleep(interval_s)
    pair = Pair(before, watcher.look())
    places = Places(installed().metrics)
    sheets = {str(name): sheet(pair, places, [Step(str(name))]) for name in ([tab] if tab else Tab)}
    now = condition(pair.now)
    if how is Format.json:
        document: dict[str, Any] = {
            "node": pair.now.facts.name,
            "state": now.state,
            "detail": now.text,
            "time_s": pair.now.wall_s,
            "seconds": pair.seconds,
            "problems": pair.now.problems,
        }
        document.update({name: records(each, arranged(each)) for name, each in sheets.items()})
        output.print_json(document)
        return
    output.say(f"{pair.now.facts.name} {now.state}: {now.text}")
    for problem in pair.now.problems:
        output.note(f"not read: {problem}")
    for name, each in sheets.items():
        output.say(f"\n{name}: {each.note}" if each.note else f"\n{name}")
        for line in plain_lines(each):
            output.say(line)

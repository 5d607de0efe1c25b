"""`vbnet logs`: what guests and the host node printed, now and as it comes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from vbnet.bus.rundir import RunDir
from vbnet.cli import output
from vbnet.cli.labs import LabOption, complete_guest, find_guest
from vbnet.cli.output import Format, FormatOption
from vbnet.cluster.lab import HOST
from vbnet.cluster.state import choose_lab, read_state

POLL_S = 0.2

app = output.application(
    "Show what guests and the host node printed. Guests packed into one process share its log.",
    [
        ("vbnet logs web-0", "one guest"),
        ("vbnet logs -f", "all of the lab, as it comes; ends with the lab"),
        ("vbnet logs --host -n 100", "the host node's last 100 lines"),
    ],
)


@app.command()
def logs(
    guest: Annotated[
        str | None,
        typer.Argument(
            help="A guest; all of the lab when left out.", autocompletion=complete_guest, show_default=False
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the lab ends.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines of each log.")] = 50,
    host: Annotated[bool, typer.Option("--host", help="The host node's log.")] = False,
    *,
    lab: LabOption = None,
    how: FormatOption = Format.table,
) -> None:
    """Show what guests and the host node printed."""
    folder = choose_lab(lab)
    names = [HOST] if host else _all_names(folder) if guest is None else [find_guest(lab, guest)[2].process]
    followed = [_Log(RunDir(folder).logs / f"{name}.log", name) for name in names]
    for log in followed:
        for line in log.last(lines):
            _print(log.name, line, len(names) > 1, how)
    while follow and folder.exists():
        for log in followed:
            for line in log.more():
                _print(log.name, line, len(names) > 1, how)
        time.sleep(POLL_S)


class _Log:
    """One log file, read from where it was left."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name.lstrip("_")
        self._offset = 0
        self._rest = b""

    def last(self, count: int) -> list[str]:
        """Return the last ``count`` lines that are there."""
        return list(deque(self.more(), maxlen=count))

    def more(self) -> Iterator[str]:
        """Yield the whole lines that have come since."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._offset)
                content = self._rest + stream.read()
                self._offset = stream.tell()
        except OSError:
            return
        *whole, self._rest = content.split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")


def _all_names(folder: Path) -> list[str]:
    return [HOST, *read_state(folder).processes]


def _print(name: str, line: str, is_prefixed: bool, how: Format) -> None:
    if how is Format.json:
        output.print_json_line({"process": name, "line": line})
    else:
        output.say(f"{name}: {line}" if is_prefixed else line)

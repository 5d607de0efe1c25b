"""`vbnet errors`: each distinct error of a host node once, read from what it keeps in its run directory."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from vbnet.cli import output
from vbnet.cli.connection import NodeOption, kept
from vbnet.cli.output import Format, FormatOption

app = output.application(
    "Show the distinct errors of a host node, the latest first: what guests broke, which device code failed, what was "
    "refused.\n\nReads a file that the node keeps, so it works on one that hangs or was killed, and disturbs none. "
    "Exits with 0 whether there are errors or not, 3 when no node has run there, 7 when the file is damaged.",
    [
        ("vbnet errors", "of the host node that runs here"),
        ("vbnet errors --node lab1 --format json", "of this one, for a program"),
    ],
)

COLUMNS = ("what", "whose", "code", "count", "first", "last", "message")


@app.command()
def errors(*, node: NodeOption = None, how: FormatOption = Format.table) -> None:
    """Show the distinct errors of a host node."""
    from vbnet.bus.errorlog import read_errors  # noqa: PLC0415 -- only where it is used

    run_dir = kept(node)
    found = read_errors(run_dir)
    if how is Format.json:
        output.print_json({"errors": found.errors, "evicted": found.evicted, "unreadable": found.unreadable})
        return
    rows = [
        {**msgspec.structs.asdict(entry), "first": _moment(entry.first_s), "last": _moment(entry.last_s)}
        for entry in found.errors
    ]
    output.print_rows(rows, COLUMNS, how, empty="no error yet")
    if found.evicted:
        output.note(f"{found.evicted} errors that were counted least made room for others")
    if found.unreadable:
        output.note(f"{found.unreadable} entries of {run_dir.errors_file} are damaged and were left out")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")

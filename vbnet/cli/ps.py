"""`vbnet ps`: the guests of running labs, and how they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vbnet.cli import output
from vbnet.cli.labs import LabArgument
from vbnet.cli.output import Format, FormatOption
from vbnet.cli.wedged import wedged_guests
from vbnet.cluster.process import is_alive
from vbnet.cluster.state import LabState, choose_lab, lab_folders, read_state, shown_state

COLUMNS = ("lab", "guest", "kind", "state", "ip", "mac", "pid", "restarts", "detail")

app = output.application(
    "List the guests of running labs, of one or of all.\n\nWorks from any shell, also when a lab's supervisor "
    "was killed: "
    "such guests are shown as dead, and `vbnet down` or `vbnet clean` removes what is left. A guest is wedged when a "
    "handler of its signals does not return; the detail says which.",
    [("vbnet ps", "guests of all labs"), ("vbnet ps demo --format json", "of one, for a program")],
)


@app.command()
def ps(lab: LabArgument = None, how: FormatOption = Format.table) -> None:
    """List the guests of running labs."""
    folders = [choose_lab(lab)] if lab is not None else lab_folders()
    rows = [row for folder in folders for row in _with_wedged(folder, guest_rows(read_state(folder)))]
    output.print_rows(rows, COLUMNS, how, empty="no lab is up; start one with `vbnet up FILE`")


def guest_rows(state: LabState) -> list[dict[str, Any]]:
    """Return one row a guest, as they are at this moment."""
    rows = []
    for guest in state.guests.values():
        process = state.processes[guest.process]
        is_running = is_alive(process.identity)
        rows.append(
            {
                "lab": state.lab,
                "guest": guest.name,
                "kind": guest.kind,
                "state": shown_state(state, process, guest),
                "ip": guest.ips,
                "mac": guest.macs,
                "process": guest.process,
                "pid": process.identity.pid if process.identity and is_running else None,
                "restart": process.restart,
                "restarts": process.restarts,
                "detail": guest.detail,
                "since_s": state.since_s,
            }
        )
    return rows


def _with_wedged(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Show guests whose host node says that a handler of theirs does not return."""
    if not any(row["state"] == "ready" for row in rows):
        return rows
    wedged = wedged_guests(folder)
    return [
        {**row, "state": "wedged", "detail": wedged[row["guest"]]}
        if row["state"] == "ready" and row["guest"] in wedged
        else row
        for row in rows
    ]

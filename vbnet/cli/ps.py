"""`vbnet ps`: the guests of running labs, and how they are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbnet.cli import output
from vbnet.cli.labs import LabArgument
from vbnet.cli.output import Format, FormatOption
from vbnet.cli.wedged import ANSWER_DEADLINE_S, guest_text, guests_told
from vbnet.cluster.process import is_alive
from vbnet.cluster.state import LabState, choose_lab, lab_folders, read_state, shown_state
from vbnet.errors import VbnetError

if TYPE_CHECKING:
    from vbnet.bus.admin import GuestInfo

_SERVED_KINDS = ("vhost-user", "front-end")
"""Ports at whose other end is a program that a lab does not start."""

COLUMNS = ("lab", "guest", "kind", "state", "ip", "mac", "pid", "restarts", "detail")

app = output.application(
    "List the guests of running labs, of one or of all.\n\nWorks from any shell, also when a lab's supervisor "
    "was killed: "
    "such guests are shown as dead, and `vbnet down` or `vbnet clean` removes what is left. A guest is wedged when a "
    "handler of its signals does not return, and stuck when its process does nothing; the detail says which handler, "
    "and which interface is quarantined. Virtual machines and DPDK applications of the "
    "lab's `vhost-user` are not started by it: they are `connected` or `waiting`, and the detail has the socket.",
    [("vbnet ps", "guests of all labs"), ("vbnet ps demo --format json", "of one, for a program")],
)


@app.command()
def ps(lab: LabArgument = None, how: FormatOption = Format.table) -> None:
    """List the guests of running labs."""
    folders = [choose_lab(lab)] if lab is not None else lab_folders()
    states = [(folder, read_state(folder)) for folder in folders]
    rows = [
        row
        for folder, state in states
        for row in [*_as_told(folder, guest_rows(state)), *front_end_rows(state, front_ends(folder, state))]
    ]
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


def front_end_rows(state: LabState, ports: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each port that waits for somebody else's program.

    Args:
        state: of the lab.
        ports: of its host node, by name; none when it does not answer.
    """
    rows = []
    for front_end in state.front_ends:
        port = ports.get(front_end.name)
        if port is None:
            shown = "unknown" if is_alive(state.supervisor) else "dead"
        else:
            shown = "connected" if port["is_served"] else "waiting"
        rows.append(
            {
                "lab": state.lab,
                "guest": front_end.name,
                "kind": "vhost-user" if port is None else port["kind"],
                "state": shown,
                "ip": [],
                "mac": front_end.macs,
                "process": None,
                "pid": None,
                "restart": None,
                "restarts": None,
                "detail": "" if port is None else _front_end_detail(port),
                "since_s": state.since_s,
            }
        )
    return rows


def _front_end_detail(port: Mapping[str, Any]) -> str:
    """The socket, and why nobody gets through to it."""
    return f"{port['device']}: {port['detail']}" if port["detail"] else str(port["device"])


def front_ends(folder: Path, state: LabState) -> dict[str, dict[str, Any]]:
    """Return, by name, the ports of a lab's host node that wait for front ends; nothing when nobody answers."""
    if not state.front_ends:
        return {}
    from vbnet.bus.operator import SyncOperator  # noqa: PLC0415 -- ZeroMQ is loaded for labs that have such ports only

    with suppress(VbnetError), SyncOperator(folder, deadline_s=ANSWER_DEADLINE_S) as operator:
        return {port["name"]: port for port in operator.port_list() if port["kind"] in _SERVED_KINDS}
    return {}


def _as_told(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Show of guests that are ready what their host node says of them, or that it does not answer."""
    if not any(row["state"] == "ready" for row in rows):
        return rows
    told = guests_told(folder)
    return [_row_as_told(row, told) if row["state"] == "ready" else row for row in rows]


def _row_as_told(row: dict[str, Any], told: Mapping[str, GuestInfo] | None) -> dict[str, Any]:
    if told is None:
        return {**row, "detail": row["detail"] or "the host node does not answer"}
    guest = told.get(row["guest"])
    if guest is None:
        return row
    state = guest.state if guest.state in {"stuck", "wedged"} else row["state"]
    return {**row, "state": state, "detail": guest_text(guest) or row["detail"]}

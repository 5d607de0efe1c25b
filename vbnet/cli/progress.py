"""A lab coming up, for whoever watches: live bars on a terminal, one line a step elsewhere, JSON lines for programs."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

from vbnet.cli import output
from vbnet.cli.output import Format
from vbnet.cluster.lab import LabEvent

STEPS = {
    "host": "host node",
    "network": "buses, devices",
    "disk": "disks",
    "uplink": "uplinks",
    "guest": "guests ready",
}
GUEST_STATES = {"failed", "restarting", "given-up", "ended"}


class Progress:
    """Shows events; use it as a context manager around the bring-up.

    Args:
        how: JSON makes every event a line of standard output.
    """

    def __init__(self, how: Format) -> None:
        self._how = how
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._is_live = how is Format.table and sys.stderr.isatty() and output.is_terminal()

    def __enter__(self) -> Self:
        if self._is_live:
            from rich import progress  # noqa: PLC0415 -- only a terminal pays for it
            from rich.console import Console  # noqa: PLC0415 -- same

            columns = (
                progress.TextColumn("{task.description:<15}"),
                progress.BarColumn(24),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
            )
            self._bars = progress.Progress(*columns, console=Console(stderr=True), transient=False)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop drawing; later events are printed as lines."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        self._is_live = False

    def show(self, event: LabEvent) -> None:
        """Show one event."""
        if self._how is Format.json:
            output.print_json_line(event)
        elif self._bars is not None:
            self._draw(event)
        else:
            self._print(event)

    def _draw(self, event: LabEvent) -> None:
        if event.step == "guest" and event.state in GUEST_STATES:
            self._bars.console.print(_sentence(event), markup=False, highlight=False)
        if event.step not in STEPS:
            return
        total = event.total or 1
        if event.step not in self._tasks:
            self._tasks[event.step] = self._bars.add_task(STEPS[event.step], total=total)
        completed = event.done if event.total else int(event.state == "ready")
        self._bars.update(self._tasks[event.step], total=total, completed=completed)

    def _print(self, event: LabEvent) -> None:
        is_last = event.done == event.total
        if event.step == "guest" and event.state == "ready" and not is_last:
            return
        if event.step == "network" and not is_last:
            return
        output.note(_sentence(event))


def _sentence(event: LabEvent) -> str:
    counted = f"{event.done}/{event.total} " if event.total else ""
    if event.step == "guest" and event.state == "ready" and event.total:
        return f"guests: {counted}ready"
    if event.step == "network":
        return f"buses, switches, devices: {counted}requests done"
    detail = f" ({event.detail})" if event.detail else ""
    return f"{event.step} {event.subject}: {event.state}{detail}"

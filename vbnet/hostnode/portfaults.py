"""Why a port does not do what it should: what was told of it last, for whoever lists ports.

A fault is told when it happens, as an event; who looks later, because nothing arrives, finds it here. It is forgotten
when the port works again, and with the port.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vbnet.hostnode.fabric import Fabric

__all__ = ["PortFaults"]

_WAITING = "another front end waits for the one that is connected to go: two programs were given the same socket"


class PortFaults:
    """What was told last about each port; for the event loop."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}

    def note(self, fault: Mapping[str, Any]) -> None:
        """Keep what a fault of the fabric says: its text, or at least the rule."""
        self._texts[fault["port"]] = fault.get("text", fault["rule"])

    def broken(self, fabric: Fabric | None) -> dict[str, str]:
        """Why, for each port of which a queue is quarantined, by the port's name."""
        rows = self.rows(fabric) if fabric is not None else []
        faults = {row["name"]: row.get("transmit_fault") or row.get("receive_fault") for row in rows}
        return {row["name"]: row["detail"] or str(faults[row["name"]]) for row in rows if faults[row["name"]]}

    def rows(self, fabric: Fabric) -> list[dict[str, Any]]:
        """Every port as the fabric has it, with a ``detail``: why it does not work, or empty."""
        rows = [{**row, "detail": ""} for row in fabric.ports()]
        self._texts = {row["id"]: self._texts[row["id"]] for row in rows if row["id"] in self._texts}
        for row in rows:
            is_whole = not (row.get("transmit_fault") or row.get("receive_fault"))
            if row.get("is_served") and is_whole:
                self._texts.pop(row["id"], None)
            waiting = _WAITING if row.get("has_waiting") else ""
            row["detail"] = self._texts.get(row["id"], waiting)
        return rows

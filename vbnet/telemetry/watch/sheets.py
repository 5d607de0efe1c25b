"""Tables of what a host node counts, made from two looks, by the path that leads to them.

path = (Step("guests"),)                                a tab
(Step("guests"), Step("guest", ("web-0",)))      what one guest has: its devices
(..., Step("device", ("web-0", "web-0.lan")))    every counter of a device, with its meaning
"""

from __future__ import annotations

from collections.abc import Sequence

from vbnet.sharedmem.snapshot import parse_labels
from vbnet.telemetry.watch.details import block_sheet, device_sheet, guest_sheet
from vbnet.telemetry.watch.look import printable
from vbnet.telemetry.watch.rates import Pair, Places
from vbnet.telemetry.watch.reading import Reading
from vbnet.telemetry.watch.table import Sheet, Step
from vbnet.telemetry.watch.tabs import TABS

__all__ = ["sheet", "title"]


def sheet(pair: Pair, places: Places, path: Sequence[Step]) -> Sheet:
    """The table at the end of ``path``, which is not empty."""
    read = Reading(pair, places)
    to, whose = path[-1]
    match to:
        case "guest":
            return guest_sheet(read, whose[0])
        case "device":
            return device_sheet(read, whose[-1], whose[0] if len(whose) > 1 else None)
        case "block":
            return block_sheet(read, whose[0], whose[1])
        case _:
            return TABS[to](read)


def title(path: Sequence[Step]) -> str:
    """Where one is, for people: ``guests > web-0 > web-0.lan``."""
    return " > ".join(_step_title(step) for step in path)


def _step_title(step: Step) -> str:
    match step.to:
        case "guest":
            return f"guest {step.whose[0]}"
        case "device":
            return f"device {step.whose[-1]}"
        case "block":
            labels = parse_labels(step.whose[1]).values()
            return " ".join([step.whose[0], *(printable(value) for value in labels if value)])
        case _:
            return step.to

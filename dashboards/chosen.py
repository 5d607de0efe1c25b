"""What the dashboards have in common: their choices, the series these leave, and the moments they mark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dashboards.panels import BAD, GOOD, GREY, WARN, Mark, Variable
from dashboards.promql import Asked, Expr, Scope, whole
from vbnet.devices.intc.metrics import SIGNAL
from vbnet.devices.timer.metrics import TIMER
from vbnet.devices.venet.metrics import PORT
from vbnet.hostnode.metrics import DEVICES, FAULTS, GUEST, GUEST_STATES, HOST, SWITCH, WORKER
from vbnet.telemetry import own

__all__ = ["ALERTS", "GUEST_WORDS", "RATE_WINDOW", "guest_state", "marks", "scope", "variables"]

RATE_WINDOW: Final = "$__rate_interval"
ALERTS: Final = Expr('ALERTS{alertname=~"Vbnet.*", alertstate="firing"}', "short", frozenset({"ALERTS"}))
"""Prometheus' own: each alert that fires."""

_ORDER: Final = ("job", "lab", "switch", "worker", "guest", "device")
_NAMES: Final = {
    "job": "Job",
    "lab": "Lab",
    "switch": "Switch",
    "worker": "Worker",
    "guest": "Guest",
    "device": "Device",
}


def scope(*choices: str) -> Scope:
    """Return the series that a dashboard's choices leave."""
    return Scope(RATE_WINDOW, {name: f'=~"${name}"' for name in ("job", "lab", *choices)})


def variables(*choices: str) -> Sequence[Variable]:
    """Return the choices of a dashboard: always job and lab; each leaves what those before it chose."""
    asked: dict[str, Asked | tuple[Asked, ...]] = {
        "job": own.UP,
        "lab": own.UP,
        "switch": SWITCH.values["ports"],
        "worker": WORKER.values["ports"],
        "guest": whole(GUEST.values["state"]),
        "device": (PORT.values["receive_frames"], SIGNAL.values["raises"], TIMER.values["arms"]),
    }
    names = [name for name in _ORDER if name in {"job", "lab", *choices}]
    made = []
    for place, name in enumerate(names):
        before = Scope("", {known: f'=~"${known}"' for known in names[:place]})
        made.append(Variable(name, _NAMES[name], before.label_values(asked[name], name)))
    return made


_COLOURS: Final = {
    "starting": "blue",
    "joined": "blue",
    "ready": GOOD,
    "wedged": BAD,
    "stuck": BAD,
    "ended": GREY,
}
GUEST_WORDS: Final = tuple((place, state, _COLOURS[state]) for place, state in enumerate(GUEST_STATES))
"""What the numbers of ``guest_state`` are called."""


def guest_state(here: Scope) -> Expr:
    """Return the state of each guest as a number: its place among the states."""
    state = whole(GUEST.values["state"])
    places = [
        here.total(state, "lab", "guest", how="max", state=f'="{name}"').times(place)
        for place, name in enumerate(GUEST_STATES)
    ]
    total = places[0]
    for place in places[1:]:
        total = Expr(f"{total} + {place}", total.unit, total.metrics)
    return total


def marks(here: Scope) -> Sequence[Mark]:
    """Return what every dashboard marks: faults, hot-plug, and a host node that came anew."""
    rejected = whole(PORT.values["fault_tail_out_of_range"])
    return [
        Mark(
            "Faults",
            here.increase(FAULTS, "lab") > 0,
            "Rule broken in {{lab}}",
            "A guest broke a rule, and a device reported it. `vbnet errors` has the words.",
            BAD,
        ),
        Mark(
            "Quarantine",
            here.increase(rejected, "lab", "guest", "device", "reason") > 0,
            "Queue of {{guest}} quarantined",
            "{{device}}: {{reason}}",
            BAD,
        ),
        Mark(
            "Hot-plug",
            here.changes(DEVICES, "lab") > 0,
            "Devices of {{lab}} changed",
            "A device was made or deleted. `vbnet events --last 20` names it.",
            "blue",
        ),
        Mark(
            "Guests",
            here.changes(HOST.values["guests"], "lab") > 0,
            "Guests of {{lab}} changed",
            "A guest came or went.",
            GOOD,
        ),
        Mark(
            "Node restarted",
            here.resets(HOST.values["guest_sessions"], "lab") > 0,
            "Host node of {{lab}} began anew",
            "All counters began at 0.",
            WARN,
        ),
    ]

"""The first look: are all nodes up, are guests well, what flows, what is lost."""

from __future__ import annotations

from typing import Final

from dashboards.chosen import ALERTS, GUEST_WORDS, guest_state, marks, scope, variables
from dashboards.panels import BAD, GOOD, Dashboard, Kind, Panel, Query, Row
from dashboards.promql import PROCESS, Expr, any_of, whole
from dashboards.threads import awake
from vbnet.devices.venet.metrics import PORT
from vbnet.hostnode import metrics as host
from vbnet.telemetry import own

__all__ = ["OVERVIEW"]

HERE: Final = scope()
_RECEIVED: Final = PORT.values["receive_frames"]
_LOST_IN: Final = whole(PORT.values["receive_drop_no_room"])
_LOST_OUT: Final = whole(PORT.values["transmit_drop_oversize"])
_STATE: Final = host.GUEST.values["state"]

_lost: Final = HERE.rate(_LOST_IN)
_firing: Final = Expr(f"count({ALERTS}) or vector(0)", "short", ALERTS.metrics)

_GLANCE: Final = Row(
    "Overview",
    [
        Panel(
            "Host nodes",
            [Query(HERE.total(own.UP, "lab", how="min"), "{{lab}}")],
            "Whether the process of each lab's host node is there, hung or not.",
            "`vbnet ps` shows what is left of the lab, `vbnet logs host` its last words; "
            "runbook vbnet-node-down says more.",
            Kind.NUMBER,
            4,
            words=((0, "down", BAD), (1, "up", GOOD)),
            limits=None,
        ),
        Panel(
            "Alerts",
            [Query(_firing, "firing")],
            "How many of vbnet's alerts fire now, of all labs.",
            "Open Prometheus' alerts page; each alert links to its runbook.",
            Kind.NUMBER,
            4,
            limits=(1, 1),
        ),
        Panel(
            "Guests ready",
            [Query(HERE.total(_STATE, state=any_of("ready")), "ready")],
            "Guests that hear of devices and answer.",
            "Fewer than the lab file has: look at the guests' states below.",
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Guests not well",
            [Query(HERE.total(_STATE, state=any_of("wedged", "stuck")), "not well")],
            "Guests with a handler that hangs (wedged), or silent too long (stuck).",
            "`vbnet guest list` names them, `vbnet logs GUEST` shows what they did last; runbook vbnet-guest-wedged.",
            Kind.NUMBER,
            4,
            limits=(1, 1),
        ),
        Panel(
            "Frames delivered",
            [Query(HERE.rate(_RECEIVED), "frames")],
            "Frames given to guests and TAPs, a second.",
            "Nothing where traffic is expected: compare with what guests send, on the dashboard of switches.",
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Frames lost",
            [Query(_lost / (HERE.rate(_RECEIVED) + _lost), "lost")],
            "Share of the frames for guests that were not given to them.",
            "See the reasons below: `no_room` means that a receiver is slower than its senders.",
            Kind.NUMBER,
            4,
            limits=(0.001, 0.01),
        ),
    ],
)

_TRAFFIC: Final = Row(
    "Traffic",
    [
        Panel(
            "Frames delivered, by lab and switch",
            [Query(HERE.rate(_RECEIVED, "lab", "switch"), "{{lab}} {{switch}}")],
            "Frames given to guests and TAPs. A frame to every port counts once for each.",
            "A drop to nothing: look at guests' states and at link_down among the losses.",
        ),
        Panel(
            "Bytes delivered, by lab and switch",
            [Query(HERE.rate(PORT.values["receive_bytes"], "lab", "switch"), "{{lab}} {{switch}}")],
            "The same in bytes of frames, without preamble or checksum.",
            "Compare with the frames: bytes by frames is the mean length.",
        ),
        Panel(
            "Frames lost, by reason",
            [
                Query(HERE.rate(_LOST_IN, "reason"), "to guests: {{reason}}"),
                Query(HERE.rate(_LOST_OUT, "reason"), "from guests: {{reason}}"),
            ],
            "Frames not given to a guest, and frames of guests not taken on. docs/metrics.md explains each reason.",
            "`no_room`: the receiver is too slow, or its ring too small. `quarantined`: it broke a rule, see "
            "`vbnet errors`. `forged_source`: a guest sends under another's address.",
            is_stacked=True,
        ),
        Panel(
            "Busiest senders",
            [Query(HERE.rate(PORT.values["transmit_frames"], "lab", "guest", "device").top(10), "{{lab}} {{device}}")],
            "The ten ports from which most frames are taken.",
            "One that should be quiet: `vbnet port stats` says more of it.",
        ),
    ],
)

_GUESTS: Final = Row(
    "Guests",
    [
        Panel(
            "Guests' states",
            [Query(guest_state(HERE), "{{lab}} {{guest}}")],
            "What each guest is, over time. The last 64 that ended are shown as such.",
            "wedged: a handler hangs, `vbnet logs GUEST` shows where. stuck: it does not answer at all.",
            Kind.STATES,
            words=GUEST_WORDS,
        ),
        Panel(
            "Sessions",
            [
                Query(HERE.increase(host.SESSIONS, "lab"), "{{lab}} opened"),
                Query(HERE.increase(whole(host.ENDED), "lab", "cause"), "{{lab}} ended: {{cause}}"),
            ],
            "Sessions that were opened, and that ended, by cause.",
            "`exited` and `hung-up` are deaths. Others than that, `bye`, `bus-deleted` and "
            "`host-stopped` are misbehaviour: `vbnet events --last 20`.",
        ),
    ],
)

_FAULTS: Final = Row(
    "Faults",
    [
        Panel(
            "Rules broken and bugs contained",
            [
                Query(HERE.increase(host.FAULTS, "lab"), "{{lab}} rules broken by guests"),
                Query(HERE.increase(host.DEVICE_FAILURES, "lab"), "{{lab}} bugs in device code"),
                Query(
                    HERE.increase(whole(PORT.values["fault_tail_out_of_range"]), "lab", "reason"),
                    "{{lab}} queue ended: {{reason}}",
                ),
            ],
            "What guests wrote that no guest may write, and failures of vbnet's own device code.",
            "`vbnet errors` has each distinct one with its values. A bug in device code is ours: please report it.",
            limits=(1, 1),
        ),
        Panel(
            "Requests refused, by error",
            [Query(HERE.rate(whole(host.REFUSED), "lab", "code"), "{{lab}} {{code}}")],
            "Requests and packets of guests that the host node refused, by errno name.",
            "A steady rate is a guest that asks again and again: `vbnet errors` names it.",
            is_stacked=True,
        ),
    ],
)

_HOST: Final = Row(
    "Host node",
    [
        Panel(
            "Workers awake",
            [Query(awake(HERE, "lab"), "{{lab}} {{worker}}")],
            "Share of the time that each thread which moves frames does not sleep.",
            "Near 1 with few idle rounds it is at its limit: give the lab more workers (`host: {workers: N}`).",
            limits=(0.9, 0.98),
            width=8,
            top=1,
        ),
        Panel(
            "Heartbeat age",
            [Query(HERE.age(host.HEARTBEAT).largest("lab"), "{{lab}}")],
            "How old the event loop's last heartbeat was at the scrape. A node that hangs falls behind.",
            "Above three intervals: runbook vbnet-node-hung.",
            width=8,
        ),
        Panel(
            "Node's processor time",
            [Query(HERE.rate(PROCESS["cpu_seconds"], "lab"), "{{lab}}")],
            "Processor time of the host node's process, in processors: 1 is one whole processor.",
            "High without traffic: a guest polls or asks without end, see requests on the dashboard of guests.",
            width=8,
            unit="short",
        ),
    ],
)

OVERVIEW: Final = Dashboard(
    "vbnet-overview",
    "vbnet / Overview",
    "All labs at a glance: nodes, guests, traffic, losses, faults.",
    variables(),
    [_GLANCE, _TRAFFIC, _GUESTS, _FAULTS, _HOST],
    marks(HERE),
)

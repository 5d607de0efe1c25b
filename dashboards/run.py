"""A run: what generators offer, what arrives, what it costs. For load tests, soak tests and comparisons."""

from __future__ import annotations

from typing import Final

from dashboards.chosen import marks, scope, variables
from dashboards.panels import Dashboard, Kind, Panel, Query, Row
from dashboards.promql import PROCESS, whole
from dashboards.threads import awake, busy
from vbnet.devices.venet.metrics import PORT

__all__ = ["RUN"]

HERE: Final = scope("guest")
LAB: Final = scope()
_LOST_IN: Final = whole(PORT.values["receive_drop_no_room"])
_LOST_OUT: Final = whole(PORT.values["transmit_drop_oversize"])
_SLOTS: Final = whole(PORT.values["transmit_slots"])
_USED: Final = whole(PORT.values["transmit_slots_used"])

_offered: Final = HERE.rate(PORT.values["transmit_frames"])
_given: Final = HERE.rate(PORT.values["receive_frames"])
_lost: Final = HERE.rate(_LOST_IN)

_RESULT: Final = Row(
    "Overview",
    [
        Panel(
            "Offered",
            [Query(_offered, "frames")],
            "Frames taken from guests, a second.",
            "Below the rate that was asked for: the generator or the host is at its limit, see cost below.",
            Kind.NUMBER,
            5,
        ),
        Panel(
            "Delivered",
            [Query(_given, "frames")],
            "Frames given to guests, a second.",
            "Below what is offered: see losses. Above: frames to every port.",
            Kind.NUMBER,
            5,
        ),
        Panel(
            "Delivered",
            [Query(HERE.rate(PORT.values["receive_bytes"]), "bytes")],
            "The same in bytes of frames.",
            "By frames it is the mean length.",
            Kind.NUMBER,
            5,
        ),
        Panel(
            "Lost",
            [Query(_lost / (_given + _lost), "lost")],
            "Share of the frames for guests that were not given to them.",
            "The highest rate with 0 here is what the lab can carry.",
            Kind.NUMBER,
            5,
            limits=(0.0001, 0.01),
        ),
        Panel(
            "Workers awake",
            [Query(awake(LAB, "lab").mean(), "awake")],
            "Mean share of the time that workers do not sleep.",
            "At 1, with frames lost, the host is the limit.",
            Kind.NUMBER,
            4,
            limits=(0.9, 0.98),
        ),
    ],
)

_RATES: Final = Row(
    "Offered and delivered",
    [
        Panel(
            "Offered, by guest",
            [Query(HERE.rate(PORT.values["transmit_frames"], "lab", "guest"), "{{lab}} {{guest}}")],
            "Frames taken from each guest.",
            "Uneven among equal generators: one has less of the processor.",
        ),
        Panel(
            "Delivered, by guest",
            [Query(HERE.rate(PORT.values["receive_frames"], "lab", "guest"), "{{lab}} {{guest}}")],
            "Frames given to each guest.",
            "Steps down: a guest died, see the marks.",
        ),
        Panel(
            "Lost, by reason",
            [
                Query(HERE.rate(_LOST_IN, "lab", "reason"), "{{lab}} to guests: {{reason}}"),
                Query(HERE.rate(_LOST_OUT, "lab", "reason"), "{{lab}} from guests: {{reason}}"),
            ],
            "Frames that did not arrive, by the reason of each loss.",
            "Only `no_room` belongs to a load test; anything else is a mistake in its set-up.",
            is_stacked=True,
        ),
        Panel(
            "Mean length of frames, by guest",
            [
                Query(
                    (
                        HERE.rate(PORT.values["receive_bytes"], "lab", "guest")
                        / HERE.rate(PORT.values["receive_frames"], "lab", "guest")
                    ),
                    "{{lab}} {{guest}}",
                )
            ],
            "Bytes by frames, of those given to each guest.",
            "Compare rates of runs only at the same length.",
            unit="bytes",
            empty_until="frames flow",
        ),
    ],
)

_COST: Final = Row(
    "Cost",
    [
        Panel(
            "Workers: awake, and rounds that moved frames",
            [
                Query(awake(LAB, "lab"), "{{lab}} {{worker}} awake"),
                Query(busy(LAB, "lab"), "{{lab}} {{worker}} busy rounds"),
            ],
            "Share of time awake, and of rounds that moved frames.",
            "Both near 1: the worker is at its limit.",
            width=8,
            top=1,
        ),
        Panel(
            "Host node's processor time for each frame",
            [
                Query(
                    LAB.rate(PROCESS["cpu_seconds"], "lab") / LAB.rate(PORT.values["receive_frames"], "lab"),
                    "{{lab}}",
                )
            ],
            "Processor time of the host node by frames delivered; polling counts as well, so it falls with the rate.",
            "Compare with an earlier run at the same rate and length.",
            width=8,
            unit="s",
            empty_until="frames flow",
        ),
        Panel(
            "Doorbells for each frame",
            [
                Query(
                    LAB.rate(PORT.values["kicks"], "lab") / LAB.rate(PORT.values["transmit_frames"], "lab"),
                    "{{lab}} heard",
                ),
                Query(
                    LAB.rate(PORT.values["calls_rung"], "lab") / LAB.rate(PORT.values["receive_frames"], "lab"),
                    "{{lab}} rung",
                ),
            ],
            "System calls for doorbells by frames, both ways.",
            "Near 0 at high rates. Near 1: every frame finds a sleeper.",
            width=8,
            unit="short",
            empty_until="frames flow",
        ),
        Panel(
            "Rings, how full",
            [
                Query(
                    HERE.total(_USED, "lab", "guest", "queue") / HERE.total(_SLOTS, "lab", "guest", "queue"),
                    "{{lab}} {{guest}} {{queue}}",
                )
            ],
            "Transmit: frames that wait for the host. Receive: buffers that wait for frames.",
            "A full transmit ring: the host is the limit. An empty receive ring: the receiver is.",
            top=1,
        ),
        Panel(
            "Host node's memory",
            [Query(LAB.total(PROCESS["resident_bytes"], "lab"), "{{lab}}")],
            "Resident memory of the host node.",
            "In a soak test it must stay level once all guests are there.",
        ),
    ],
)

RUN: Final = Dashboard(
    "vbnet-run",
    "vbnet / Run",
    "A load or soak run: what is offered, what arrives, what it costs.",
    variables("guest"),
    [_RESULT, _RATES, _COST],
    marks(LAB),
)

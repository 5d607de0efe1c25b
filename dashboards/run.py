"""A run: what generators offer, what arrives, what it costs. For load tests, soak tests and comparisons."""

from __future__ import annotations

from typing import Final

from dashboards.chosen import marks, scope, variables
from dashboards.panels import WARN, Dashboard, Kind, Mark, Panel, Query, Row
from dashboards.promql import PROCESS, whole
from dashboards.threads import awake, busy
from vbnet.devices.venet.metrics import PORT, SINK, SOURCE
from vbnet.telemetry import runs

__all__ = ["RUN"]

HERE: Final = scope("guest")
LAB: Final = scope()
_LATENCY: Final = SINK.values["latency"]
_TRAFFIC: Final = "a traffic guest runs"
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

_TESTED: Final = Row(
    "Test frames, from end to end",
    [
        Panel(
            "Latency",
            [
                Query(HERE.quantile(part, _LATENCY, "lab", "guest"), f"{{{{lab}}}} {{{{guest}}}} {words}")
                for part, words in ((0.5, "half"), (0.99, "99 %"), (0.999, "99.9 %"))
            ],
            "From when a test frame was due to when it was taken in: half, 99 % and 99.9 % took at most so long.",
            "Rising with the rate: queues build up, near the lab's limit. High at any rate: somebody sleeps deeply.",
            empty_until=_TRAFFIC,
        ),
        Panel(
            "Latency, all of it",
            [Query(HERE.buckets(_LATENCY), "{{le}}")],
            "How many test frames took how long, over time.",
            "A second band: some frames wait for a process that was not running.",
            Kind.HEAT,
            unit="short",
            empty_until=_TRAFFIC,
        ),
        Panel(
            "Sent and received intact",
            [
                Query(HERE.rate(SOURCE.values["frames"], "lab", "guest"), "{{lab}} {{guest}} sent"),
                Query(HERE.rate(SINK.values["frames"], "lab", "guest"), "{{lab}} {{guest}} received"),
            ],
            "Test frames, as traffic guests count them themselves.",
            "Less received than sent: see what is missing, and the losses by reason above.",
            width=8,
            empty_until=_TRAFFIC,
        ),
        Panel(
            "Bytes sent and received",
            [
                Query(HERE.rate(SOURCE.values["bytes"], "lab", "guest"), "{{lab}} {{guest}} sent"),
                Query(HERE.rate(SINK.values["bytes"], "lab", "guest"), "{{lab}} {{guest}} received"),
            ],
            "Bytes of test frames, as traffic guests count them.",
            "By frames it is the mean length.",
            width=8,
            empty_until=_TRAFFIC,
        ),
        Panel(
            "Missing, and not as sent",
            [
                Query(HERE.total(SINK.values["lost"], "lab", "guest"), "{{lab}} {{guest}} missing"),
                Query(
                    HERE.increase(whole(SINK.values["corrupted"]), "lab", "guest", "kind").also_in("short"),
                    "{{lab}} {{guest}} {{kind}}",
                ),
            ],
            "Test frames that are missing now, of those before the last that arrived; and those that did not arrive as "
            "they were sent.",
            "Missing frames have a reason among the losses. Corrupted ones have none: please report it.",
            width=8,
            limits=(1, 1),
            empty_until=_TRAFFIC,
        ),
        Panel(
            "Sent late",
            [
                Query(HERE.rate(SOURCE.values["late_sum_ns"], "lab", "guest"), "{{lab}} {{guest}}"),
            ],
            "Lateness of frames that left, summed up, a second: 100 % is a second of lateness in each second.",
            "The generator cannot keep its rate: it has too little of the processor, or no room to send.",
            width=8,
            empty_until=_TRAFFIC,
        ),
        Panel(
            "Sent late, the worst",
            [Query(HERE.total(SOURCE.values["late_max_ns"], "lab", "guest", how="max"), "{{lab}} {{guest}}")],
            "The latest that a frame ever left after it was due.",
            "Milliseconds: the generator was not run for so long.",
            width=8,
            empty_until=_TRAFFIC,
        ),
        Panel(
            "No room to send",
            [Query(HERE.rate(SOURCE.values["blocked"], "lab", "guest"), "{{lab}} {{guest}}")],
            "How often a generator found its ring full.",
            "The host does not keep up: see cost below.",
            width=8,
            empty_until=_TRAFFIC,
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

_UNDER_WAY: Final = "a load or soak run is under way"
_MOMENTS: Final = (("began", "began"), ("fault", "last fault"), ("ended", "ended"))

_PROGRESS: Final = Row(
    "Load and soak runs",
    [
        Panel(
            "How far",
            [
                Query(
                    LAB.total(runs.RUN.values["elapsed"], "lab", "run", "profile")
                    / LAB.total(runs.RUN.values["planned"], "lab", "run", "profile"),
                    "{{lab}} {{run}} {{profile}}",
                )
            ],
            "Of a run with `vbnet load` or `vbnet soak`: how much of its time is over.",
            "Standing still: the run hangs, or its lab does. Look at `vbnet events`.",
            width=8,
            top=1,
            empty_until=_UNDER_WAY,
        ),
        Panel(
            "Since it began, its last fault, its end",
            [Query(LAB.age(runs.RUN.values[name]) > 0, f"{{{{lab}}}} {{{{run}}}} {words}") for name, words in _MOMENTS],
            "How long ago that was; what has not happened yet counts from 1970.",
            "No fault for longer than the profile says: one before takes too long to be over.",
            width=8,
            empty_until=_UNDER_WAY,
        ),
        Panel(
            "Faults done, and planned",
            [
                Query(LAB.total(whole(runs.RUN.values["fault_kill"]), "lab", "kind"), "{{lab}} {{kind}}"),
                Query(LAB.total(runs.RUN.values["planned_faults"], "lab"), "{{lab}} planned"),
            ],
            "Faults of a soak since it began or went on, by kind, and how many its schedule has.",
            "The marks say when each was done; what a fault breaks is accounted to it.",
            width=8,
            empty_until=_UNDER_WAY,
        ),
        Panel(
            "Found, by invariant",
            [
                Query(
                    LAB.total(whole(runs.RUN.values["found_lost"]), "lab", "invariant"),
                    "{{lab}} {{invariant}}",
                )
            ],
            "What a soak found that must not be, outside of what its faults explain.",
            "Any: `vbnet events --topic soak.finding` has the words. Do the soak again with the same seed.",
            width=24,
            limits=(1, 1),
            empty_until=_UNDER_WAY,
        ),
    ],
)


def _marked(name: str, metric: str, title: str, text: str, colour: str) -> Mark:
    moment = LAB.total(runs.RUN.values[metric], "lab", "run", "profile", how="max")
    return Mark(name, moment.times(1000) > 0, title, text, colour, is_at_value=True)


_MARKS: Final = (
    _marked("Runs begin", "began", "{{run}} {{profile}} began in {{lab}}", "A run began, or went on.", "blue"),
    _marked("Runs end", "ended", "{{run}} {{profile}} ended in {{lab}}", "A run ended.", "blue"),
    _marked(
        "Soak faults",
        "fault",
        "Fault done to {{lab}}",
        "A soak did a fault. `vbnet events` has kind, target and how long it took to be over.",
        WARN,
    ),
)

RUN: Final = Dashboard(
    "vbnet-run",
    "vbnet / Run",
    "A load or soak run: what is offered, what arrives, what it costs.",
    variables("guest"),
    [_RESULT, _RATES, _TESTED, _COST, _PROGRESS],
    [*marks(LAB), *_MARKS],
)

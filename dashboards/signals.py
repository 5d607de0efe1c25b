"""Signals and timers: who is woken how often, what is lost, and how late expiries are told."""

from __future__ import annotations

from typing import Final

from dashboards.chosen import marks, scope, variables
from dashboards.panels import Dashboard, Kind, Panel, Query, Row
from dashboards.promql import Expr, whole
from vbnet.devices.intc.metrics import LATENCY, OUTBOX, OUTBOX_LATENCY, SIGNAL
from vbnet.devices.timer.metrics import TIMEKEEPER, TIMER

__all__ = ["SIGNALS"]

HERE: Final = scope("guest", "device")
_DEVICE: Final = "{{lab}} {{guest}} {{device}}"
_LATE: Final = TIMEKEEPER.values["late"]
_COALESCED: Final = whole(SIGNAL.values["coalesced_signal"])
_DROPPED: Final = whole(SIGNAL.values["blocked"])
_WOKEN: Final = whole(LATENCY.values["priority_0"])
_UNBELIEVED: Final = whole(LATENCY.values["impossible"])
_HEARD: Final = OUTBOX_LATENCY.values["wakeup"]
_UNBELIEVED_RINGS: Final = whole(OUTBOX_LATENCY.values["impossible"])
_raises: Final = HERE.rate(SIGNAL.values["raises"])


def _each(name: str) -> Expr:
    return HERE.rate(SIGNAL.values[name], "lab", "guest", "device")


def _timer(name: str) -> Expr:
    return HERE.rate(TIMER.values[name], "lab", "guest", "device")


_GLANCE: Final = Row(
    "Overview",
    [
        Panel(
            "Raises",
            [Query(_raises, "raises")],
            "Raises of signals, a second, whatever became of them.",
            "Millions: a guest or device raises without end; see by device below.",
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Wake-ups",
            [Query(HERE.rate(SIGNAL.values["wakeups"]), "wake-ups")],
            "Doorbells rung for signals, a second: each is a system call.",
            "Near the raises: nothing is coalesced, guests sleep between signals.",
            Kind.NUMBER,
            4,
        ),
        Panel(
            "Needed no wake-up",
            [Query(HERE.rate(_COALESCED) / _raises, "coalesced")],
            "Share of the raises that needed no wake-up of their own.",
            "Higher is cheaper. Low at high rates: see spurious wake-ups.",
            Kind.NUMBER,
            4,
            empty_until="a signal is raised",
        ),
        Panel(
            "Raises lost",
            [Query(HERE.increase(_DROPPED), "lost")],
            "Raises lost within the last moments, because a guest made its doorbell block.",
            "Runbook vbnet-doorbell-blocked.",
            Kind.NUMBER,
            4,
            limits=(1, 1),
        ),
        Panel(
            "Timers armed",
            [Query(HERE.total(TIMER.values["armed"]), "armed")],
            "Timers that wait now, of all guests.",
            "Growing without end: a guest arms and forgets.",
            Kind.NUMBER,
            4,
            empty_until="a guest uses timers",
        ),
        Panel(
            "Lateness, 99 %",
            [Query(HERE.quantile(0.99, _LATE), "99 %")],
            "99 of 100 expiries were told no later than this after their deadlines.",
            "Runbook vbnet-timers-late: the machine is busy, or its processors sleep deeply.",
            Kind.NUMBER,
            4,
            limits=(0.001, 0.01),
            empty_until="a timer expires",
        ),
    ],
)

_SIGNALS: Final = Row(
    "Signals",
    [
        Panel(
            "Raises, by device",
            [Query(_each("raises"), _DEVICE)],
            "Raises of each device's signals.",
            "One far above the others: what does it tell so often?",
        ),
        Panel(
            "Wake-ups, by device",
            [
                Query(_each("wakeups"), _DEVICE),
                Query(_each("spurious"), f"{_DEVICE} for nothing"),
            ],
            "Doorbells rung; and those whose guest found nothing to do.",
            "Many for nothing: the guest takes signals by polling as well, or a device raises before it writes.",
        ),
        Panel(
            "Coalesced, by scope",
            [Query(HERE.rate(_COALESCED, "lab", "scope"), "{{lab}} {{scope}}")],
            "Raises that needed no wake-up: the signal was pending (signal), another of its device had woken the guest "
            "(device), another device's had (across).",
            "Nothing to do: this is what is spared.",
            width=8,
            is_stacked=True,
        ),
        Panel(
            "Kept for later, by reason",
            [
                Query(
                    HERE.rate(whole(SIGNAL.values["masked"]), "lab", "guest", "reason"), "{{lab}} {{guest}}: {{reason}}"
                )
            ],
            "Raises kept because the signal was masked, or led nowhere.",
            "`unrouted` at a steady rate: nobody listens to it. `masked` for long: the guest forgot to unmask.",
            width=8,
        ),
        Panel(
            "Lost",
            [
                Query(HERE.rate(_DROPPED, "lab", "guest", "reason"), "{{lab}} {{guest}}: {{reason}}"),
            ],
            "Raises that were lost because the guest made its doorbell block.",
            "Runbook vbnet-doorbell-blocked.",
            width=8,
            limits=(0.01, 0.01),
        ),
        Panel(
            "Signals, by priority",
            [
                Query(
                    HERE.total(SIGNAL.values["priority"], "lab", "priority", how="count"),
                    "{{lab}} priority {{priority}}",
                )
            ],
            "How many signals have each priority; 7 is the most urgent.",
            "All at one priority: urgent signals wait behind others; `vbnet signal set` changes it.",
            Kind.BARS,
        ),
        Panel(
            "Outboxes",
            [
                Query(HERE.rate(OUTBOX.values["taken"], "lab", "guest"), "{{lab}} {{guest}} taken"),
                Query(
                    HERE.rate(whole(OUTBOX.values["refused"]), "lab", "guest", "reason"),
                    "{{lab}} {{guest}} lost: {{reason}}",
                ),
                Query(HERE.rate(OUTBOX.values["kicks"], "lab", "guest"), "{{lab}} {{guest}} doorbells"),
                Query(HERE.rate(OUTBOX.values["budget_exhausted"], "lab", "guest"), "{{lab}} {{guest}} more waiting"),
            ],
            "Signals that guests raise for others through memory.",
            "Lost: it names a signal that it was not granted. More waiting: it raises faster than the host takes.",
            empty_until="a guest raises others' signals",
        ),
        Panel(
            "Wake-ups, by priority",
            [
                Query(
                    HERE.quantile(0.99, _WOKEN, "lab", "guest", "priority"),
                    "{{lab}} {{guest}} priority {{priority}} 99 %",
                )
            ],
            "From the raise that rang a doorbell to the guest's first look: 99 % took no longer. With an emulated "
            "controller: to its acknowledge.",
            "High for urgent ones: their threads wait for a processor; let the scheduler coordinator boost them.",
            width=8,
            empty_until="a guest that sleeps is woken by signals",
        ),
        Panel(
            "Outboxes heard",
            [
                Query(HERE.quantile(part, _HEARD, "lab", "guest"), f"{{{{lab}}}} {{{{guest}}}} {words}")
                for part, words in ((0.5, "half"), (0.99, "99 %"))
            ],
            "From the ring of an outbox's doorbell to the first look of the host's signal thread, which slept.",
            "Milliseconds: something else has the processor, or another guest's doorbell holds the thread up.",
            width=8,
            empty_until="a guest raises others' signals",
        ),
        Panel(
            "Answers and stamps not believed",
            [
                Query(HERE.rate(_UNBELIEVED, "lab", "guest", "reason"), "{{lab}} {{guest}}: {{reason}}"),
                Query(HERE.rate(_UNBELIEVED_RINGS, "lab", "guest", "reason"), "{{lab}} {{guest}} outbox: {{reason}}"),
            ],
            "What a guest said of its wake-ups, or of its own rings, and cannot be; it is in no other panel.",
            "The guest lies, or has a bug: please report one of vbnet's own.",
            width=8,
        ),
    ],
)

_TIMERS: Final = Row(
    "Timers",
    [
        Panel(
            "Lateness",
            [Query(HERE.buckets(_LATE), "{{le}}")],
            "How much later than their deadlines expiries were told: how many in each span, over time.",
            "A second band far above the first: another process takes the processor, or it was asleep.",
            Kind.HEAT,
            unit="short",
            empty_until="a timer expires",
        ),
        Panel(
            "Lateness, by share",
            [
                Query(HERE.quantile(part, _LATE, "lab"), f"{{{{lab}}}} {words}")
                for part, words in ((0.5, "half"), (0.99, "99 %"), (0.999, "99.9 %"))
            ],
            "So late at most were half, 99 % and 99.9 % of the expiries.",
            "Runbook vbnet-timers-late.",
            limits=(0.001, 0.01),
            empty_until="a timer expires",
        ),
        Panel(
            "Expiries",
            [
                Query(_timer("expiries"), f"{_DEVICE} told"),
                Query(_timer("missed"), f"{_DEVICE} missed"),
                Query(_timer("early"), f"{_DEVICE} ahead of time"),
            ],
            "Expiries told to guests; periods that went by without one; those told early as the guest asked.",
            "Missed: the period is shorter than the machine can keep, or the guest does not take its expiries.",
            empty_until="a guest uses timers",
        ),
        Panel(
            "Arming",
            [
                Query(_timer("arms"), f"{_DEVICE} armed"),
                Query(_timer("cancels"), f"{_DEVICE} cancelled"),
                Query(_timer("turns"), f"{_DEVICE} turns"),
                Query(_timer("budget_exhausted"), f"{_DEVICE} turns with more to do"),
            ],
            "Timers armed and cancelled, and turns that the host took over them.",
            "Turns with more to do: a guest moves more timers than one turn looks at.",
            empty_until="a guest uses timers",
        ),
        Panel(
            "Not followed, by reason",
            [
                Query(
                    HERE.rate(whole(TIMER.values["forged_slots"]), "lab", "guest", "reason"),
                    "{{lab}} {{guest}}: {{reason}}",
                )
            ],
            "What guests wrote about timers that the host did not follow.",
            "`period_too_short`: ask for a longer one. The others are bugs of the guest: `vbnet errors`.",
            limits=(0.01, 0.01),
            empty_until="a guest uses timers",
        ),
        Panel(
            "Timers' doorbells",
            [
                Query(_timer("kicks"), f"{_DEVICE} heard"),
                Query(_timer("rings"), f"{_DEVICE} rung"),
                Query(_timer("rings_spared"), f"{_DEVICE} spared"),
            ],
            "Doorbells of timers, both ways, and those spared because the guest was awake.",
            "As many heard as armed: arm several, then ring once.",
            empty_until="a guest uses timers",
        ),
    ],
)

SIGNALS: Final = Dashboard(
    "vbnet-signals",
    "vbnet / Signals and timers",
    "Who is woken how often, what is spared and lost, and how late timers are.",
    variables("guest", "device"),
    [_GLANCE, _SIGNALS, _TIMERS],
    marks(scope()),
)

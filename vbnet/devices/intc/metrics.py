"""What signals and outboxes count, in the order in which the native side keeps it."""

from __future__ import annotations

from typing import Final

from vbnet.metric import Metric, MetricBlock, MetricKind
from vbnet.units import SECOND_NS

__all__ = ["BLOCKS", "LATENCY", "OUTBOX", "SIGNAL"]

_PRIORITIES: Final = 8


def _signal(name: str, unit: str, explanation: str) -> Metric:
    return Metric(f"vbnet_signal_{name}_total", unit, explanation)


def _coalesced(scope: str, detail: str) -> Metric:
    return Metric(
        "vbnet_signal_coalesced_total",
        "raises",
        "Raises that needed no wake-up of their own.",
        fixed={"scope": scope},
        detail=detail,
    )


def _kept(reason: str, detail: str) -> Metric:
    return Metric(
        "vbnet_signal_kept_total",
        "raises",
        "Raises kept for later, at most one a signal.",
        fixed={"reason": reason},
        detail=detail,
    )


SIGNAL: Final = MetricBlock(
    "signal",
    ("guest", "device", "signal"),
    {
        "raises": _signal("raises", "raises", "Raises of a signal, whatever became of them."),
        "coalesced_signal": _coalesced("signal", "the signal was pending already"),
        "coalesced_device": _coalesced("device", "another signal of the same device had woken the guest"),
        "coalesced_across": _coalesced("across", "another device's signal had woken the guest"),
        "wakeups": _signal("wakeups", "wakeups", "Doorbells rung for a signal."),
        "spurious": _signal("spurious_wakeups", "wakeups", "Doorbells rung whose guest found nothing to do."),
        "masked": _kept("masked", "the host had masked the signal"),
        "masked_by_guest": _kept("masked_by_guest", "the guest had masked the signal"),
        "unrouted": _kept("unrouted", "the signal led nowhere"),
        "blocked": Metric(
            "vbnet_signal_drop_total",
            "raises",
            "Raises that were lost.",
            fixed={"reason": "doorbell_blocked"},
            detail="the guest made its doorbell block",
        ),
        "priority": Metric(
            "vbnet_signal_info",
            "signals",
            "The priority of a signal now, 7 the most urgent.",
            MetricKind.INFO,
            shown_as="priority",
        ),
    },
)
"""One signal of the host."""

OUTBOX: Final = MetricBlock(
    "outbox",
    ("guest",),
    {
        "taken": Metric("vbnet_outbox_taken_total", "signals", "Signals taken from a guest's outbox."),
        "refused": Metric(
            "vbnet_outbox_drop_total",
            "signals",
            "Signals taken from an outbox that reached nobody.",
            fixed={"reason": "not_granted"},
            detail="it named nothing that was granted",
        ),
        "kicks": Metric("vbnet_outbox_kicks_total", "signals", "Doorbells heard from a guest's outbox."),
        "budget_exhausted": Metric(
            "vbnet_outbox_budget_exhausted_total", "turns", "Turns of an outbox that ended with more waiting."
        ),
    },
)
"""One guest's outbox."""

LATENCY: Final = MetricBlock(
    "signal_latency",
    ("guest",),
    {
        **{
            f"priority_{priority}": Metric(
                "vbnet_signal_wakeup_latency_seconds",
                "seconds",
                "From the raise that rang a doorbell to the guest's first look, over all vCPUs; of an emulated "
                "controller, to its acknowledge.",
                MetricKind.HISTOGRAM,
                {"priority": str(priority)},
                per_unit=SECOND_NS,
            )
            for priority in range(_PRIORITIES)
        },
        "impossible": Metric(
            "vbnet_signal_answer_drop_total",
            "answers",
            "Answers of a guest to doorbells that were not believed.",
            fixed={"reason": "impossible"},
            detail="it took longer than since the doorbell was rung",
        ),
    },
)
"""One guest's interrupt controller, timed."""

OUTBOX_LATENCY: Final = MetricBlock(
    "outbox_latency",
    ("guest",),
    {
        "wakeup": Metric(
            "vbnet_outbox_wakeup_latency_seconds",
            "seconds",
            "From a guest's ring of its outbox's doorbell to the host's first look.",
            MetricKind.HISTOGRAM,
            per_unit=SECOND_NS,
        ),
        "impossible": Metric(
            "vbnet_outbox_stamp_drop_total",
            "stamps",
            "Stamps of a guest's outbox that were not believed.",
            fixed={"reason": "impossible"},
            detail="of the future, or older than 10 s",
        ),
    },
)
"""One guest's outbox, timed: each ring that woke the host."""

BLOCKS: Final = (SIGNAL, OUTBOX, LATENCY, OUTBOX_LATENCY)

"""What a guest's timers count, and how late the host was: blocks of kinds ``timer`` and ``timekeeper``."""

from __future__ import annotations

from typing import Final

from vbnet.metric import Metric, MetricBlock, MetricKind

__all__ = ["BLOCKS", "TIMEKEEPER", "TIMER"]


def _timer(name: str, unit: str, explanation: str) -> Metric:
    return Metric(f"vbnet_timer_{name}_total", unit, explanation)


def _rejected(reason: str, detail: str) -> Metric:
    return Metric(
        "vbnet_timer_rejected_total",
        "timers",
        "What guests wrote about timers and the host did not follow.",
        fixed={"reason": reason},
        detail=detail,
    )


TIMER: Final = MetricBlock(
    "timer",
    ("guest", "device"),
    {
        "arms": _timer("arms", "timers", "Timers armed or moved, as far as the host looked."),
        "cancels": _timer("cancels", "timers", "Timers cancelled, as far as the host looked."),
        "kicks": _timer("kicks", "signals", "Doorbells heard from the guest."),
        "expiries": _timer("expiries", "expiries", "Expiries told to the guest."),
        "missed": _timer("missed", "expiries", "Periods that went by without an expiry of their own."),
        "early": _timer("early", "expiries", "Expiries told ahead of time, because the guest asked for a lead."),
        "rings": _timer("signals_sent", "signals", "Doorbells rung for the guest."),
        "rings_spared": _timer("signals_suppressed", "signals", "Doorbells spared because the guest was awake."),
        "turns": _timer("turns", "turns", "Turns taken over the guest's timers."),
        "budget_exhausted": _timer("budget_exhausted", "turns", "Turns that ended with more to do."),
        "armed": Metric("vbnet_timer_armed", "timers", "Timers armed now.", MetricKind.GAUGE),
        "forged_slots": _rejected("forged_slot", "a mark that named no timer"),
        "forged_controls": _rejected("forged_control", "disarmed for a control word without meaning"),
        "refused_periods": _rejected("period_too_short", "disarmed for a period too short to keep"),
    },
)
"""One guest's timers."""

TIMEKEEPER: Final = MetricBlock(
    "timekeeper",
    (),
    {
        "late": Metric(
            "vbnet_timer_lateness_seconds",
            "seconds",
            "How much later than their deadlines the host told expiries, of all guests.",
            MetricKind.HISTOGRAM,
            per_unit=1_000_000_000,
        )
    },
)
"""The host's timekeeper."""

BLOCKS: Final = (TIMER, TIMEKEEPER)

"""What a guest's timers count, in the order in which the host's thread keeps it.

``METRICS[n]`` is value ``n`` of a guest's block, kind ``timer``. How late the host was, for all guests, is the
histogram of block ``timekeeper``, in nanoseconds.
"""

from __future__ import annotations

from typing import Final

from vbnet.metric import Metric, MetricKind

__all__ = ["METRICS"]

_LABELS: Final = ("guest", "device")


def _timer(name: str, unit: str, explanation: str) -> Metric:
    return Metric(f"vbnet_timer_{name}", unit, explanation, _LABELS)


METRICS: Final = (
    _timer("arms_total", "timers", "Timers armed or moved, as far as the host looked."),
    _timer("cancels_total", "timers", "Timers cancelled, as far as the host looked."),
    _timer("kicks_total", "signals", "Doorbells heard from the guest."),
    _timer("expiries_total", "expiries", "Expiries told to the guest."),
    _timer("missed_total", "expiries", "Periods that went by without an expiry of their own."),
    _timer("early_total", "expiries", "Expiries told before their deadline, because the guest asked for a lead."),
    _timer("rings_total", "signals", "Doorbells rung for the guest."),
    _timer("rings_spared_total", "signals", "Doorbells spared because the guest was awake."),
    _timer("turns_total", "turns", "Turns taken over the guest's timers."),
    _timer("budget_exhausted_total", "turns", "Turns that ended with more to do."),
    Metric("vbnet_timer_armed", "timers", "Timers armed now.", _LABELS, MetricKind.GAUGE),
    _timer("forged_slots_total", "marks", "Marks that named no timer."),
    _timer("forged_controls_total", "timers", "Timers disarmed for a control word without meaning."),
    _timer("refused_periods_total", "timers", "Timers disarmed for a period too short to keep."),
)
"""One metric for each counter of a guest's timers."""

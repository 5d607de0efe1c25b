"""What signals and outboxes count, in the order in which the native side keeps it.

``SIGNAL_METRICS[n]`` is value ``n`` of a signal's block, ``OUTBOX_METRICS[n]`` of an outbox's.
"""

from __future__ import annotations

from typing import Final

from vbnet.metric import Metric

__all__ = ["METRICS", "OUTBOX_METRICS", "SIGNAL_METRICS"]

_SIGNAL: Final = ("signal", "guest", "device")
_OUTBOX: Final = ("guest",)


def _signal(name: str, unit: str, explanation: str) -> Metric:
    return Metric(f"vbnet_signal_{name}_total", unit, explanation, _SIGNAL)


SIGNAL_METRICS: Final = (
    _signal("raises", "raises", "Raises of a signal, whatever became of them."),
    _signal("coalesced_signal", "raises", "Raises of a signal that was pending already."),
    _signal("coalesced_device", "raises", "Raises spared a wake-up by one for another signal of the same device."),
    _signal("coalesced_across", "raises", "Raises spared a wake-up by one for another device's signal."),
    _signal("wakeups", "wakeups", "Doorbells rung for a signal."),
    _signal("spurious", "wakeups", "Doorbells rung for a signal whose guest found nothing to do."),
    _signal("masked", "raises", "Raises kept because the host had masked the signal."),
    _signal("masked_by_guest", "raises", "Raises kept because the guest had masked the signal."),
    _signal("unrouted", "raises", "Raises kept because the signal led nowhere."),
    _signal("blocked", "raises", "Raises lost because the guest made its doorbell block."),
)
OUTBOX_METRICS: Final = (
    Metric("vbnet_outbox_taken_total", "signals", "Signals taken from a guest's outbox.", _OUTBOX),
    Metric("vbnet_outbox_refused_total", "signals", "Signals of an outbox that named nothing granted.", _OUTBOX),
    Metric("vbnet_outbox_kicks_total", "signals", "Doorbells heard from a guest's outbox.", _OUTBOX),
    Metric("vbnet_outbox_budget_exhausted_total", "turns", "Turns of an outbox that ended with more waiting.", _OUTBOX),
)
METRICS: Final = (*SIGNAL_METRICS, *OUTBOX_METRICS)

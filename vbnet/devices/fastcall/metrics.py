"""What fastcall slots count, in the service's order: ``METRICS[n]`` is value ``n`` of a slot's block."""

from __future__ import annotations

from typing import Final

from vbnet.metric import Metric

__all__ = ["METRICS"]

_SLOT: Final = ("guest", "bus", "slot")


def _slot(name: str, unit: str, explanation: str) -> Metric:
    return Metric(f"vbnet_fastcall_{name}_total", unit, explanation, _SLOT)


METRICS: Final = (
    _slot("calls", "calls", "Fastcalls answered by a handler, refusals included."),
    _slot("bytes", "bytes", "Bytes of their data and their answers."),
    _slot("refused", "calls", "Fastcalls that a handler refused."),
    _slot("failed", "calls", "Fastcalls that ended in a handler's bug."),
    _slot("refused_too_long", "calls", "Fastcalls refused because their data is longer than a slot has room for."),
    _slot("unserved_no_handler", "calls", "Fastcalls sent the ordinary way because the device has no fast handler."),
    _slot("unserved_disabled", "calls", "Fastcalls sent the ordinary way because fastcalls are switched off."),
    _slot("kicks", "signals", "Doorbells heard from the guest."),
    _slot("wakeups", "transitions", "Times the slot woke."),
    _slot("parks", "transitions", "Times the slot fell asleep."),
    _slot("calls_rung", "signals", "Doorbells rung for the guest."),
    _slot("calls_suppressed", "signals", "Doorbells spared because the guest was awake."),
    _slot("faults", "faults", "Slots ended because the guest broke a rule."),
)
"""One metric for each counter of a slot."""

"""What scheduler coordinators count, in the order in which they keep it: ``METRICS[n]`` is value ``n`` of a block."""

from __future__ import annotations

from typing import Final

from vbnet._native import SCHED_REFUSALS
from vbnet.metric import Metric, MetricKind

__all__ = ["METRICS"]

_DEVICE: Final = ("device",)


def _sched(name: str, unit: str, explanation: str) -> Metric:
    return Metric(f"vbnet_sched_{name}_total", unit, explanation, _DEVICE)


METRICS: Final = (
    _sched("kicks", "signals", "Doorbells heard from guests whose threads changed."),
    _sched("samples", "records", "Records that were copied because they had changed."),
    _sched("no_ops", "transitions", "Transitions after which a thread had already what it was to get."),
    _sched("applied", "changes", "Changes made to threads."),
    _sched("put_back", "threads", "Threads that got back what they had before."),
    _sched("put_back_failed", "threads", "Threads that could not get back what they had before."),
    _sched("weighed", "changes", "Times a guest's control group got another weight."),
    _sched("weigh_failed", "groups", "Control groups that could not be weighed, and are left alone since."),
    _sched("boosts", "boosts", "Threads raised because an urgent signal waited for them."),
    _sched("muted", "times", "Times a guest that rang without end was not heard for a while."),
    Metric("vbnet_sched_guests", "guests", "Guests that take part now.", _DEVICE, MetricKind.GAUGE),
    Metric("vbnet_sched_threads", "threads", "Threads in hand now.", _DEVICE, MetricKind.GAUGE),
    *(
        _sched(f"refused_{reason}", "refusals", f"Threads that did not get what they want, for the reason {reason}.")
        for reason in SCHED_REFUSALS
    ),
)
"""One metric for each counter of a coordinator."""

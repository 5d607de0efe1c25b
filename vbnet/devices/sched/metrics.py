"""What scheduler coordinators count: one block of kind ``sched`` each, its words in the order of ``SCHED_COUNTERS``."""

from __future__ import annotations

from typing import Final

from vbnet._native import SCHED_REFUSALS
from vbnet.metric import Metric, MetricBlock, MetricKind

__all__ = ["BLOCKS", "SCHED"]


def _sched(name: str, unit: str, explanation: str) -> Metric:
    return Metric(f"vbnet_sched_{name}_total", unit, explanation)


SCHED: Final = MetricBlock(
    "sched",
    ("device",),
    {
        "kicks": _sched("kicks", "signals", "Doorbells heard from guests whose threads changed."),
        "samples": _sched("samples", "records", "Records that were copied because they had changed."),
        "no_ops": _sched("no_ops", "transitions", "Transitions after which a thread had already what it was to get."),
        "applied": _sched("applied", "changes", "Changes made to threads."),
        "put_back": _sched("put_back", "threads", "Threads that got back what they had before."),
        "put_back_failed": _sched("put_back_failed", "threads", "Threads that could not get back what they had."),
        "weighed": _sched("weighed", "changes", "Times a guest's control group got another weight."),
        "weigh_failed": _sched("weigh_failed", "groups", "Control groups that could not be weighed, now left alone."),
        "boosts": _sched("boosts", "boosts", "Threads raised because an urgent signal waited for them."),
        "muted": _sched("muted", "times", "Times a guest that rang without end was not heard for a while."),
        "guests": Metric("vbnet_sched_guests", "guests", "Guests that take part now.", MetricKind.GAUGE),
        "threads": Metric("vbnet_sched_threads", "threads", "Threads in hand now.", MetricKind.GAUGE),
        **{
            f"refused_{reason}": Metric(
                "vbnet_sched_refused_total",
                "refusals",
                "Threads that did not get what they want.",
                fixed={"reason": reason},
            )
            for reason in SCHED_REFUSALS
        },
    },
)
"""One coordinator, while guests use it."""

BLOCKS: Final = (SCHED,)

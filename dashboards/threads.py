"""How busy the host's threads are.

A thread that sleeps is seen to do so while it does, not when it wakes up. What a scrape took to arrive can still make
it sleep for longer than the time between two of them, so a share of time is held between 0 and 1.
"""

from __future__ import annotations

from dashboards.promql import Expr, Scope, any_of, whole
from vbnet.devices.fastcall.metrics import SERVICE
from vbnet.hostnode.metrics import WORKER

__all__ = ["awake", "busy", "service_awake"]


def awake(here: Scope, *by: str) -> Expr:
    """Return the share of its time that each worker does not sleep."""
    return here.rate(WORKER.values["asleep_nanoseconds"], *by, "worker").rest()


def busy(here: Scope, *by: str) -> Expr:
    """Return the share of its rounds in which each worker moved frames."""
    rounds = whole(WORKER.values["busy_rounds"])
    moved = here.rate(rounds, *by, "worker", result=any_of("busy"))
    return moved / here.rate(rounds, *by, "worker")


def service_awake(here: Scope, *by: str) -> Expr:
    """Return the share of its time that the thread which serves fastcalls does not sleep."""
    return here.rate(SERVICE.values["asleep_nanoseconds"], *by).rest()

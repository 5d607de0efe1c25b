"""How busy the host's threads are.

A thread counts how long it slept when it wakes up: one that sleeps on counts nothing, and a long sleep is counted at
once. So a share of time is held between 0 and 1, and a thread that made no round was asleep. What remains is that the
interval in which a sleep began shows too little sleep, until it is over.
"""

from __future__ import annotations

from dashboards.promql import Expr, Scope, any_of, whole
from vbnet.devices.fastcall.metrics import SERVICE
from vbnet.hostnode.metrics import WORKER

__all__ = ["awake", "busy", "service_awake"]


def awake(here: Scope, *by: str) -> Expr:
    """Return the share of its time that each worker does not sleep."""
    rounds = here.rate(whole(WORKER.values["busy_rounds"]), *by, "worker")
    return here.rate(WORKER.values["asleep_nanoseconds"], *by, "worker").rest().while_moves(rounds)


def busy(here: Scope, *by: str) -> Expr:
    """Return the share of its rounds in which each worker moved frames."""
    rounds = whole(WORKER.values["busy_rounds"])
    moved = here.rate(rounds, *by, "worker", result=any_of("busy"))
    return moved / here.rate(rounds, *by, "worker")


def service_awake(here: Scope, *by: str) -> Expr:
    """Return the share of its time that the thread which serves fastcalls does not sleep."""
    rounds = here.rate(whole(SERVICE.values["busy_rounds"]), *by)
    return here.rate(SERVICE.values["asleep_nanoseconds"], *by).rest().while_moves(rounds)

"""Records of bake-offs that were never held."""

from typing import Any

from vbnet.load.bakeoff.contest import parse_contest, settings
from vbnet.load.bakeoff.record import Reading, Record
from vbnet.load.bench.machine import describe


def readings(subject: str, workload: str, *rates: float, p99: float = 1000, wakeups: float = 0.1) -> list[Reading]:
    """One reading a rate."""
    model, _, without = subject.partition(" without ")
    return [
        Reading(
            subject=subject,
            model=model,
            without=without,
            workload=workload,
            turn=turn,
            figures={"rate": rate, "p99": p99, "wakeups": wakeups},
        )
        for turn, rate in enumerate(rates)
    ]


def record_of(found: list[Reading], **over: Any) -> Record:
    """A record of these."""
    fields: dict[str, Any] = {
        "contest": settings(parse_contest("{}")),
        "began": "2026-01-01T00:00:00+00:00",
        "seconds": 60.0,
        "vbnet": "1",
        "machine": describe(),
        "placement": ("near", "near"),
        "state": "finished",
        "readings": found,
    }
    return Record(**{**fields, **over})

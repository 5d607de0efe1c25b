"""The result of a load run: figures over all of it, one sample an interval, and whether the thresholds hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from vbnet.load.bench.machine import Machine
from vbnet.load.counting import Counts, Latency
from vbnet.load.thresholds import Threshold

__all__ = ["GuestResult", "Outcome", "Result", "Sample", "Trial", "Verdict", "figures", "judge", "lost"]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One interval of a run.

    Attributes:
        at_s: its end, in seconds since the run began.
        seconds: how long it was.
        sent, received, corrupted, reordered: frames in it.
        received_bytes: bytes of the frames received.
        under_way: frames that were sent and have not arrived, at its end; those that were lost stay among them.
        latency_ns: percentiles of it.
    """

    at_s: float
    seconds: float
    sent: int
    received: int
    received_bytes: int
    under_way: int
    reordered: int
    corrupted: int
    latency_ns: dict[str, int] = {}


class GuestResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one guest did."""

    name: str
    role: str
    sent: int
    received: int
    latency_ns: dict[str, int] = {}


class Verdict(msgspec.Struct, frozen=True):
    """One threshold, what was measured, and whether it holds."""

    threshold: str
    measured: float | None
    holds: bool


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a search for a limit."""

    rate: float
    figures: dict[str, float]
    passes: bool
    why_not: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended.

    Attributes:
        state: ``finished``, ``interrupted`` (by the user) or ``broken`` (a guest or the host node ended).
        detail: what happened, or "".
    """

    state: str
    detail: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a run found out.

    Attributes:
        profile: the profile's keys.
        began: when, as ISO 8601.
        vbnet: the version that ran.
        machine: what it ran on.
        outcome: how it ended.
        seconds: how long was measured.
        figures: by name, in the base units of :data:`vbnet.load.thresholds.FIGURES`.
        guests: what each did.
        samples: one an interval.
        verdicts: of every threshold.
        limit: frames a second of each sender that were found, when they were searched for; 0: not even the lowest.
        trials: the steps of that search.
    """

    profile: dict[str, Any]
    began: str
    vbnet: str
    machine: Machine
    outcome: Outcome
    seconds: float
    figures: dict[str, float]
    guests: list[GuestResult]
    samples: list[Sample]
    verdicts: list[Verdict]
    limit: float | None = None
    trials: list[Trial] = []

    @property
    def is_good(self) -> bool:
        """Whether it ran to its end and every threshold holds."""
        return self.outcome.state == "finished" and all(verdict.holds for verdict in self.verdicts) and self.limit != 0


def lost(counts: Counts, *, is_recorded: bool) -> int:
    """Return frames that were sent and did not arrive, once nothing is under way any more.

    Args:
        counts: of everybody.
        is_recorded: frames are a capture's: sinks know them as foreign.
    """
    return max(0, counts.sent - counts.received - (counts.foreign if is_recorded else 0))


def figures(counts: Counts, latency: Latency, seconds: float, *, is_recorded: bool) -> dict[str, float]:
    """Return every figure that thresholds may name; without latencies none of those."""
    gone = lost(counts, is_recorded=is_recorded)
    arrived = counts.received + (counts.foreign if is_recorded else 0)
    span = max(seconds, 1e-9)
    return {
        "rate": arrived / span,
        "bits": 8 * counts.received_bytes / span,
        "loss": gone / counts.sent if counts.sent else 0.0,
        "lost": gone,
        "reordered": counts.reordered,
        "duplicates": counts.duplicates,
        "corrupted": counts.corrupted,
        "late": counts.late_max_ns,
        **latency.percentiles_ns(),
    }


def judge(thresholds: Iterable[Threshold], found: Mapping[str, float]) -> list[Verdict]:
    """Return the verdict of each threshold."""
    return [
        Verdict(threshold.text, found.get(threshold.figure), threshold.holds(found.get(threshold.figure)))
        for threshold in thresholds
    ]

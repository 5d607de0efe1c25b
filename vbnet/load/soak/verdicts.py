"""Verdicts: what the windows and samples of a soak say about invariants, thresholds and drift."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from vbnet.load.result import Verdict
from vbnet.load.soak.figures import ProcessFigures
from vbnet.load.soak.profile import DRIFTS, SoakPlan
from vbnet.load.soak.result import DriftVerdict, Finding, InvariantVerdict, SoakSample, Window
from vbnet.load.soak.slope import Point, Slope, slope
from vbnet.load.thresholds import Threshold

__all__ = ["INVARIANTS", "drifts", "invariants", "judge_drift", "thresholds"]

INVARIANTS: Final[Mapping[str, str]] = {
    "corrupted": "no frame arrives changed",
    "duplicates": "no frame arrives twice",
    "misdelivered": "no frame is given to a guest that it is not for, unless a switch flooded it",
    "lost": "no frame goes missing while there is no fault",
    "conservation": "what goes into a switch or port comes out, or is dropped and counted",
    "recovery": "what a fault broke works again in time",
    "unasked": "no guest ends that no fault has ended",
    "left-behind": "nothing of the lab is left at the end",
}
"""By name, what must be."""

_HOUR_S: Final = 3600.0
_YOUNG_S: Final = 5.0
"""What a process holds in its first seconds is not looked at: it is still loading."""

_PARTIAL: Final = 0.5
"""An interval shorter than this share of the usual one says nothing about rates."""

_FIGURES: Final[Mapping[str, Callable[[ProcessFigures], int]]] = {
    "resident": lambda figures: figures.resident_bytes,
    "proportional": lambda figures: figures.proportional_bytes,
    "shared": lambda figures: figures.shared_bytes,
    "descriptors": lambda figures: figures.descriptors,
    "threads": lambda figures: figures.threads,
}


def invariants(findings: Sequence[Finding]) -> list[InvariantVerdict]:
    """Return a verdict for each invariant."""
    by_name: dict[str, list[Finding]] = {name: [] for name in INVARIANTS}
    for finding in findings:
        by_name[finding.what].append(finding)
    return [
        InvariantVerdict(
            what=name, meaning=meaning, broken=len(by_name[name]), first=next((one.detail for one in by_name[name]), "")
        )
        for name, meaning in INVARIANTS.items()
    ]


def thresholds(wanted: Iterable[Threshold], windows: Sequence[Window]) -> list[Verdict]:
    """Return a verdict for each threshold of the load: it must hold in every calm window; told is the worst of them."""
    calm = [window for window in windows if window.kind == "calm" and window.figures and not window.is_cut]
    found = []
    for threshold in wanted:
        measured = [window.figures.get(threshold.figure) for window in calm]
        said = [value for value in measured if value is not None]
        worst = (min if threshold.how.startswith(">") else max)(said) if said else None
        found.append(Verdict(threshold.text, worst, all(threshold.holds(value) for value in measured)))
    return found


def drifts(plan: SoakPlan, samples: Sequence[SoakSample], whole: Iterable[tuple[int, int]]) -> list[DriftVerdict]:
    """Return a verdict for everything that may drift.

    Args:
        plan: what is tolerated.
        samples: of all windows.
        whole: parts and numbers of windows that were written; samples of others are of windows that were cut short.
    """
    known = set(whole)
    begins: dict[int, float] = {}
    for sample in samples:
        begins.setdefault(sample.part, sample.at_s - sample.seconds)
    warm = [
        sample
        for sample in samples
        if (sample.part, sample.window) in known and sample.at_s >= begins[sample.part] + plan.warm_up_s
    ]
    found = []
    for name, drift in DRIFTS.items():
        series = _of_processes(name, warm) if drift.is_of_processes else {"lab": _of_lab(name, warm, plan.interval_s)}
        for whose, stretches in series.items():
            count = sum(map(len, stretches))
            found.append(judge_drift(name, whose, plan.tolerances[name], slope(stretches), count))
    return found


def judge_drift(
    what: str, whose: str, tolerances: tuple[float, float], found: Slope | None, points: int
) -> DriftVerdict:
    """Compare a slope with what is tolerated."""
    drift, (per_hour, least) = DRIFTS[what], tolerances
    if found is None:
        return DriftVerdict(
            what=what, whose=whose, tolerated_per_hour=per_hour, tolerated=least, points=points, holds=None
        )
    unit = (abs(found.level) or 1.0) if drift.kind == "share" else 1.0
    sign = -1.0 if drift.is_bad_falling else 1.0
    worst = min(sign * found.low, sign * found.high) * _HOUR_S / unit
    growth = found.estimate * found.span_s / unit
    return DriftVerdict(
        what=what,
        whose=whose,
        level=found.level,
        per_hour=found.estimate * _HOUR_S / unit,
        low=_finite(found.low * _HOUR_S / unit),
        high=_finite(found.high * _HOUR_S / unit),
        growth=growth,
        span_s=found.span_s,
        tolerated_per_hour=per_hour,
        tolerated=least,
        points=points,
        holds=not (worst > per_hour and sign * growth > least),
    )


def _finite(value: float) -> float | None:
    return value if abs(value) != float("inf") else None


def _of_lab(name: str, samples: Iterable[SoakSample], interval_s: float) -> list[list[Point]]:
    stretches: dict[int, list[Point]] = {}
    for sample in samples:
        if sample.kind == "fault" or sample.seconds < _PARTIAL * interval_s:
            continue
        value = sample.received / sample.seconds if name == "rate" else sample.latency_ns.get(name)
        if value is not None:
            stretches.setdefault(sample.part, []).append((sample.at_s, float(value)))
    return list(stretches.values())


def _of_processes(name: str, samples: Iterable[SoakSample]) -> dict[str, list[list[Point]]]:
    """Of each process its series, one stretch for each of its lives."""
    read = _FIGURES[name]
    lives: dict[str, dict[tuple[int, int], list[Point]]] = {}
    for sample in samples:
        for whose, figures in sample.processes.items():
            life = lives.setdefault(whose, {}).setdefault((figures.pid, figures.start), [])
            life.append((sample.at_s, float(read(figures))))
    return {whose: [list(_grown(life)) for life in by_life.values()] for whose, by_life in lives.items()}


def _grown(points: Sequence[Point]) -> Iterator[Point]:
    first_s = points[0][0]
    return (point for point in points if point[0] >= first_s + _YOUNG_S or len(points) == 1)

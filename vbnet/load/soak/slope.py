"""Whether something grows: the slope of a noisy series, and between which bounds it lies.

The slope is the median of the slopes of all pairs of points (Theil-Sen), which a few wild points do not move; its
bounds come from how many pairs rise and how many fall (Sen 1968), so nothing is presumed of the noise but that it is
the same all along. Points that lie close to each other are alike, which makes such bounds too narrow: they are widened
by what neighbours of the series have in common (as for a first-order autoregression, lag 1 of the residuals).

A series comes in *stretches*: one for each life of what was measured. Only points of one stretch make pairs, so that a
process that began anew is no drop. (Strata are pooled so in the seasonal Kendall test of Hirsch, Slack and Smith 1982.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import median
from typing import Final

__all__ = ["POINTS_MIN", "Point", "Slope", "slope", "thinned"]

POINTS_MIN: Final = 8
"""With fewer in all stretches nothing is said."""

POINTS_MAX: Final = 240
"""More are brought together first: pairs grow with the square."""

CONFIDENCE: Final = 0.99
_Z: Final = 2.5758293035489004
"""Of the normal distribution, for both sides together at :data:`CONFIDENCE`."""

_ALIKE_MAX: Final = 0.9
_TRIPLE: Final = 3

Point = tuple[float, float]
"""When, in seconds, and what."""


@dataclass(frozen=True, slots=True)
class Slope:
    """By how much something changes in a second.

    Attributes:
        estimate: the median of the slopes of all pairs.
        low, high: it lies between them with a confidence of 99 %.
        level: the median of the values.
        span_s: how long the longest stretch was.
        points: how many were looked at, once thinned.
    """

    estimate: float
    low: float
    high: float
    level: float
    span_s: float
    points: int


def slope(stretches: Sequence[Sequence[Point]]) -> Slope | None:
    """Return the slope that all stretches have in common; None: there are too few points.

    Args:
        stretches: of each its points, times rising.
    """
    share = max(2, POINTS_MAX // max(1, len(stretches)))
    used = [thinned(points, share) for points in stretches]
    used = [points for points in used if len(points) > 1]
    count = sum(map(len, used))
    if count < POINTS_MIN:
        return None
    slopes = sorted(_pair_slopes(used))
    if not slopes:
        return None
    estimate = median(slopes)
    spread = _Z * math.sqrt(sum(map(_variance, used)) * _widening(used, estimate))
    low = math.floor((len(slopes) - spread) / 2) - 1
    high = len(slopes) - 1 - low
    values = [value for points in used for _, value in points]
    return Slope(
        estimate=estimate,
        low=slopes[low] if low >= 0 else -math.inf,
        high=slopes[high] if high < len(slopes) else math.inf,
        level=median(values),
        span_s=max(points[-1][0] - points[0][0] for points in used),
        points=count,
    )


def thinned(points: Sequence[Point], most: int) -> Sequence[Point]:
    """Return at most so many points: medians of neighbours."""
    if len(points) <= most:
        return points
    edges = [round(place * len(points) / most) for place in range(most + 1)]
    parts = [points[start:end] for start, end in pairwise(edges)]
    return [(median(at for at, _ in part), median(value for _, value in part)) for part in parts]


def _pair_slopes(stretches: Sequence[Sequence[Point]]) -> Iterator[float]:
    for points in stretches:
        for (early, before), (late, after) in combinations(points, 2):
            if late > early:
                yield (after - before) / (late - early)


def _variance(points: Sequence[Point]) -> float:
    """Variance of (pairs that rise) - (pairs that fall) when nothing grows, with ties taken into account."""

    def term(count: int) -> int:
        return count * (count - 1) * (2 * count + 5)

    ties = Counter(value for _, value in points).values()
    return (term(len(points)) - sum(map(term, ties))) / 18


def _widening(stretches: Sequence[Sequence[Point]], estimate: float) -> float:
    """By how much likeness of neighbours widens a variance, >= 1 (Hamed and Rao 1998, for a first-order process)."""
    above, below = 0.0, 0.0
    for points in stretches:
        left = [value - estimate * at for at, value in points]
        middle = median(left)
        left = [value - middle for value in left]
        above += sum(one * two for one, two in pairwise(left))
        below += sum(value * value for value in left)
    alike = min(_ALIKE_MAX, max(0.0, above / below)) if below > 0 else 0.0
    count = max(map(len, stretches))
    if count <= _TRIPLE:
        return 1.0
    pairs = ((count - lag) * (count - lag - 1) * (count - lag - 2) * alike**lag for lag in range(1, count))
    return 1 + 2 * sum(pairs) / (count * (count - 1) * (count - 2))

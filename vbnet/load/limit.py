"""The search for a limit: the highest rate that passes.

Each step halves, in proportion, what lies between a rate that passes and one that does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from vbnet.cluster.quantity import duration_s, rate_per_second
from vbnet.load.counting import Counts
from vbnet.load.profile import FindLimit
from vbnet.load.result import Trial, judge
from vbnet.load.thresholds import Threshold, parse_share

__all__ = ["Search"]

_KEPT_UP: Final = 0.98
"""Share of the frames that were due which a sender must have sent: below, it is the limit and not the network."""


class Search:
    """Which rate is tried next, and which was the best.

    Args:
        limit: what the profile says.
        thresholds: what must hold beside its loss.
    """

    def __init__(self, limit: FindLimit, thresholds: Sequence[Threshold]) -> None:
        self.seconds = duration_s(limit.for_)
        self.best = 0.0
        self._loss = parse_share(limit.loss)
        self._precision = parse_share(limit.precision)
        self._thresholds = thresholds
        self._lowest, self._highest = rate_per_second(limit.from_), rate_per_second(limit.to)
        self._worst: float | None = None

    def next_rate(self) -> float | None:
        """Return the rate to try now, in frames a second of each sender; None: the search is over."""
        if self._worst is None:
            if not self.best:
                return self._lowest
            return None if self.best >= self._highest else self._highest
        if not self.best or self._worst / self.best <= 1 + self._precision:
            return None
        return math.sqrt(self.best * self._worst)

    def judge(self, rate: float, senders: int, counts: Counts, found: Mapping[str, float]) -> Trial:
        """Take in what a trial found, and say whether it passes."""
        due = rate * self.seconds * senders
        why_not = ""
        if counts.sent < _KEPT_UP * due:
            why_not = f"only {counts.sent / due:.0%} of the frames that were due could be sent"
        elif found["loss"] > self._loss:
            why_not = f"{found['lost']:.0f} frames lost ({found['loss']:.3%})"
        else:
            broken = [verdict for verdict in judge(self._thresholds, found) if not verdict.holds]
            why_not = ", ".join(f"{verdict.threshold} does not hold" for verdict in broken)
        if why_not:
            self._worst = rate
        else:
            self.best = rate
        return Trial(rate=rate, figures=dict(found), passes=not why_not, why_not=why_not)

"""What a list of samples comes to: median, minimum and maximum, and what a ratio must reach.

The median is what is quoted, because a hypervisor's pause makes single samples slow by any factor; minimum and maximum
are told beside it, so that nobody has to trust the median.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Self

import msgspec

from vbnet.errors import UsageError

__all__ = ["AtLeast", "AtMost", "Summary", "Wanted"]


class Summary(msgspec.Struct, frozen=True):
    """Samples in four numbers; all in the unit of the samples."""

    minimum: float
    median: float
    maximum: float
    count: int

    @classmethod
    def of(cls, samples: Iterable[float]) -> Self:
        """Sum ``samples`` up.

        Raises:
            UsageError: there is not a single sample (the caller's mistake: nothing was measured).
        """
        values = sorted(samples)
        if not values:
            raise UsageError("there is no sample to sum up; measure first")
        return cls(minimum=values[0], median=statistics.median(values), maximum=values[-1], count=len(values))


class AtLeast(msgspec.Struct, frozen=True, tag="at least"):
    """Reached from ``limit`` up: a speed against a baseline."""

    limit: float

    def is_reached_by(self, figure: float) -> bool:
        """Whether ``figure`` is the limit or more."""
        return figure >= self.limit

    def __str__(self) -> str:
        return f"≥ {self.limit:g}"


class AtMost(msgspec.Struct, frozen=True, tag="at most"):
    """Reached up to ``limit``: a duration or a cost."""

    limit: float

    def is_reached_by(self, figure: float) -> bool:
        """Whether ``figure`` is the limit or less."""
        return figure <= self.limit

    def __str__(self) -> str:
        return f"≤ {self.limit:g}"


Wanted = AtLeast | AtMost

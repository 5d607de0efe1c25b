"""What counts as good enough: ``p99 < 100us``, ``loss <= 0.1%``, ``rate >= 1M``.

Each names one figure of a run's result, one comparison, and an amount in a unit of that figure.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["FIGURES", "Figure", "Threshold", "parse_share", "parse_threshold"]

_COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
_WORDS: Final = re.compile(
    r"^\s*(?P<figure>[a-z0-9.-]+)\s*(?P<how><=|>=|==|<|>)\s*(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[A-Za-zµ%/]*)\s*$"
)
_TIME: Final = {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
_RATE: Final = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_SHARE: Final = {"": 1.0, "%": 0.01}
_COUNT: Final = {"": 1.0, "k": 1e3, "M": 1e6}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a result: what it is, and the units it may be given in."""

    meaning: str
    units: Mapping[str, float]


FIGURES: Final[Mapping[str, Figure]] = {
    "p50": Figure("half of all latencies lie below", _TIME),
    "p90": Figure("nine of ten latencies lie below", _TIME),
    "p99": Figure("99 of 100 latencies lie below", _TIME),
    "p99.9": Figure("999 of 1000 latencies lie below", _TIME),
    "p99.99": Figure("9999 of 10000 latencies lie below", _TIME),
    "max": Figure("the longest latency", _TIME),
    "rate": Figure("frames received a second", _RATE),
    "bits": Figure("bits received a second", _RATE),
    "loss": Figure("share of frames sent that did not arrive", _SHARE),
    "lost": Figure("frames sent that did not arrive", _COUNT),
    "reordered": Figure("frames that arrived behind a later one", _COUNT),
    "duplicates": Figure("frames that arrived twice", _COUNT),
    "corrupted": Figure("frames that were changed on their way", _COUNT),
    "late": Figure("the longest that a frame left behind its time", _TIME),
}


@dataclass(frozen=True, slots=True)
class Threshold:
    """One condition, in the figure's base unit: nanoseconds, frames a second, a share, frames."""

    text: str
    figure: str
    how: str
    amount: float

    def holds(self, value: float | None) -> bool:
        """Say whether a result meets it; one without that figure does not."""
        return value is not None and _COMPARISONS[self.how](value, self.amount)


def parse_threshold(text: str) -> Threshold:
    """Read one threshold.

    Raises:
        ValueError: it is none; the text says what was expected.
    """
    match = _WORDS.match(text)
    if match is None:
        raise ValueError("write a figure, a comparison and an amount, such as `p99 < 100us`")
    figure = FIGURES.get(match["figure"])
    if figure is None:
        raise ValueError(f"`{match['figure']}` is no figure; use one of {', '.join(FIGURES)}")
    if match["unit"] not in figure.units:
        units = " ".join(unit or "(none)" for unit in figure.units)
        raise ValueError(f"`{match['figure']}` is given in {units}")
    return Threshold(text.strip(), match["figure"], match["how"], float(match["number"]) * figure.units[match["unit"]])


def parse_share(text: str | float) -> float:
    """Read a share: ``0.1%`` or 0.001.

    Raises:
        ValueError: it is none, or not from 0 to 1.
    """
    match = re.match(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*(%?)\s*$", str(text))
    share = float(match[1]) * _SHARE[match[2]] if match else -1.0
    if not 0 <= share <= 1:
        raise ValueError("expected a share such as 0.1% or 0.001")
    return share

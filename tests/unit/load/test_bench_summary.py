"""Samples summed up, and what a figure must reach."""

import pytest

from vbnet.errors import UsageError
from vbnet.load.bench.summary import AtLeast, AtMost, Summary


def test_a_summary_tells_median_and_extremes_in_any_order() -> None:
    """The order of samples does not matter; an even number of them has a median between two."""
    odd = Summary.of([3.0, 1.0, 2.0])
    even = Summary.of([4.0, 1.0, 2.0, 3.0])

    assert Summary(minimum=1.0, median=2.0, maximum=3.0, count=3) == odd
    assert Summary(minimum=1.0, median=2.5, maximum=4.0, count=4) == even


def test_nothing_measured_cannot_be_summed_up() -> None:
    """No sample is the caller's mistake, not a figure of 0."""
    with pytest.raises(UsageError):
        Summary.of([])


def test_limits_include_themselves() -> None:
    """A figure exactly at the limit reaches it, from above and from below."""
    reached = [AtLeast(0.8).is_reached_by(figure) for figure in (0.79, 0.8, 0.81)]
    kept = [AtMost(2.0).is_reached_by(figure) for figure in (1.9, 2.0, 2.1)]

    assert [False, True, True] == reached
    assert [True, True, False] == kept
    assert ["≥ 0.8", "≤ 1.15"] == [str(AtLeast(0.8)), str(AtMost(1.15))]

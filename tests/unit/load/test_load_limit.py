"""The search for a limit, against a network whose limit is known."""

import pytest

from vbnet.load.counting import Counts
from vbnet.load.limit import Search
from vbnet.load.profile import FindLimit
from vbnet.load.thresholds import parse_threshold


def search_in(limit: float, what: FindLimit, *thresholds: str) -> tuple[Search, list[float]]:
    """Search where more than ``limit`` frames a second lose one in a hundred; p99 is a nanosecond for each."""
    search = Search(what, [parse_threshold(text) for text in thresholds])
    tried = []
    while (rate := search.next_rate()) is not None:
        tried.append(rate)
        sent = round(rate * search.seconds)
        gone = sent // 100 if rate > limit else 0
        found = {"loss": gone / sent, "lost": gone, "p99": rate}
        search.judge(rate, 1, Counts(sent=sent, received=sent - gone), found)
    return search, tried


@pytest.mark.parametrize("limit", [11_000, 123_456, 9_000_000])
def test_the_limit_is_found_within_its_precision(limit: float) -> None:
    """Halving in proportion takes a dozen steps for three powers of ten."""
    search, tried = search_in(limit, FindLimit(from_="10k", to="10M", precision="1%"))

    assert limit / 1.01 <= search.best <= limit
    assert len(tried) <= 14


def test_a_network_without_a_limit_passes_the_highest_rate() -> None:
    """Two steps: the lowest, the highest."""
    search, tried = search_in(1e9, FindLimit(from_="10k", to="10M"))

    assert (1e7, [1e4, 1e7]) == (search.best, tried)


def test_a_network_that_loses_always_has_no_limit() -> None:
    """One step."""
    search, tried = search_in(1, FindLimit(from_="10k", to="10M"))

    assert (0, [1e4]) == (search.best, tried)


def test_a_share_may_be_lost_when_the_profile_says_so() -> None:
    """One in a hundred is what it loses."""
    search, _ = search_in(1e5, FindLimit(from_="10k", to="1M", loss="1%"))

    assert search.best == 1e6


def test_thresholds_are_limits_too() -> None:
    """Latency here is as many nanoseconds as frames a second."""
    search, _ = search_in(1e9, FindLimit(from_="10k", to="10M", precision="1%"), "p99 < 200us")

    assert 2e5 / 1.01 <= search.best < 2e5


def test_a_sender_that_does_not_keep_up_is_not_taken_for_a_network_that_does() -> None:
    """Three quarters of what was due were sent, and all of it arrived."""
    search = Search(FindLimit(from_="10k", to="1M"), [])

    trial = search.judge(1e4, 2, Counts(sent=30_000), {"loss": 0.0, "lost": 0.0})

    assert (False, "only 75% of the frames that were due could be sent") == (trial.passes, trial.why_not)

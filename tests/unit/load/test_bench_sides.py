"""The closed loop of objects from Python."""

import time

import pytest

from vbnet.errors import PeerGone
from vbnet.load.bench.sides import _TURNS_A_LOOK, _rates

UNDER_WAY = 64
SIZE = 16


def test_objects_that_are_lost_are_not_waited_for() -> None:
    """The first that may be under way never come back; the rest is measured all the same."""
    sent = 0

    def turn(is_sending: bool) -> int:
        nonlocal sent
        sent += SIZE if is_sending else 0
        return SIZE if is_sending and sent > UNDER_WAY else 0

    rates = _rates(turn, SIZE, UNDER_WAY, (0.0, 0.2, 2))

    assert len(rates) == 2
    assert all(rate > 0 for rate in rates)


def test_window_in_which_nothing_came_lasts_until_something_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that does not run for a while makes a slow window, not none."""
    looks = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: 0.1 * next(looks))
    turns = 0

    def turn(is_sending: bool) -> int:
        nonlocal turns
        turns += 1
        return SIZE if is_sending and turns > _TURNS_A_LOOK * 10 else 0

    (rate,) = _rates(turn, SIZE, UNDER_WAY, (0.0, 0.1, 1))

    assert rate > 0


def test_objects_that_never_come_back_end_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever."""
    looks = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: 0.1 * next(looks))

    with pytest.raises(PeerGone, match="no object came back"):
        _rates(lambda _is_sending: 0, SIZE, UNDER_WAY, (0.0, 0.1, 1))

"""The closed loop of objects from Python."""

from vbnet.load.bench.sides import _rates

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

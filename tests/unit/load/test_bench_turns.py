"""Subject and baseline in turn, and which readings are compared."""

from collections.abc import Iterable, Iterator

import pytest

from vbnet.errors import UsageError
from vbnet.load.bench.summary import Summary
from vbnet.load.bench.turns import Contender, take_turns


class FakeSurroundings:
    """Surroundings that say what the test wrote down: a placement a look, a disturbance a reading."""

    def __init__(
        self, placements: Iterable[str] = (), disturbances: Iterable[bool] = (), *, is_patient: bool = True
    ) -> None:
        self._is_patient = is_patient
        self._placements = iter(placements)
        self._disturbances = iter(disturbances)

    def settle(self) -> bool:
        """Nobody to wait for; patience as the test wants it."""
        return self._is_patient

    def placement(self) -> str:
        """The next placement; ``near`` when the script is over."""
        return next(self._placements, "near")

    def begin(self) -> None:
        """Nothing to prepare."""

    def is_disturbed(self) -> bool:
        """The next disturbance; none when the script is over."""
        return next(self._disturbances, False)


def counted(name: str, log: list[str], values: Iterable[float]) -> Contender:
    """A contender whose readings are ``values``, one after the other, and who writes down that it was asked."""
    left: Iterator[float] = iter(values)

    def measure() -> list[float]:
        log.append(name)
        return [next(left)]

    return Contender(name, measure)


def test_contenders_are_measured_in_turn() -> None:
    """A B A B, never A A B B."""
    log: list[str] = []

    outcome = take_turns([counted("a", log, [1, 2]), counted("b", log, [10, 20])], 2, FakeSurroundings())

    assert ["a", "b", "a", "b"] == log
    assert Summary(minimum=1, median=1.5, maximum=2, count=2) == outcome.summaries["a"]
    assert Summary(minimum=10, median=15, maximum=20, count=2) == outcome.summaries["b"]
    assert ("near", 0) == (outcome.placement, outcome.set_aside)


def test_a_reading_in_which_the_processors_moved_is_taken_again() -> None:
    """The label before and after a reading must agree."""
    log: list[str] = []
    surroundings = FakeSurroundings(["near", "far", "near", "near"])

    outcome = take_turns([counted("a", log, [1, 2])], 1, surroundings)

    assert ["a", "a"] == log
    assert Summary(minimum=2, median=2, maximum=2, count=1) == outcome.summaries["a"]
    assert ("near", 1) == (outcome.placement, outcome.set_aside)


def test_a_disturbed_reading_is_taken_again() -> None:
    """What was measured beside another program is not compared when something better can be had."""
    log: list[str] = []

    outcome = take_turns([counted("a", log, [1, 2])], 1, FakeSurroundings(disturbances=[True, False]))

    assert 2 == outcome.summaries["a"].median
    assert "near" == outcome.placement


def test_nothing_is_tried_twice_once_waiting_was_given_up() -> None:
    """A busy machine costs a label, not an hour."""
    log: list[str] = []

    outcome = take_turns([counted("a", log, [1, 2])], 1, FakeSurroundings(disturbances=[True], is_patient=False))

    assert ["a"] == log
    assert "near, busy" == outcome.placement


def test_only_readings_of_one_placement_are_compared() -> None:
    """Near is never held against far: the placement of most readings wins, for everybody."""
    log: list[str] = []
    looks = ["near"] * 4 + ["far"] * 2 + ["near"] * 2

    outcome = take_turns([counted("a", log, [1, 100]), counted("b", log, [10, 20])], 2, FakeSurroundings(looks))

    assert "near" == outcome.placement
    assert 1 == outcome.summaries["a"].median
    assert 15 == outcome.summaries["b"].median
    assert 1 == outcome.set_aside


def test_a_machine_that_never_holds_still_is_told_as_such() -> None:
    """Without one comparable reading everything is used, and the label says so."""
    log: list[str] = []
    looks = ["near", "far"] * 8

    outcome = take_turns(
        [counted("a", log, [1, 2]), counted("b", log, [10, 20])], 1, FakeSurroundings(looks, [True] * 8), attempts=2
    )

    assert "moved, busy" == outcome.placement
    assert Summary(minimum=1, median=1.5, maximum=2, count=2) == outcome.summaries["a"]


@pytest.mark.parametrize(("names", "turns"), [([], 1), (["a", "a"], 1), (["a"], 0)])
def test_turns_without_sense_are_refused(names: list[str], turns: int) -> None:
    """No contender, two of one name, and no turn are the caller's mistakes."""
    contenders = [Contender(name, lambda: [1.0]) for name in names]

    with pytest.raises(UsageError):
        take_turns(contenders, turns, FakeSurroundings())

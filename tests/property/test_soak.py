"""A soak's schedule and slopes, for any seed, any kinds and any series."""

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vbnet.load.soak.faults import KINDS
from vbnet.load.soak.schedule import Fault, Kind, draw
from vbnet.load.soak.slope import POINTS_MIN, slope, thinned

seeds = st.integers(0, 2**64)
times = st.floats(0.05, 5)
kinds = st.lists(
    st.builds(
        Kind,
        name=st.sampled_from(sorted(KINDS)),
        weight=st.integers(1, 3),
        targets=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, unique=True),
        for_s=times,
    ),
    max_size=4,
    unique_by=lambda kind: kind.name,
)
values = st.floats(-1e6, 1e6)
series = st.lists(values, min_size=POINTS_MIN, max_size=40).map(lambda found: list(enumerate(found)))


def schedule(chosen: list[Kind], seed: int, every_s: float, total_s: float = 60) -> list[Fault]:
    """What is drawn from a seed."""
    return draw(chosen, every_s=every_s, first_s=1, total_s=total_s, seed=seed)


@given(kinds, seeds, times)
def test_the_same_seed_and_profile_make_the_same_schedule(chosen: list[Kind], seed: int, every_s: float) -> None:
    """So that a soak can be gone on with, and done again."""
    assert schedule(chosen, seed, every_s) == schedule(chosen, seed, every_s)


@given(kinds, seeds, times)
def test_faults_follow_each_other_and_end_in_time(chosen: list[Kind], seed: int, every_s: float) -> None:
    """None begins before the one before is over, and each hits one of its kind's targets."""
    found = schedule(chosen, seed, every_s)
    by_name = {kind.name: kind for kind in chosen}

    assert list(range(len(found))) == [fault.number for fault in found]
    for before, fault in zip([None, *found], found, strict=False):
        begin = 1.0 if before is None else before.at_s + before.for_s
        assert begin < fault.at_s
        assert fault.at_s + fault.for_s <= 60
        assert fault.target in by_name[fault.kind].targets


@given(kinds, seeds, times)
def test_a_longer_soak_begins_with_the_faults_of_a_shorter_one(chosen: list[Kind], seed: int, every_s: float) -> None:
    """What was found early can be looked for in a short run."""
    longer, shorter = schedule(chosen, seed, every_s, 60), schedule(chosen, seed, every_s, 30)

    assert longer[: len(shorter)] == shorter


@given(kinds.filter(bool), seeds)
def test_each_round_has_every_kind_as_often_as_its_weight(chosen: list[Kind], seed: int) -> None:
    """None is left out for long, whatever the seed."""
    length = sum(kind.weight for kind in chosen)
    found = schedule(chosen, seed, 0.05, 200)

    whole = found[: len(found) // length * length]
    for start in range(0, len(whole), length):
        drawn = Counter(fault.kind for fault in whole[start : start + length])
        assert drawn == {kind.name: kind.weight for kind in chosen}


@given(st.integers(-100, 100), st.integers(-100, 100), st.integers(POINTS_MIN, 60))
def test_a_straight_line_has_its_own_slope(rise: int, level: int, count: int) -> None:
    """And no doubt about it."""
    found = slope([[(at, level + rise * at) for at in range(count)]])

    assert found is not None
    for value in (found.estimate, found.low, found.high):
        assert math.isclose(rise, value, abs_tol=1e-6)


@given(series)
def test_bounds_hold_the_estimate(points: list[tuple[int, float]]) -> None:
    """The estimate is one of the slopes of pairs, and lies between the bounds."""
    found = slope([points])

    assert found is not None
    assert found.low <= found.estimate <= found.high


@given(series, st.floats(-1e6, 1e6))
def test_a_level_changes_no_slope(points: list[tuple[int, float]], level: float) -> None:
    """Adding the same to every value."""
    one, two = slope([points]), slope([[(at, value + level) for at, value in points]])

    assert one is not None
    assert two is not None
    assert math.isclose(one.estimate, two.estimate, rel_tol=1e-6, abs_tol=1e-6)


@given(series)
def test_what_rises_falls_in_a_mirror(points: list[tuple[int, float]]) -> None:
    """Slope and bounds change their sign, and the bounds their place."""
    one, two = slope([points]), slope([[(at, -value) for at, value in points]])

    assert one is not None
    assert two is not None
    assert math.isclose(one.estimate, -two.estimate, abs_tol=1e-9)
    assert (one.low, one.high) == (-two.high, -two.low)


@given(st.lists(st.floats(-1, 1), min_size=60, max_size=60))
def test_a_step_between_two_lives_is_no_slope(noise: list[float]) -> None:
    """A process that began anew is compared with itself only: two level stretches, far apart."""
    level = [(at, value) for at, value in enumerate(noise)]
    apart = [(at + 1000, value - 1e6) for at, value in level]

    found = slope([level, apart])

    assert found is not None
    assert abs(found.estimate) <= 2


@given(series, st.integers(1, 50))
def test_thinning_keeps_the_span_of_values(points: list[tuple[int, float]], most: int) -> None:
    """Medians lie among what they are of, and there are never too many."""
    found = thinned(points, most)

    assert len(found) <= max(most, 1) or len(found) == len(points) <= most
    assert min(value for _, value in points) <= min(value for _, value in found)
    assert max(value for _, value in found) <= max(value for _, value in points)

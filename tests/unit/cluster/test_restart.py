"""Restart policies: who comes back, after how long, and who is given up."""

import pytest

from vbnet.cluster.restart import (
    BUDGET,
    BUDGET_WINDOW_NS,
    CALM_NS,
    DELAY_FIRST_NS,
    DELAY_MAX_NS,
    Again,
    Ended,
    GivenUp,
    RestartPolicy,
)
from vbnet.cluster.topology import Restart


@pytest.mark.parametrize(
    ("policy", "exit_code", "expected"),
    [
        ("no", 0, Ended(is_failure=False)),
        ("no", 1, Ended(is_failure=True)),
        ("no", -9, Ended(is_failure=True)),
        ("on-failure", 0, Ended(is_failure=False)),
        ("on-failure", -9, Again(DELAY_FIRST_NS)),
        ("always", 0, Again(DELAY_FIRST_NS)),
    ],
)
def test_the_policy_says_who_comes_back(policy: Restart, exit_code: int, expected: object) -> None:
    """Ended well, ended badly, killed: each policy answers each."""
    assert expected == RestartPolicy(policy).decide(exit_code, started_ns=0, now_ns=1)


def test_failing_again_and_again_waits_longer_each_time() -> None:
    """Back-off doubles up to its limit, so a broken guest cannot keep the machine busy."""
    policy = RestartPolicy("always")

    delays = [policy.decide(1, now, now) for now in range(8)]

    assert [Again(min(DELAY_FIRST_NS << step, DELAY_MAX_NS)) for step in range(8)] == delays


def test_a_guest_that_lived_long_starts_again_at_the_shortest_delay() -> None:
    """Yesterday's trouble is forgotten."""
    policy = RestartPolicy("always")
    for now in range(4):
        policy.decide(1, now, now)

    assert Again(DELAY_FIRST_NS) == policy.decide(1, started_ns=10, now_ns=10 + CALM_NS)


def test_too_many_failures_within_the_window_are_given_up() -> None:
    """The budget ends it, and says how often it was tried."""
    policy = RestartPolicy("always")
    for now in range(BUDGET):
        policy.decide(1, now, now)

    assert GivenUp(BUDGET) == policy.decide(1, BUDGET, BUDGET)
    assert isinstance(policy.decide(1, 0, BUDGET_WINDOW_NS + BUDGET), Again)

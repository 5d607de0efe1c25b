"""The number of descriptors that a node may hold."""

import resource
from collections.abc import Iterator

import pytest

from vbnet.bus.descriptors import raise_descriptor_limit


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    """Give the limits as they are, and restore them afterwards."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_limit_is_raised_to_what_the_user_may_have(limits: tuple[int, int]) -> None:
    """However low the limit was, the node gets as much as its user may allow."""
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

    raised = raise_descriptor_limit()

    assert hard == raised
    assert (hard, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)

"""Every class of every device kind, at every place: found, not listed, so that a new kind is tested by being there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.places import CATALOGUE, Facts, Place, Seat, in_process, separate

CLASSES = sorted((kind.name, name) for kind in CATALOGUE.kinds.values() for name in kind.classes)
PLACES = {"in-process": in_process, "processes": separate}


@pytest.fixture(scope="package", params=sorted(PLACES))
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Give the suite a host, once at each place."""
    with PLACES[request.param]() as place:
        yield place


@pytest.fixture(params=CLASSES, ids=[f"{kind}-{name}" for kind, name in CLASSES])
def class_name(request: pytest.FixtureRequest) -> str:
    """Give a test the name of a device class; each of every kind in turn."""
    name: str = request.param[1]
    return name


@pytest.fixture
def facts(class_name: str) -> Facts:
    """Give a test what the author of the class declared."""
    return Facts(class_name)


@pytest.fixture
def bus(place: Place) -> Iterator[str]:
    """Give a test an empty bus."""
    with place.bus() as name:
        yield name


@pytest.fixture
def device(place: Place, class_name: str) -> Iterator[str]:
    """Give a test a device of the class, plugged nowhere."""
    with place.device(class_name) as name:
        yield name


@pytest.fixture
def seat(place: Place, bus: str) -> Iterator[Seat]:
    """Give a test a guest on its bus."""
    with place.seat(bus) as seat:
        yield seat

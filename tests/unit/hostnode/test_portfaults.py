"""What is told of a port that does not work, to whoever looks later."""

from collections.abc import Iterator

import pytest

from vbnet.hostnode.portfaults import PortFaults
from vbnet.testing.fabric import FakeFabric


@pytest.fixture
def fabric() -> Iterator[FakeFabric]:
    """Give a fabric with one port that waits for front ends."""
    fabric = FakeFabric()
    fabric.switch_create("lan")
    fabric.add_port("lan", "vm", "vhost-user", is_served=False, has_waiting=False)
    yield fabric
    fabric.close()


def test_last_fault_is_told_until_the_port_works(fabric: FakeFabric) -> None:
    """Of two the later one; a front end that is served ends it, also for when it has gone."""
    faults = PortFaults()
    (port,) = fabric.ports()
    faults.note({"port": port["id"], "rule": "r", "text": "the first"})
    faults.note({"port": port["id"], "rule": "r", "text": "the second"})
    told = [row["detail"] for row in faults.rows(fabric)]
    fabric.port_set(port["id"], "is_served", "yes")
    while_served = [row["detail"] for row in faults.rows(fabric)]
    fabric.port_set(port["id"], "is_served", "")

    assert ["the second"] == told
    assert [""] == while_served == [row["detail"] for row in faults.rows(fabric)]


def test_front_end_that_waits_for_another_is_told_of(fabric: FakeFabric) -> None:
    """Two programs with the same socket look to each other as if nothing happened."""
    (port,) = fabric.ports()
    fabric.port_set(port["id"], "has_waiting", "yes")

    (row,) = PortFaults().rows(fabric)

    assert "waits" in row["detail"]


def test_port_that_was_removed_is_forgotten(fabric: FakeFabric) -> None:
    """Numbers are not given again, but nothing is kept for ever."""
    faults = PortFaults()
    (port,) = fabric.ports()
    faults.note({"port": port["id"], "rule": "gone wrong"})
    fabric.port_remove(port["id"])

    assert [] == faults.rows(fabric)
    assert {} == faults._texts

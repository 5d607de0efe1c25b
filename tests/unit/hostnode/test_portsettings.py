"""Attributes of ports that are no guest's card."""

from collections.abc import Iterator

import pytest

from vbnet.errors import NotFoundError, UsageError
from vbnet.hostnode.portsettings import set_port
from vbnet.testing.fabric import FakeFabric


@pytest.fixture
def fabric() -> Iterator[FakeFabric]:
    """Give a fabric with a port for front ends and one of a guest's card."""
    fabric = FakeFabric()
    fabric.switch_create("lan")
    fabric.add_port("lan", "vm", "vhost-user")
    fabric.add_port("lan", "web.eth0", "venet")
    yield fabric
    fabric.close()


@pytest.mark.parametrize(
    ("attribute", "text", "parameter"),
    [
        ("hold", "0", "hold_us"),
        ("burstthresh", "100", "burst_threshold_us"),
        ("budget", "8", "budget"),
        ("enabled", "0", "link"),
    ],
)
def test_attributes_have_the_names_that_cards_have(
    fabric: FakeFabric, attribute: str, text: str, parameter: str
) -> None:
    """One vocabulary for all ports."""
    port = fabric.ports()[0]["id"]

    name = set_port(fabric, port, attribute, text)

    assert ("vm", text) == (name, fabric.ports()[0][parameter])


@pytest.mark.parametrize(
    ("attribute", "text"), [("hold", "10001"), ("hold", "-1"), ("budget", "0"), ("budget", "many"), ("enabled", "2")]
)
def test_value_out_of_range_is_refused_and_nothing_changed(fabric: FakeFabric, attribute: str, text: str) -> None:
    """The message has the value and what is allowed."""
    before = [dict(port) for port in fabric.ports()]

    with pytest.raises(UsageError, match=text):
        set_port(fabric, before[0]["id"], attribute, text)

    assert before == fabric.ports()


def test_unknown_attribute_is_answered_with_those_there_are(fabric: FakeFabric) -> None:
    """As of a device."""
    with pytest.raises(NotFoundError, match="hold"):
        set_port(fabric, fabric.ports()[0]["id"], "colour", "red")


def test_port_of_a_guests_card_is_set_at_its_device(fabric: FakeFabric) -> None:
    """Otherwise the device would show what is not so."""
    with pytest.raises(UsageError, match=r"web\.eth0.*device set"):
        set_port(fabric, fabric.ports()[1]["id"], "hold", "0")


def test_port_that_is_not_there_is_not_found(fabric: FakeFabric) -> None:
    """With where to look."""
    with pytest.raises(NotFoundError, match="port list"):
        set_port(fabric, 99, "hold", "0")

"""Attributes of devices: typed, shown as text, locked when they must be."""

from typing import Any

import pytest

from vbnet.errors import BusyError, NotFoundError, UsageError
from vbnet.hostnode.device import Attribute, AttributeTable


def refuse_odd(name: str, value: int) -> None:
    """A device that takes even numbers only."""
    if value % 2:
        raise UsageError(f"{name} must be even", got=value)


def table() -> AttributeTable:
    """A table with one attribute of each sort."""
    return AttributeTable(
        [
            Attribute("size", "any number", parse=int, default=4, format=hex),
            Attribute("mac", "locked", parse=str, default="none", is_locked_while_open=True),
            Attribute("seen", "read-only", parse=int, default=0, is_read_only=True),
        ],
        on_change=lambda name, value: refuse_odd(name, value) if name == "size" else None,
    )


def test_text_becomes_a_value_and_is_shown_in_the_device_s_own_form() -> None:
    """The operator writes text, the device reads a number."""
    attributes = table()

    attributes.set_text("size", "16", is_open=False)

    assert attributes["size"] == 16
    assert attributes.texts() == {"size": "0x10", "mac": "none", "seen": "0"}


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("size", "many", UsageError),
        ("size", "3", UsageError),
        ("seen", "1", UsageError),
        ("mac", "x", BusyError),
        ("colour", "red", NotFoundError),
    ],
)
def test_a_refused_change_changes_nothing(name: str, text: str, error: type[Exception]) -> None:
    """No parse, no device, no lock, no attribute: the table stays as it was."""
    attributes = table()
    before: dict[str, Any] = attributes.texts()

    with pytest.raises(error):
        attributes.set_text(name, text, is_open=True)

    assert before == attributes.texts()


def test_the_device_itself_may_change_what_the_operator_may_not() -> None:
    """Read-only is for operators."""
    attributes = table()

    attributes.publish("seen", 7)

    assert attributes["seen"] == 7

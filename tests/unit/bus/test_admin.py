"""Verbs as operators make them: what a host would refuse is told in words before it is sent."""

import msgspec
import pytest

from vbnet.bus import admin
from vbnet.errors import UsageError

LETTERS = "letters, digits and . _ : @ -, the first a letter or digit"


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        (admin.BusCreate("x/y"), f"name 'x/y' cannot be: 1 to 96 {LETTERS}"),
        (admin.SwitchCreate(""), f"name '' cannot be: 1 to 96 {LETTERS}"),
        (admin.DeviceCreate("-x"), f"name '-x' cannot be: 1 to 96 {LETTERS}"),
        (admin.DevicePlug("x", "y z"), f"bus 'y z' cannot be: 1 to 96 {LETTERS}"),
        (admin.GuestReset("x/y"), f"name 'x/y' cannot be: 1 to 96 {LETTERS}"),
        (admin.PortAdd("lan", "x/y"), "tap 'x/y' cannot be: 1 to 15 letters, digits"),
        (admin.PortListen("lan", "x:y"), "name 'x:y' cannot be: 1 to 63 letters, digits"),
        (admin.PortListen("lan", "x", mac="02:00"), "mac '02:00' cannot be: six bytes in hexadecimal"),
        (admin.PortListen("lan", "x", socket="x.sock"), "socket 'x.sock' cannot be: an absolute path"),
        (admin.SignalRaise(""), "signal '' cannot be: 1 to 256 characters"),
        (admin.SwitchCreate("lan", 0.5), "ageing_s: Expected `float` >= 1"),
        (admin.DeviceCreate("x", "t", {"key": "v" * 5000}), "attributes: Expected `str` of length <= 4096"),
    ],
)
def test_what_a_verb_cannot_say_is_told(verb: msgspec.Struct, said: str) -> None:
    """With the argument's name, its value, and what it may be."""
    with pytest.raises(UsageError) as caught:
        admin.check_verb(verb)

    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "verb",
    [
        admin.BusList(),
        admin.BusCreate("a.b:c@d-e_f"),
        admin.PortListen("lan", "vm1", socket="/run/vm1.sock", mac="02:00:00:00:00:0a"),
        admin.SignalRoute("web/tick", guest="web", vcpu=1),
        admin.EventPublish("lab.guest", {"guest": "web", "code": None, "words": ["a"]}),
        admin.Apply([admin.encode_value(admin.BusList())]),
    ],
    ids=lambda verb: type(verb).__name__,
)
def test_what_a_verb_can_say_passes(verb: msgspec.Struct) -> None:
    """Whatever a host would take."""
    admin.check_verb(verb)

"""What network cards of a switch have in common, whatever their model: attributes by which operators see them."""

from __future__ import annotations

import secrets
from typing import Any, Final

from vbnet.hostnode.device import Attribute
from vbnet.hostnode.values import flag, flag_text, within
from vbnet.net.mac import MacAddress

__all__ = ["ENABLED", "MTU_MIN", "SWITCH", "TURN_PARAMETERS", "turn_attributes", "wire_attributes"]

MTU_MIN: Final = 68
"""What IPv4 demands, in bytes."""

SWITCH: Final = Attribute("switch", "switch this card is joined to", str, "", is_locked_while_open=True)

ENABLED: Final = Attribute("enabled", "carrier of the link, 0 or 1", flag, default=True, format=flag_text)


TURN_PARAMETERS: Final = {"burstthresh": "burst_threshold_us", "budget": "budget", "hold": "hold_us"}
"""What the fabric calls what ``turn_attributes`` says of a card's port."""


def wire_attributes(mtu_max: int) -> tuple[Attribute[Any], ...]:
    """What is on the wire: address, longest packet, carrier.

    Args:
        mtu_max: largest packet that the model carries, bytes.
    """
    own = MacAddress.random_local(secrets.token_bytes(6))
    return (
        Attribute("mac", "address of the guest's end", MacAddress.parse_station, own, is_locked_while_open=True),
        Attribute(
            "mtu",
            f"largest packet in bytes, {MTU_MIN}..{mtu_max}",
            within(MTU_MIN, mtu_max),
            1500,
            is_locked_while_open=True,
        ),
        ENABLED,
    )


def turn_attributes() -> tuple[Attribute[Any], ...]:
    """How a worker serves it."""
    return (
        Attribute(
            "burstthresh",
            "µs the port stays awake after kicks in close succession, 0..100000",
            within(0, 100_000),
            50,
        ),
        Attribute("budget", "frames taken from this card at a turn, 1..4096", within(1, 4096), 256),
        Attribute(
            "hold",
            "µs that its senders wait at most while it has no room, 0..10000; 0: frames are dropped at once",
            within(0, 10_000),
            500,
        ),
    )

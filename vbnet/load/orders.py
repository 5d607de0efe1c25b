"""What a load run tells its guests to do, one order at a time.

Orders travel as JSON over the socket by which a guest process reports to its supervisor. Addresses, lengths of time and
rates are settled already: a guest looks nothing up but the capture that it is to replay.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from vbnet.cluster.quantity import duration_s, rate_per_second
from vbnet.load.profile import Flow

__all__ = [
    "Ask",
    "Listen",
    "Manner",
    "Order",
    "Reflect",
    "Replay",
    "Schedule",
    "Send",
    "Stop",
    "decode_order",
    "schedule_of",
]


class _Order(msgspec.Struct, frozen=True, tag_field="do", omit_defaults=True):
    """One order."""


class Schedule(msgspec.Struct, frozen=True, omit_defaults=True):
    """When frames are due: a kind of arrivals and its numbers, in the order in which native code takes them."""

    kind: Literal["flood", "constant", "poisson", "ramp", "burst", "on_off"]
    numbers: tuple[float, ...] = ()


class Replay(msgspec.Struct, frozen=True):
    """A capture to replay: where it is, and how much faster than it was."""

    path: str
    speed: float


class Manner(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a guest handles frames: at most so many at once, and in memory of its own or where they lie."""

    batch: int = 32
    does_copy: bool = False


class Send(_Order, frozen=True, tag="send"):
    """Send to these MAC addresses in turn, from a moment of the monotonic clock on."""

    to: tuple[str, ...]
    stream: int
    at_s: float
    for_s: float
    size: int | list[int] | str
    schedule: Schedule
    replay: Replay | None = None
    manner: Manner = Manner()


class Ask(_Order, frozen=True, tag="ask"):
    """Ask this MAC address, so many requests under way."""

    to: str
    stream: int
    at_s: float
    for_s: float
    size: int | list[int] | str
    window: int
    timeout_s: float


class Reflect(_Order, frozen=True, tag="reflect"):
    """Send every test frame back."""


class Listen(_Order, frozen=True, tag="listen"):
    """Count what arrives, knowing no stream from before."""

    manner: Manner = Manner()


class Stop(_Order, frozen=True, tag="stop"):
    """End what is being sent."""


Order = Send | Ask | Reflect | Listen | Stop


def decode_order(message: bytes) -> Order:
    """Return an order as it was encoded."""
    order: Order = msgspec.json.decode(message, type=Order)
    return order


def schedule_of(flow: Flow, seed: int, rate: float | None = None) -> Schedule:
    """Return when a flow's frames are due.

    Args:
        flow: what the profile says.
        seed: what its randomness follows from.
        rate: frames a second instead of those of an even or random flow.
    """
    if flow.rate is not None:
        return Schedule("constant", (rate or rate_per_second(flow.rate),))
    if flow.poisson is not None:
        return Schedule("poisson", (rate or rate_per_second(flow.poisson), seed))
    if flow.ramp is not None:
        ramp = flow.ramp
        return Schedule("ramp", (rate_per_second(ramp.from_), rate_per_second(ramp.to), duration_s(ramp.over)))
    if flow.burst is not None:
        return Schedule("burst", (flow.burst.frames, duration_s(flow.burst.every)))
    if flow.on_off is not None:
        turns = flow.on_off
        return Schedule("on_off", (rate_per_second(turns.rate), duration_s(turns.on), duration_s(turns.off)))
    return Schedule("flood")

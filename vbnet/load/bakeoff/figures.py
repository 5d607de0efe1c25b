"""What is told of each measurement, in which unit, and which way is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from vbnet.load.bakeoff.usage import Usage
from vbnet.load.counting import Counts, Latency
from vbnet.load.figures import say_count, say_rate, say_share, say_time

__all__ = ["FIGURES", "Figure", "figures", "say_amount"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a measurement.

    Attributes:
        says: what it is.
        say: writes a value for people.
        is_more_better: whether a larger one is better.
    """

    says: str
    say: Callable[[float | None], str]
    is_more_better: bool = False


def say_amount(number: float | None) -> str:
    """Return how many of something there were to one frame."""
    if number is None:
        return "-"
    return f"{number:.0f}" if number >= 1000 or number == 0 else f"{number:.3g}"  # noqa: PLR2004 - three digits


def _say_bytes(number: float | None) -> str:
    return "-" if number is None else f"{say_count(number)} B"


FIGURES: Final[Mapping[str, Figure]] = {
    "rate": Figure("frames received a second", say_rate, is_more_better=True),
    "p50": Figure("half of all latencies lie below", say_time),
    "p99": Figure("99 of 100 latencies lie below", say_time),
    "wakeups": Figure("wake-ups of host and guests a frame", say_amount),
    "traps": Figure("synchronous register accesses a frame", say_amount),
    "system_calls": Figure("reads and writes of host and guests a frame", say_amount),
    "bytes_a_wakeup": Figure("bytes received between two wake-ups", _say_bytes, is_more_better=True),
    "cpu": Figure("processor time of host and guests a frame", say_time),
    "loss": Figure("share of frames sent that did not arrive", say_share),
}


def figures(
    *, counts: Counts, latency: Latency, usage: Usage, traps: int, arrived: int, seconds: float
) -> dict[str, float]:
    """Return the figures of one measurement; where nothing arrived there is only the rate.

    Args:
        counts: of those whose rate and latency are told.
        latency: of the same.
        usage: of the host node and of all guests that took part.
        traps: register accesses of their cards.
        arrived: frames that reached anybody; a request counts once, with its reply.
        seconds: how long was measured.
    """
    found = {"rate": counts.received / max(seconds, 1e-9)}
    if not counts.received or not arrived:
        return found
    percentiles = latency.percentiles_ns()
    found.update({name: float(percentiles[name]) for name in ("p50", "p99") if name in percentiles})
    found.update(
        wakeups=usage.sleeps / arrived,
        traps=traps / arrived,
        system_calls=usage.system_calls / arrived,
        bytes_a_wakeup=counts.received_bytes / max(1, usage.sleeps),
        cpu=usage.cpu_ns / arrived,
    )
    if counts.sent:
        found["loss"] = max(0, counts.sent - counts.received) / counts.sent
    return found

"""Quantities with their unit in the type, so that bytes, slots and nanoseconds cannot be mixed up silently."""

from __future__ import annotations

from typing import Final, NewType

__all__ = ["KIB", "MIB", "SECOND_NS", "Nanoseconds", "Seconds", "seconds_to_ns"]

Seconds = NewType("Seconds", float)
Nanoseconds = NewType("Nanoseconds", int)

SECOND_NS: Final = 1_000_000_000
KIB: Final = 1 << 10
MIB: Final = 1 << 20


def seconds_to_ns(seconds: float) -> int:
    """Turn seconds into whole nanoseconds, rounding to the nearest."""
    return round(seconds * SECOND_NS)

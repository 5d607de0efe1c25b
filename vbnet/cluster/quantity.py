"""Amounts as people write them in a lab file: ``16MiB``, ``10k``, ``30s``.

Each reader takes text or a plain number and returns a number in the unit of its name. Anything else is a
``ValueError`` whose text says what was expected.
"""

from __future__ import annotations

import re

_NUMBER = re.compile(r"^(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[A-Za-z]*)$")

_BYTES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_RATE = {"": 1, "k": 10**3, "M": 10**6}
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "m": 60.0, "h": 3600.0}


def length_bytes(text: str | int) -> int:
    """Return a length in bytes from ``4096``, ``"16MiB"``, ``"64kB"``."""
    return int(_scaled(text, _BYTES, "a size such as 16MiB"))


def rate_per_second(text: str | int) -> float:
    """Return frames a second from ``1000``, ``"10k"``, ``"1.5M"``."""
    return _scaled(text, _RATE, "a rate such as 10k or 1.5M frames a second")


def duration_s(text: str | float) -> float:
    """Return seconds from ``30``, ``"30s"``, ``"200ms"``, ``"2us"``, ``"5m"``."""
    return _scaled(text, _SECONDS, "a duration such as 30s, 200ms or 5m")


def _scaled(text: str | float, units: dict[str, int] | dict[str, float], expected: str) -> float:
    if isinstance(text, bool):
        raise ValueError(f"expected {expected}")  # noqa: TRY004 -- one error type for every wrong amount
    match = _NUMBER.match(str(text).strip())
    if match is None or match["unit"] not in units:
        raise ValueError(f"expected {expected}")
    value = float(match["number"]) * units[match["unit"]]
    if not value > 0:
        raise ValueError(f"expected {expected}, more than 0")
    return value

"""How texts of attributes are read: the parsers that devices of every kind need."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["flag", "flag_text", "within"]


def within(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from ``low`` to ``high``, both allowed; it raises ValueError for others."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"allowed are {low}..{high}")
        return value

    return parse


def flag(text: str) -> bool:
    """Read 0 or 1; raises ValueError for anything else."""
    return bool(within(0, 1)(text))


def flag_text(value: bool) -> str:
    """Write 0 or 1."""
    return str(int(value))

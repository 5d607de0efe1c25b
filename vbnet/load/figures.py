"""How figures of a load run are written for people: ``1.25 M/s``, ``38 µs``, ``0.1 %``."""

from __future__ import annotations

from typing import Final

__all__ = ["say", "say_count", "say_figure", "say_rate", "say_share", "say_time"]

_TIMES: Final = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))
_COUNTS: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def say_time(nanoseconds: float | None) -> str:
    """Return a length of time with three digits."""
    return _scaled(nanoseconds, _TIMES, "ns")


def say_count(number: float | None) -> str:
    """Return a number with three digits, shortened from 10000 on."""
    if number is not None and abs(number) < 10_000:  # noqa: PLR2004 - as said
        return f"{number:g}" if number == int(number) else f"{number:.3g}"
    return _scaled(number, _COUNTS, "")


def say_rate(number: float | None) -> str:
    """Return something a second."""
    return f"{_scaled(number, _COUNTS, '')}/s".replace(" /s", "/s") if number is not None else "-"


def say_share(share: float | None) -> str:
    """Return a share in percent."""
    return "-" if share is None else f"{100 * share:.3g} %"


def say_figure(name: str, value: float | None) -> str:
    """Return a figure of a result in the unit that its name has."""
    if value is None:
        return "-"
    match name:
        case "rate":
            return say_rate(value)
        case "bits":
            return say_rate(value).replace("/s", "bit/s")
        case "loss":
            return say_share(value)
        case "lost" | "reordered" | "duplicates" | "corrupted":
            return say_count(value)
        case _:
            return say_time(value)


def say(name: str) -> str:
    """Return what a figure is called in a table."""
    return {"bits": "throughput", "late": "latest departure", "max": "largest"}.get(name, name)


def _scaled(number: float | None, units: tuple[tuple[float, str], ...], plain: str) -> str:
    if number is None:
        return "-"
    if number == 0:
        return f"0 {plain}".strip()
    scale, unit = next(((scale, unit) for scale, unit in units if abs(number) >= scale), units[-1])
    text = f"{number / scale:.3g}"
    if "e" in text:
        text = f"{number / scale:.0f}"
    return f"{text} {unit}".strip()

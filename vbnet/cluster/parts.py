"""Parts of a file that people write, turned into structs with every mistake told at its line.

A *part* is a msgspec struct. :class:`PartReader` converts one part at a time, so that each problem keeps its place, and
goes on after a mistake, so that one run tells all of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import msgspec

from vbnet.cluster.source import Place, Problem, Source
from vbnet.errors import did_you_mean

__all__ = ["NAME_PATTERN", "SERIAL_PATTERN", "TAP_PATTERN", "PartReader", "dotted", "said"]

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,30}$"
TAP_PATTERN = r"^[A-Za-z][A-Za-z0-9_.-]{0,14}$"
SERIAL_PATTERN = r"^[ -~]{0,20}$"

T = TypeVar("T")


class PartReader:
    """Reads parts of one file and collects what is wrong with them in ``found``."""

    _EXPECTED: ClassVar[re.Pattern[str]] = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)

    def __init__(self, source: Source) -> None:
        self.source = source
        self.found: list[Problem] = []

    def add(self, place: Place, what: str, fix: str) -> None:
        """Note what is wrong at ``place``, and what its author can do."""
        self.found.append(self.source.problem(place, what, fix))

    def mapping(self, key: str, data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield the entries of the mapping under ``key``; nothing when it is left out or no mapping."""
        value = data.get(key)
        if value is None:
            return
        if not isinstance(value, dict):
            self.add((key,), f"`{key}` is not a mapping", f"write `{key}:` and below it `name: {{...}}` entries")
            return
        yield from value.items()

    def keys(self, place: Place, data: Mapping[str, Any], part: type[msgspec.Struct]) -> bool:
        """Say whether a part has all the keys it needs and no others; what is wrong is noted."""
        known = [item.encode_name for item in msgspec.structs.fields(part)]
        config = part.__struct_config__
        if config.tag_field is not None:
            known.append(config.tag_field)
        unknown = [key for key in data if key not in known]
        for key in unknown:
            self.add(
                (*place, key),
                f"unknown key `{key}`",
                did_you_mean(key, known, otherwise=f"known here: {', '.join(known)}"),
            )
        meant = {match for key in unknown for match in difflib.get_close_matches(key, known, n=1)}
        missing = [
            item.encode_name
            for item in msgspec.structs.fields(part)
            if item.required and item.encode_name not in data and item.encode_name not in meant
        ]
        for key in missing if place else []:
            self.add(place, f"`{key}` is missing in {dotted(place)}", f"add `{key}: ...`")
        return not unknown and not missing

    def named(self, noun: str, place: Place, name: str, value: object, part: type[Any]) -> Any:  # noqa: ANN401
        """Convert a part that has a name of its author's choice."""
        if not re.match(NAME_PATTERN, name):
            self.add(
                place, f"impossible {noun} name `{name}`", "use lower-case letters, digits and hyphens, at most 31"
            )
        return self.part(place, value, part)

    def part(self, place: Place, value: object, part: type[Any]) -> Any:  # noqa: ANN401
        """Convert a mapping into a part; None, and noted, when it is wrong."""
        if not isinstance(value, dict):
            self.add(place, f"{dotted(place)} is {said(value)}, not a mapping", "write `key: value` pairs")
            return None
        return self.convert(place, value, part) if self.keys(place, value, part) else None

    def convert(self, place: Place, value: object, part: Any) -> Any:  # noqa: ANN401 -- any struct or constrained type
        """Convert any value into what ``part`` says; None, and noted, when it is wrong."""
        try:
            return msgspec.convert(value, part)
        except msgspec.ValidationError as error:
            match = self._EXPECTED.match(str(error))
            inner = _inner_place(match["path"] or "") if match else ()
            at = (*place, *inner)
            self.add(
                at,
                f"{dotted(at)} is {said(_value_at(value, inner))}",
                _advice(match["what"] if match else str(error)),
            )
            return None

    def amount(self, place: Place, value: Any, read: Callable[[Any], T]) -> T | None:  # noqa: ANN401
        """Read an amount such as ``10k``; None, and noted, when ``read`` refuses it."""
        try:
            return read(value)
        except ValueError as error:
            self.add(place, f"`{place[-1]}` is {said(value)}", str(error))
            return None


def _inner_place(path: str) -> Place:
    """Turn msgspec's ``.nics[0].ip`` into a place; stops at ``[...]``, which names no key."""
    place: list[str | int] = []
    for word, index in re.findall(r"\.([A-Za-z_]+)|\[(\d+|\.\.\.)\]", path):
        if index == "...":
            break
        place.append(word or int(index))
    return tuple(place)


def _value_at(value: object, place: Place) -> object:
    for step in place:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int):
            value = value[step]
    return value


def said(value: object) -> str:
    """Return a value as a message repeats it."""
    text = "empty" if value is None else f"`{value}`" if isinstance(value, str | int | float) else f"a {_noun(value)}"
    return text if len(text) < 60 else f"{text[:56]}...`"  # noqa: PLR2004 -- one line of a message


def _noun(value: object) -> str:
    return "mapping" if isinstance(value, dict) else "list"


def dotted(place: Place) -> str:
    """Return a place as a message names it."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return f"`{text}`" if text else "the file"


def _advice(expected: str) -> str:
    """Turn msgspec's ``Expected `int` >= 1`` into advice."""
    if NAME_PATTERN in expected:
        return "use lower-case letters, digits and hyphens, at most 31, a letter first"
    if TAP_PATTERN in expected:
        return "use at most 15 letters, digits, `_`, `.` or `-`"
    if SERIAL_PATTERN in expected:
        return "use at most 20 printable ASCII characters"
    expected = (
        expected.replace(" | null`", "`")
        .replace("`str`", "text")
        .replace("`int`", "a whole number")
        .replace("`bool`", "true or false")
    )
    expected = re.sub(r", got .*$", "", expected)
    return expected[:1].lower() + expected[1:]

"""What a table is: columns that say how values are shown, rows of plain values, and what is wrong with a row.

Nothing here knows a screen: colours and terminals belong to whoever shows a sheet. What is wrong is a word
(``Mark``), so that no colour is needed to read it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from vbnet.telemetry.watch.look import Key

__all__ = [
    "NUMBERS",
    "SIGNS",
    "Column",
    "Mark",
    "Row",
    "Sheet",
    "Show",
    "Step",
    "Value",
    "arranged",
    "plain_lines",
    "records",
    "shown",
    "spark",
]

Value = str | int | float | None


class Show(StrEnum):
    """How the values of a column are shown."""

    text = "text"
    prose = "prose"
    number = "number"
    rate = "rate"
    bytes = "bytes"
    share = "share"
    seconds = "seconds"
    moment = "moment"
    line = "line"


class Mark(IntEnum):
    """How bad a row is."""

    fine = 0
    notice = 1
    bad = 2


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: for programs. title: for people.
        show: how its values are shown.
        rank: 0: always shown; of the others the highest are left out first where there is no room.
    """

    name: str
    title: str
    show: Show = Show.rate
    rank: int = 0


class Step(NamedTuple):
    """One step into the tables: a tab, or ``guest``, ``device`` or ``block`` with whose."""

    to: str
    whose: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        key: the same in every sheet of this path.
        cells: one for each column.
        mark: whether something is wrong with it.
        line: the block whose main rate is its sparkline.
        opens: where Enter leads.
    """

    key: tuple[str, ...]
    cells: tuple[Value, ...]
    mark: Mark = Mark.fine
    line: Key | None = None
    opens: Step | None = None


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table.

    Attributes:
        columns: at least one. rows: in the order in which they are counted.
        sort: name of the column after which it is sorted unless somebody wishes otherwise; "" leaves the order.
        note: what is said above it.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    sort: str = ""
    note: str = ""

    def column(self, name: str) -> int | None:
        """Place of a column; None: there is none of that name."""
        return next((place for place, column in enumerate(self.columns) if column.name == name), None)


NUMBERS: Final = frozenset({Show.number, Show.rate, Show.bytes, Show.share, Show.seconds, Show.moment})
"""Columns that are aligned to the right and sorted from the greatest down."""
SIGNS: Final = {Mark.fine: " ", Mark.notice: "~", Mark.bad: "!"}
"""How bad a row is, in one character."""
_LEVELS: Final = "▁▂▃▄▅▆▇█"
_THOUSAND: Final = 1000
_TEN: Final = 10
_HUNDRED: Final = 100


def shown(value: Value, show: Show) -> str:
    """A value as people read it: at most 8 characters, unless it is a text."""
    if value is None or isinstance(value, str):
        return value or "-"
    match show:
        case Show.number:
            return str(value) if abs(value) < 10_000_000 else _short(value)  # noqa: PLR2004 -- still fits
        case Show.share:
            return f"{value * _HUNDRED:.0f} %"
        case Show.seconds:
            return _duration(value)
        case Show.moment:
            return shown_moment(value)
        case _:
            return _short(value)


def shown_moment(wall_s: float) -> str:
    """The time of day here."""
    try:
        return datetime.fromtimestamp(wall_s, UTC).astimezone().strftime("%H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "?"


def spark(line: Sequence[float | None]) -> str:
    """A line of rates as characters of growing height, the greatest full; a space where none is known, or 0."""
    top = max((value for value in line if value is not None), default=0.0)
    if top <= 0:
        return " " * len(line)
    return "".join(" " if not value else _LEVELS[max(0, math.ceil(value / top * len(_LEVELS)) - 1)] for value in line)


def arranged(sheet: Sheet, *, words: str = "", sort: str = "", is_reversed: bool = False) -> list[Row]:
    """The rows that are wanted, in the order that is wanted.

    Args:
        sheet: whose.
        words: only rows in whose texts each of these is found; upper and lower case are one.
        sort: name of a column; "" or one that is not there takes the sheet's own.
        is_reversed: turn the order round. Without it numbers go down and texts up; what is not known comes last.
    """
    wanted = words.casefold().split()
    rows = [row for row in sheet.rows if not wanted or _matches(row, wanted)]
    place = sheet.column(sort)
    if place is None:
        place = sheet.column(sheet.sort)
    if place is None:
        return rows[::-1] if is_reversed else rows
    goes_down = (sheet.columns[place].show in NUMBERS) is not is_reversed
    known = [row for row in rows if row.cells[place] is not None]
    # By name first: the order among equals then stays the same whichever way the column goes.
    known.sort(key=lambda row: tuple(map(_natural, row.key)))
    known.sort(key=lambda row: _order(row.cells[place]), reverse=goes_down)
    return known + [row for row in rows if row.cells[place] is None]


def plain_lines(sheet: Sheet) -> list[str]:
    """A table as aligned lines of text, the titles first; a row that something is wrong with ends in its sign."""
    places = [place for place, column in enumerate(sheet.columns) if column.show is not Show.line]
    shows = [sheet.columns[place].show for place in places]
    lines = [[sheet.columns[place].title for place in places]]
    rows = arranged(sheet)
    lines += [[shown(row.cells[place], show) for place, show in zip(places, shows, strict=True)] for row in rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(places))]
    signs = ["", *(SIGNS[row.mark].strip() for row in rows)]
    return [
        "  ".join(
            [
                *(
                    text.rjust(width) if show in NUMBERS else text.ljust(width)
                    for text, width, show in zip(line, widths, shows, strict=True)
                ),
                sign,
            ]
        ).rstrip()
        for line, sign in zip(lines, signs, strict=True)
    ]


def records(sheet: Sheet, rows: Sequence[Row]) -> list[dict[str, Value]]:
    """Rows for programs: values by the columns' names, in plain units."""
    columns = [(place, column.name) for place, column in enumerate(sheet.columns) if column.show is not Show.line]
    return [{name: row.cells[place] for place, name in columns} for row in rows]


def _matches(row: Row, wanted: Sequence[str]) -> bool:
    text = " ".join(cell for cell in row.cells if isinstance(cell, str)).casefold()
    return all(word in text for word in wanted)


def _order(value: Value) -> tuple[int, object]:
    """Something to sort by, also where a column has texts and numbers."""
    return (1, _natural(value)) if isinstance(value, str) else (0, value)


@lru_cache(maxsize=1 << 14)
def _natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Let ``web-2`` come before ``web-10``."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"([0-9]+)", text.casefold())
    )


def _short(value: float) -> str:
    """Three digits and a letter for thousands."""
    if value == 0:
        return "0"
    letters = iter("kMGTPE")
    letter = ""
    while abs(value) >= _THOUSAND - 0.5:
        value, letter = value / _THOUSAND, next(letters)
    digits = 0 if abs(value) >= _HUNDRED or (not letter and value == int(value)) else 1 if abs(value) >= _TEN else 2
    return f"{value:.{digits}f}{letter}"


def _duration(seconds: float) -> str:
    for limit, unit, text in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {text}"
    return f"{seconds / 86_400:.0f} d"

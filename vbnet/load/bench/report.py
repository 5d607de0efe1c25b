"""Rows as a table for people and as JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final, TextIO

import msgspec
from rich.console import Console
from rich.table import Table

from vbnet.load.bench.machine import Machine
from vbnet.load.bench.registry import BENCHES
from vbnet.load.bench.row import Row
from vbnet.load.bench.summary import Summary

__all__ = ["Report", "as_markdown", "as_text", "in_words", "list_text", "params_text"]

_SCALES: Final = {
    "frames/s": (1e6, "M/s"),
    "objects/s": (1e6, "M/s"),
    "ns": (1e3, "µs"),
    "bytes": (1024.0, "KiB"),
    "calls/s": (1e6, "M/s"),
    "bits/s": (1e9, "Gb/s"),
    "s": (1.0, "s"),
    "% of one core": (1.0, "%"),
}


def in_words(value: float, unit: str) -> str:
    """Say a figure in the unit people use: ``52.1 M/s``, ``0.24 µs``."""
    scale, label = _SCALES.get(unit, (1.0, unit))
    return f"{value / scale:.3g} {label}" if value / scale < 1000 else f"{value / scale:.0f} {label}"  # noqa: PLR2004


def params_text(row: Row) -> str:
    """Say what was measured in particular: ``frame_bytes 64, batch 32``."""
    return ", ".join(f"{name} {value}" for name, value in row.params.items())


def _spread(samples: Summary, unit: str) -> str:
    scale, _label = _SCALES.get(unit, (1.0, unit))
    return f"{samples.minimum / scale:.3g} .. {samples.maximum / scale:.3g}"


def _verdict(row: Row) -> str:
    if row.wanted is None:
        return ""
    word = "not judged" if row.is_reached is None else "reached" if row.is_reached else "missed"
    return f"{row.wanted} {word}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        params_text(row),
        in_words(row.value, row.unit),
        _spread(row.samples, row.unit),
        row.baseline or "",
        "" if row.baseline_value is None else in_words(row.baseline_value, row.unit),
        "" if row.ratio is None else f"{row.ratio:.3g}",
        _verdict(row),
        row.placement,
        row.note,
    )


_COLUMNS: Final = (
    "bench",
    "what",
    "median",
    "min .. max",
    "against",
    "its median",
    "ratio",
    "wanted",
    "placement",
    "note",
)


class Report:
    """Prints rows as they come; :meth:`finish` ends the document.

    Args:
        output_format: ``table`` or ``json``.
        machine: printed first.
        out: where to.
    """

    def __init__(self, output_format: str, machine: Machine, out: TextIO | None = None) -> None:
        self._is_json = output_format == "json"
        self._machine = machine
        self._out = sys.stdout if out is None else out
        self._rows: list[Row] = []

    def note(self, text: str) -> None:
        """Tell people something between rows; programs are spared it."""
        if not self._is_json:
            self._out.write(text + "\n")
            self._out.flush()

    def add(self, row: Row) -> None:
        """Print one row as soon as it is known; JSON comes whole, at the end."""
        self._rows.append(row)
        against = f"  {row.ratio:.3g} of {row.baseline}" if row.ratio is not None else ""
        verdict = f"  [{_verdict(row)}]" if row.wanted is not None else ""
        figure = f"{in_words(row.value, row.unit)}{against}{verdict}"
        self.note(f"{row.name}  {params_text(row)}  {figure}  ({row.placement})")

    def finish(self) -> None:
        """Print the whole table, or the JSON document ``{machine, rows}``."""
        if self._is_json:
            document = {"machine": self._machine, "rows": self._rows}
            self._out.write(msgspec.json.format(msgspec.json.encode(document), indent=1).decode() + "\n")
            return
        cells = _table(self._rows, range(len(_COLUMNS)))
        if not self._out.isatty():
            self._out.write(_plain_table(cells))
            return
        table = Table(*cells[0])
        for line in cells[1:]:
            table.add_row(*line)
        Console(file=self._out).print(table)


def _plain_table(cells: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, two spaces between: for files and other programs."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)
    return "\n" + "\n".join(lines) + "\n"


def as_markdown(rows: Sequence[Row], *, with_names: bool = False) -> str:
    """Write rows as the tables of the documentation have them; columns that say nothing are left out."""
    head, *lines = _table(rows, range(0 if with_names else 1, _COLUMNS.index("note")))
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *lines))


def as_text(rows: Sequence[Row]) -> str:
    """Write rows as a table of plain text, as ``vbnet bench`` ends with; columns that say nothing are left out."""
    return _plain_table(_table(rows, range(len(_COLUMNS)))).removeprefix("\n")


def _table(rows: Sequence[Row], columns: Sequence[int]) -> list[list[str]]:
    """A heading and a line for each row, of those columns that say something."""
    lines = [_cells(row) for row in rows]
    used = [column for column in columns if any(line[column] for line in lines)]
    return [[_COLUMNS[column] for column in used], *([line[column] for column in used] for line in lines)]


def list_text() -> str:
    """Name every bench, one a line, with what it measures."""
    width = max(map(len, BENCHES))
    return "\n".join(f"{bench.name:<{width}}  {bench.summary}" for bench in BENCHES.values()) + "\n"

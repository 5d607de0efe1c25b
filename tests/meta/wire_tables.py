"""Reads the tables of docs/wire/, so that a byte table and the code it describes can be compared.

A document is written for a stranger who implements the other side in another language. Every table in it is either
checked against code or plainly explanatory. What a table is checked against is said by a mark, an HTML comment on
the last non-empty line before it; ``tests/meta/test_wire_tables.py`` checks every marked table:

``<!-- struct: vbnet.bus.fdpass:ATTACH_LAYOUT -->``
    columns offset | size | ... | name: the attribute is a mapping from field name to (offset, size), both in bytes.
``<!-- layout: rust/core/src/shm/layout.rs ring -->``
    same columns: rows (structure, field, offset, size) in a Rust file, here those of the structure ``ring``; or, as
    ``module:function ring``, rows that a function returns.
``<!-- constants: vbnet.bus.messages -->``
    columns name | value: the module (or class, after a colon) has an attribute of each name with that value.
``<!-- enum: vbnet.devices.venet.wire:Function -->``
    columns value | name: exactly the members of that enumeration, no more and no fewer.
``<!-- rust: rust/core/src/shm/layout.rs -->``
    columns name | value: the file has ``const NAME: ... = VALUE;`` for each: integers, and magics as ``"vRNG"``.

Other tests may read tables themselves: ``[table] = wire_tables.under_heading(path, "Ring header")``.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.meta import markdown

SEPARATOR = re.compile(r"^\s*\|?\s*:?-{3,}:?\s*(\|\s*:?-{3,}:?\s*)*\|?\s*$")
INTEGER = re.compile(r"^-?(0x[0-9a-fA-F_]+|0b[01_]+|[0-9][0-9_ ]*)$")


@dataclasses.dataclass(frozen=True)
class Row:
    """One table row: its cells by lower-case column name, code ticks removed, and its line in the document."""

    line: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        """Return the cell of a column, which must exist."""
        return self.cells[column]

    def integer(self, column: str) -> int:
        """Return a cell as an integer: decimal, 0x or 0b, with ``_`` or a blank between groups of digits.

        Raises:
            ValueError: the cell is no integer; the message names line and column.
        """
        cell = self.cells[column]
        if not INTEGER.match(cell):
            raise ValueError(f"line {self.line}, column {column}: {cell!r} is not an integer")
        return int(cell.replace(" ", "").replace("_", ""), 0)


@dataclasses.dataclass(frozen=True)
class WireTable:
    """One table: where it stands, the mark before it ("" if none), and its rows."""

    path: Path
    heading: str
    line: int
    mark: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def _cells(line: str) -> list[str]:
    """Split a table line at its bars; a bar after a backslash belongs to the cell."""
    inner = line.strip().removeprefix("|").removesuffix("|")
    return [cell.strip().replace("\\|", "|").strip("`*") for cell in re.split(r"(?<!\\)\|", inner)]


def read(path: Path) -> Iterator[WireTable]:
    """Yield the tables of a document in order.

    Raises:
        ValueError: a row has more or fewer cells than the head of its table; the message names the line.
    """
    lines = markdown.prose(path)
    heading = ""
    index = 0
    while index < len(lines):
        match = markdown.HEADING.match(lines[index])
        if match is not None:
            heading = match["text"]
        is_head = "|" in lines[index] and index + 1 < len(lines) and SEPARATOR.match(lines[index + 1])
        if not is_head:
            index += 1
            continue
        start = index
        columns = tuple(cell.lower() for cell in _cells(lines[start]))
        rows: list[Row] = []
        index += 2
        while index < len(lines) and "|" in lines[index]:
            cells = _cells(lines[index])
            if len(cells) != len(columns):
                raise ValueError(f"{path.name}:{index + 1}: {len(cells)} cells under {len(columns)} columns")
            rows.append(Row(index + 1, dict(zip(columns, cells, strict=True))))
            index += 1
        yield WireTable(path, heading, start + 1, markdown.mark_before(lines, start), columns, tuple(rows))


def under_heading(path: Path, heading: str) -> list[WireTable]:
    """Return the tables that stand directly under a heading, in order."""
    return [table for table in read(path) if table.heading == heading]


def layout(table: WireTable) -> dict[str, tuple[int, int]]:
    """Return the fields of a byte table as name → (offset, size), in bytes; rows named ``reserved`` are left out."""
    return {
        row["name"]: (row.integer("offset"), row.integer("size")) for row in table.rows if row["name"] != "reserved"
    }


def gaps(table: WireTable) -> list[str]:
    """Return what is wrong with the offsets of a byte table: fields that overlap, or bytes that no row describes."""
    wrong: list[str] = []
    expected = table.rows[0].integer("offset") if table.rows else 0
    for row in table.rows:
        offset = row.integer("offset")
        if offset != expected:
            wrong.append(
                f"{table.path.name}:{row.line}: {row['name']} is at {offset}, the row before ends at {expected}"
            )
        expected = offset + row.integer("size")
    return wrong

"""The byte tables of docs/wire/ say what the code does: a stranger may implement from them alone."""

import enum
import importlib
import re
from pathlib import Path

import pytest

from tests.meta import tree, wire_tables

TABLES = [table for path in tree.under("docs/wire", suffix=".md") for table in wire_tables.read(path)]
BYTE_TABLES = [table for table in TABLES if {"offset", "size", "name"} <= set(table.columns)]


def marked(kind: str) -> list[wire_tables.WireTable]:
    """Return the tables whose mark starts with ``kind:``."""
    return [table for table in TABLES if table.mark.startswith(f"{kind}:")]


def place(table: wire_tables.WireTable) -> str:
    """Name a table in a test's id."""
    return f"{tree.name(table.path)}:{table.line}"


def named_object(table: wire_tables.WireTable) -> object:
    """Import what the mark names: ``kind: module`` or ``kind: module:attribute``."""
    module, _, attribute = table.mark.partition(":")[2].strip().partition(":")
    found: object = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def constant(source: str, name: str) -> str:
    """Return the text that a Rust constant is set to, without blanks, digit groups, and type suffix."""
    match = re.search(rf"\bconst {re.escape(name)}\s*:[^=]+=\s*([^;]+);", source)
    assert match is not None, f"no constant {name}"
    return match[1].strip()


@pytest.mark.parametrize("table", BYTE_TABLES, ids=place)
def test_rows_of_a_byte_table_follow_each_other_without_gap(table: wire_tables.WireTable) -> None:
    """Every byte of a described structure belongs to exactly one row; padding is a row named reserved."""
    assert [] == wire_tables.gaps(table)


@pytest.mark.parametrize("table", marked("struct"), ids=place)
def test_structure_in_document_has_the_fields_of_the_code(table: wire_tables.WireTable) -> None:
    """Names, offsets and sizes in the document are those that the code packs and unpacks."""
    in_code = named_object(table)

    assert in_code == wire_tables.layout(table)


@pytest.mark.parametrize("table", marked("constants"), ids=place)
def test_constants_in_document_have_the_values_of_the_code(table: wire_tables.WireTable) -> None:
    """A constant that the document states exists in the code with that value."""
    owner = named_object(table)

    in_code = {row["name"]: int(getattr(owner, row["name"])) for row in table.rows}

    assert in_code == {row["name"]: row.integer("value") for row in table.rows}


@pytest.mark.parametrize("table", marked("enum"), ids=place)
def test_enumeration_in_document_has_exactly_the_members_of_the_code(table: wire_tables.WireTable) -> None:
    """The document lists each member of the enumeration and none that the code does not know."""
    owner = named_object(table)
    assert isinstance(owner, type)
    assert issubclass(owner, enum.Enum)

    in_code = {member.name: int(member.value) for member in owner}

    assert in_code == {row["name"]: row.integer("value") for row in table.rows}


@pytest.mark.parametrize("table", marked("rust"), ids=place)
def test_rust_constants_in_document_have_the_values_of_the_source(table: wire_tables.WireTable) -> None:
    """A constant that the document takes from a Rust file stands there with that value."""
    source = (tree.ROOT / table.mark.partition(":")[2].strip()).read_text()

    in_code = {row["name"]: normal(constant(source, row["name"])) for row in table.rows}

    assert in_code == {row["name"]: normal(row["value"]) for row in table.rows}


def normal(literal: str) -> int | str:
    """Return an integer literal as its value (shifts evaluated), anything else as its text."""
    plain = re.sub(r"(?<=[0-9a-fA-F])_?(?:[ui](?:8|16|32|64|size))\b", "", literal).replace("_", "").strip()
    shift = re.fullmatch(r"(\w+)\s*<<\s*(\w+)", plain)
    if shift is not None:
        return int(shift[1], 0) << int(shift[2], 0)
    return int(plain.replace(" ", ""), 0) if wire_tables.INTEGER.match(plain) else literal.strip()


def test_reader_finds_columns_rows_and_mark(tmp_path: Path) -> None:
    """A table is read with its heading, its mark, its columns in lower case and its cells without ticks."""
    document = tmp_path / "a.md"
    document.write_text(
        "# T\n\n## Head\n\n<!-- struct: m:L -->\n\n| Offset | Size | Name |\n| ---: | --- | --- |\n"
        "| 0 | 4 | `magic` |\n| 0x4 | 0x1_0 | `a\\|b` |\n",
    )

    [table] = wire_tables.under_heading(document, "Head")

    assert "struct: m:L" == table.mark
    assert ("offset", "size", "name") == table.columns
    assert {"magic": (0, 4), "a|b": (4, 16)} == wire_tables.layout(table)


def test_gap_and_overlap_are_reported_with_their_line(tmp_path: Path) -> None:
    """Bytes that no row describes, or two rows do, are named with file and line."""
    document = tmp_path / "a.md"
    document.write_text("| offset | size | name |\n|---|---|---|\n| 0 | 4 | a |\n| 8 | 4 | b |\n| 10 | 2 | c |\n")

    [table] = wire_tables.read(document)

    assert [
        "a.md:4: b is at 8, the row before ends at 4",
        "a.md:5: c is at 10, the row before ends at 12",
    ] == wire_tables.gaps(table)

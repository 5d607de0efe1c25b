"""The byte tables of docs/wire/ say what the code does: a stranger may implement from them alone."""

import enum
import importlib
import re
from collections.abc import Callable
from pathlib import Path

from tests.meta import tree, wire_tables

Comparison = Callable[[wire_tables.WireTable], tuple[object, object]]

TABLES = [table for path in tree.under("docs/wire", suffix=".md") for table in wire_tables.read(path)]
BYTE_TABLES = [table for table in TABLES if {"offset", "size", "name"} <= set(table.columns)]


def place(table: wire_tables.WireTable) -> str:
    """Name a table in a test's id."""
    return f"{tree.name(table.path)}:{table.line}"


def imported(name: str) -> object:
    """Import ``module`` or ``module:attribute``."""
    module, _, attribute = name.partition(":")
    found: object = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def named_object(table: wire_tables.WireTable) -> object:
    """Import what the mark names: ``kind: module`` or ``kind: module:attribute``."""
    return imported(table.mark.partition(":")[2].strip())


ROW = re.compile(r'\(\s*"(?P<owner>\w+)",\s*"(?P<field>[\w.]+)",\s*(?P<offset>\w+),\s*(?P<size>\w+)\s*,?\s*\)')


LAYOUT = "rust/core/src/shm/layout.rs"
"""Where constants of several structures are."""


def resolved(source: str, word: str) -> int:
    """Return a number of a Rust file: a literal, or the name of a constant or local that is set to one."""
    value = normal(word)
    if isinstance(value, str):
        match = re.search(rf"\b(?:const|let) {re.escape(word)}\b[^=]*=\s*([^;]+);", source)
        assert match is not None, f"nothing is called {word}"
        return resolved(source, match[1].strip())
    return value


def listed_layout(place_of_rows: str, structure: str) -> dict[str, tuple[int, int]]:
    """Return the fields of one structure from rows (structure, field, offset, size).

    The rows stand in a Rust file, or come from a function that is named ``module:function``.
    """
    if place_of_rows.endswith(".rs"):
        source = (tree.ROOT / place_of_rows).read_text()
        common = (tree.ROOT / LAYOUT).read_text()
        return {
            row["field"]: (resolved(source + common, row["offset"]), resolved(source + common, row["size"]))
            for row in ROW.finditer(source)
            if row["owner"] == structure
        }
    listing = imported(place_of_rows)
    assert callable(listing)
    return {field: (offset, size) for owner, field, offset, size in listing() if owner == structure}


def constant(source: str, name: str) -> str:
    """Return the text that a Rust constant is set to."""
    match = re.search(rf"\bconst {re.escape(name)}\s*:[^=]+=\s*([^;]+);", source)
    assert match is not None, f"no constant {name}"
    return match[1].strip()


def places(wrong: dict[str, tuple[object, object]]) -> str:
    """Lay out differences for a failure's message: place, what the document says, what the code says."""
    return "".join(
        f"\n{where}\n  document: {document}\n  code:     {code}" for where, (document, code) in wrong.items()
    )


def differences(kind: str, compare: Comparison) -> dict[str, tuple[object, object]]:
    """Return place → (document, code) for each table of a kind that says something else than the code."""
    compared = {place(table): compare(table) for table in TABLES if table.mark.startswith(f"{kind}:")}
    return {where: (document, code) for where, (document, code) in compared.items() if document != code}


def test_every_mark_before_a_table_is_understood() -> None:
    """A mark that no test knows would look like a check and be none."""
    kinds = {table.mark.partition(":")[0] for table in TABLES if ":" in table.mark}

    assert kinds <= {"struct", "layout", "constants", "enum", "rust"}


def test_every_byte_table_is_checked_against_code() -> None:
    """A table of offsets without a mark would be true only until the code changes."""
    assert [] == [place(table) for table in BYTE_TABLES if not table.mark.startswith(("struct:", "layout:"))]


def test_rows_of_a_byte_table_follow_each_other_without_gap() -> None:
    """Every byte of a described structure belongs to exactly one row; padding is a row named reserved."""
    assert [] == [gap for table in BYTE_TABLES for gap in wire_tables.gaps(table)]


def test_structures_in_documents_have_the_fields_of_the_code() -> None:
    """Names, offsets and sizes in the documents are those that the code packs and unpacks."""
    wrong = differences("struct", lambda table: (wire_tables.layout(table), named_object(table)))

    assert {} == wrong, places(wrong)


def test_layouts_in_documents_have_the_fields_of_the_native_code() -> None:
    """The words of shared structures stand in the documents where the compiled code has them."""

    def compare(table: wire_tables.WireTable) -> tuple[object, object]:
        rows, _, structure = table.mark.partition(":")[2].strip().partition(" ")
        return wire_tables.layout(table), listed_layout(rows, structure)

    wrong = differences("layout", compare)

    assert {} == wrong, places(wrong)


def test_constants_in_documents_have_the_values_of_the_code() -> None:
    """A constant that a document states exists in the code with that value."""

    def compare(table: wire_tables.WireTable) -> tuple[object, object]:
        owner = named_object(table)
        stated = {row["name"]: row.integer("value") for row in table.rows}
        return stated, {name: int(getattr(owner, name)) for name in stated}

    wrong = differences("constants", compare)

    assert {} == wrong, places(wrong)


def test_enumerations_in_documents_have_exactly_the_members_of_the_code() -> None:
    """A document lists each member of an enumeration and none that the code does not know."""

    def compare(table: wire_tables.WireTable) -> tuple[object, object]:
        owner = named_object(table)
        assert isinstance(owner, type)
        assert issubclass(owner, enum.Enum)
        stated = {row["name"]: row.integer("value") for row in table.rows}
        return stated, {member.name: int(member.value) for member in owner}

    wrong = differences("enum", compare)

    assert {} == wrong, places(wrong)


def test_rust_constants_in_documents_have_the_values_of_the_source() -> None:
    """A constant that a document takes from a Rust file stands there with that value."""

    def compare(table: wire_tables.WireTable) -> tuple[object, object]:
        source = (tree.ROOT / table.mark.partition(":")[2].strip()).read_text()
        stated = {row["name"]: normal(row["value"]) for row in table.rows}
        return stated, {name: normal(constant(source, name)) for name in stated}

    wrong = differences("rust", compare)

    assert {} == wrong, places(wrong)


def normal(literal: str) -> int | str:
    """Return an integer literal as its value (shifts evaluated), a magic as its quoted letters, else the text."""
    plain = re.sub(r"(?<=[0-9a-fA-F])_?(?:[ui](?:8|16|32|64|size))\b", "", literal).replace("_", "").strip()
    tag = re.fullmatch(r"u(?:32|64)::from_le_bytes\(\*b(\"\w+\")\)", literal)
    if tag is not None:
        return tag[1]
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

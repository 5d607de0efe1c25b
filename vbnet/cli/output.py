"""Everything the command line prints for people and programs.

A table on a terminal, aligned plain text when piped, one JSON document with ``--format json``. Colours only on a
terminal, never with ``NO_COLOR``. Results go to standard output, notes to standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    json = "json"


FormatOption = Annotated[
    Format, typer.Option("--format", envvar="VBNET_FORMAT", help="A table for people, or JSON for programs.")
]

Row = Mapping[str, Any]


def application(help_text: str, examples: Sequence[tuple[str, str]], *, is_group: bool = False) -> typer.Typer:
    """Return the Typer application of one verb or noun, with its help and examples."""
    return typer.Typer(
        help=help_text,
        epilog=epilog(examples),
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=is_group,
    )


def epilog(examples: Sequence[tuple[str, str]]) -> str:
    """Return examples as the text below a verb's help; the leading control character keeps the lines as they are."""
    width = max((len(command) for command, _ in examples), default=0)
    lines = "\n".join(f"  {command:<{width}}  {meaning}" for command, meaning in examples)
    return f"\b\nExamples:\n{lines}" if examples else ""


def is_terminal() -> bool:
    """Say whether standard output is a terminal that shows colours and moves its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def print_rows(rows: Iterable[object], columns: Sequence[str], how: Format, *, empty: str = "nothing there") -> None:
    """Print records.

    Args:
        rows: mappings or structs; JSON gets all of their fields.
        columns: the fields a table shows, in order.
        how: table or JSON.
        empty: what a person reads when there are none.
    """
    records: list[Row] = [msgspec.to_builtins(row) for row in rows]
    if how is Format.json:
        print_json(records)
    elif not records:
        note(empty)
    elif is_terminal():
        _print_rich(records, columns)
    else:
        _print_plain(records, columns)


def print_record(record: object, how: Format) -> None:
    """Print one record: its fields below each other, or one JSON object."""
    fields: Row = msgspec.to_builtins(record)
    if how is Format.json:
        print_json(fields)
        return
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        say(f"{name.replace('_', ' '):<{width}}  {cell(value)}")


def print_done(text: str, record: Row, how: Format) -> None:
    """Print that something was done: a sentence, or the record as JSON."""
    if how is Format.json:
        print_json(record)
    else:
        say(text)


def print_json(value: object) -> None:
    """Print one JSON document."""
    say(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_json_line(value: object) -> None:
    """Print one JSON document on one line, at once: for streams."""
    say(msgspec.json.encode(value).decode())


def say(text: str) -> None:
    """Print one line of result."""
    print(text, flush=True)  # noqa: T201 -- this is the one place that prints results


def note(text: str) -> None:
    """Print one line beside the result, for a person."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 -- same, for notes


def cell(value: object) -> str:
    """Return a value as a table shows it."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"  # noqa: PLR2004 -- three digits are enough
    if isinstance(value, Mapping):
        return " ".join(f"{key}={cell(item)}" for key, item in value.items()) or "-"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(cell(item) for item in value) or "-"
    return str(value)


def _title(column: str) -> str:
    return column.replace("_", " ").upper()


def _print_plain(records: Sequence[Row], columns: Sequence[str]) -> None:
    lines = [
        [_title(column) for column in columns],
        *([cell(row.get(column)) for column in columns] for row in records),
    ]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        say("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _print_rich(records: Sequence[Row], columns: Sequence[str]) -> None:
    from rich.console import Console  # noqa: PLC0415 -- only a terminal pays for it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(_title(column), overflow="fold")
    for row in records:
        table.add_row(*(Text(cell(row.get(column)), style=_style(column, row.get(column))) for column in columns))
    Console().print(table)


def _style(column: str, value: object) -> str:
    good, bad = {"ready", "up", "ok", "yes"}, {"failed", "dead", "given-up", "missing", "stuck", "wedged"}
    if column not in {"state", "phase", "result"}:
        return ""
    return "green" if value in good else "red" if value in bad else "yellow"

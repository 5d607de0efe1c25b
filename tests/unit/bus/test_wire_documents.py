"""docs/wire and docs/errors.md name every message, field, verb, topic and error of the code, and none more."""

import re
import typing
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

import msgspec
import pytest

from tests.meta import tree, wire_tables
from vbnet.bus import admin, fdpass, messages
from vbnet.errors import REFUSALS, UsageError, VbnetError
from vbnet.hostnode.admin import TOPICS

DOCS = tree.ROOT / "docs"
NUMBERS = {
    (0, 0xFFFF): "u16",
    (0, 0xFFFF_FFFF): "u32",
    (0, None): "u64",
    (0, (1 << 63) - 1): "u63",
    (1, (1 << 63) - 1): "u63",
    (-1, (1 << 63) - 1): "i63",
    (0, 7): "0..7",
}
TEXTS = {96: "name", 64: "word", 256: "text"}
PLAIN = {bytes: "bin", str: "str", bool: "bool"}


def table(document: Path, mark: str) -> wire_tables.WireTable:
    """The one table with this mark."""
    [found] = [found for found in wire_tables.read(document) if found.mark == mark]
    return found


def word_for(hint: Any) -> str:
    """What the documents call a type."""
    if get_origin(hint) is Annotated:
        kind, meta = get_args(hint)[0], get_args(hint)[1]
        if kind is int:
            return NUMBERS[meta.ge, meta.le]
        return TEXTS[meta.max_length] if kind is str else PLAIN[kind]
    if get_origin(hint) is dict:
        return "map"
    if get_origin(hint) in {UnionType, typing.Union}:
        inner = [part for part in get_args(hint) if part is not type(None)]
        return f"{word_for(inner[0])} or nil" if len(inner) == 1 else "result"
    return PLAIN[hint]


def described(body: type[msgspec.Struct]) -> tuple[int, str, str]:
    """A message as the documents should have it: tag, name, fields with their types."""
    hints = typing.get_type_hints(body, include_extras=True)
    fields = ", ".join(f"{name}: {word_for(hints[name])}" for name in body.__struct_fields__)
    tag = body.__struct_config__.tag
    assert isinstance(tag, int)
    return tag, body.__name__, fields


@pytest.mark.parametrize(
    ("document", "mark", "union"),
    [
        ("bus.md", "messages of guests", messages.GuestBody),
        ("bus.md", "messages of the host", messages.HostBody),
        ("attach.md", "packets of guests", fdpass.AttachBody),
        ("attach.md", "packets of the host", fdpass.AttachReply),
    ],
)
def test_every_message_is_in_the_tables_with_its_fields_in_order(document: str, mark: str, union: UnionType) -> None:
    """A stranger can encode each message from the table alone."""
    column = "packet" if document == "attach.md" else "message"
    rows = table(DOCS / "wire" / document, mark).rows

    stated = [(row.integer("tag"), row[column], row["fields"]) for row in rows]

    assert [described(body) for body in get_args(union)] == stated


def test_every_verb_is_in_the_table_with_its_arguments() -> None:
    """Nothing an operator can ask is missing."""
    rows = table(DOCS / "wire" / "admin.md", "verbs").rows

    stated = {row["verb"]: row["arguments"] for row in rows}

    assert {
        str(verb.__struct_config__.tag): ", ".join(verb.__struct_fields__) for verb in get_args(admin.Verb)
    } == stated


def test_every_topic_is_in_the_table() -> None:
    """Nothing that is published is missing."""
    rows = table(DOCS / "wire" / "admin.md", "topics").rows

    assert TOPICS == {row["topic"]: row["meaning"] for row in rows}


def test_every_topic_that_the_code_publishes_is_known_and_no_other() -> None:
    """Whoever asks what topics there are is told of all."""
    texts = [path.read_text() for path in (DOCS.parent / "vbnet").rglob("*.py")]

    published = {topic for text in texts for topic in re.findall(r'publish\(\s*"([a-z_]+\.[a-z_]+)"', text)}

    assert set(TOPICS) == published


def test_every_error_is_in_the_table_with_what_else_it_is() -> None:
    """The vocabulary is complete."""
    rows = table(DOCS / "errors.md", "errors").rows

    stated = {row["code"]: (row["class"], row["also a"].replace("`", "")) for row in rows}

    own = (VbnetError, UsageError, Exception, object)
    parents = {
        code: [base for base in cls.__bases__ if base not in own or (base is UsageError and cls is not UsageError)]
        for code, cls in REFUSALS.items()
    }
    assert {
        code: (cls.__name__, ", ".join(base.__name__ for base in parents[code])) for code, cls in REFUSALS.items()
    } == stated

"""docs/wire and docs/errors.md name every message, field, verb, topic and error of the code, and none more."""

import ast
import typing
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

import msgspec
import pytest

from tests.meta import tree, wire_tables
from vbnet.bus import admin, fdpass, messages
from vbnet.bus.topics import BY_LABS, TOPICS
from vbnet.errors import REFUSALS, UsageError, VbnetError

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
TEXTS = {96: "name", 64: "word", 256: "text", 1024: "str"}
PLAIN = {bytes: "bin", str: "str", bool: "bool"}


SPREAD: dict[str, set[str]] = {
    "fault": {"port", "name", "part", "rule", "text"},
    "{'rule': '', **_event_fields(fault)}": {"rule"},
    "_of(slot.plan)": {"process", "guests", "count"},
    "_of(fault)": {"number", "kind", "target"},
}
"""What stands for fields in calls that publish: each the expression, and the fields it gives."""


def published_events() -> list[tuple[str, ast.Call]]:
    """Every call in the package that publishes a topic by name."""
    found = []
    for path in sorted((DOCS.parent / "vbnet").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("publish") and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str) and "." in first.value:
                    found.append((first.value, node))
    return found


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
    """Nothing that is published is missing, and its fields and severity are told."""
    rows = table(DOCS / "wire" / "admin.md", "topics").rows

    stated = {row["topic"]: (row["severity"], row["fields"], row["meaning"]) for row in rows}

    assert {
        name: (str(topic.severity), ", ".join([*topic.fields, *(["…"] * topic.has_more)]), topic.meaning)
        for name, topic in TOPICS.items()
    } == stated


def test_every_topic_that_the_code_publishes_is_known_and_no_other() -> None:
    """Whoever asks what topics there are is told of all."""
    published = {topic for topic, _ in published_events()}

    assert set(TOPICS) == published


@pytest.mark.parametrize(("topic", "call"), published_events(), ids=lambda part: part if isinstance(part, str) else "")
def test_events_are_published_with_the_fields_of_their_topic(topic: str, call: ast.Call) -> None:
    """A field that is promised is there, and none that is not, unless the topic says that more follow."""
    named = {keyword.arg for keyword in call.keywords if keyword.arg}
    spread = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg is None]
    promised = set(TOPICS[topic].fields)

    given = named.union(*(SPREAD[text] for text in spread))

    assert promised == given | ({"lab"} if topic.startswith(BY_LABS) else set())


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

"""State records: typed values of which only the latest counts, published by one and sampled by any number.

    position = Schema("x:f64 y:f64 t:u64 mode:u8")
    page = StatePage.create(position, records=2)
    publisher = page.publisher(0)
    publisher.publish(x=1.0, y=2.0, t=7, mode=1)
    page.sampler(0).sample()       # x=1.0, y=2.0, t=7, mode=1, published_ns=…, is_alive=True

Nobody is told and nobody waits: publishing is a few stores, sampling a few loads, and what is sampled is one published
value, whole. Who writes what: one publisher a record. The danger: two publishers of one record mix their values up;
``vbnet.devices.state`` grants a record to one guest at a time. Bytes: docs/wire/state.md.
"""

from __future__ import annotations

import functools
import keyword
import re
from collections import namedtuple
from collections.abc import Callable
from typing import Any, Final

from vbnet._native import (
    Page,
    Ram,
    StateCodec,
    StatePublisher,
    StateSampler,
    state_format,
    state_page_bytes,
)
from vbnet.errors import UsageError

__all__ = ["MAX_SCHEMA_CHARACTERS", "Schema", "StatePage"]

MAX_SCHEMA_CHARACTERS: Final = 2048
_LETTERS: Final = {
    "u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i8": "b", "i16": "h", "i32": "i", "i64": "q",
    "f32": "f", "f64": "d", "bool": "?",
}  # fmt: skip
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,47}")
_OURS: Final = ("published_ns", "is_alive")
"""What a sample says besides the fields."""


class Schema:
    """What the values of a record mean: fields ``name:type``, separated by spaces.

    Types are u8 to u64, i8 to i64, f32, f64 and bool. Fields lie one behind the other without gaps, little-endian; the
    rest up to a multiple of 8 bytes is 0.

    Args:
        text: for instance ``"x:f64 y:f64 t:u64 mode:u8"``; at most 2048 characters, 4096 bytes of values.

    Raises:
        UsageError: no such type, a name twice, or a name that is none.

    Attributes:
        text: in its one spelling, which is what both sides must have in common.
        number: of 64 bits, made of the text (FNV-1a); it stands in the page's header.
        names: of the fields, in order.
        value_bytes: of one value, a multiple of 8.
        sample_type: the named tuple that samples are: the fields, ``published_ns`` and ``is_alive``.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_SCHEMA_CHARACTERS:
            raise UsageError(f"a schema has at most {MAX_SCHEMA_CHARACTERS} characters", got=len(text))
        fields = [_field(part) for part in text.split()]
        self.names = tuple(name for name, _ in fields)
        if not fields or len(set(self.names)) != len(fields):
            raise UsageError("a schema names one field or more, each once", schema=text)
        self.text = " ".join(f"{name}:{kind}" for name, kind in fields)
        self.number = _fnv1a(self.text.encode())
        self.codec = StateCodec([(name, _LETTERS[kind]) for name, kind in fields])
        self.value_bytes = self.codec.value_bytes
        # The class is made of names that only the schema knows.
        self.sample_type: type[Any] = namedtuple("Sample", (*self.names, *_OURS))  # type: ignore[misc]  # noqa: PYI024
        self.make_sample: Callable[[tuple[Any, ...]], Any] = functools.partial(tuple.__new__, self.sample_type)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Schema({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


class StatePage:
    """A page of records in memory of this process or lent to it; made with ``create``, ``in_ram`` or ``attach``.

    Attributes:
        schema: of its values.
        memory: where it is; ``fileno()`` of a ``Page`` can be lent.
    """

    def __init__(self, memory: Page | Ram, schema: Schema, offset: int) -> None:
        self.memory = memory
        self.schema = schema
        self._offset = offset

    @classmethod
    def create(cls, schema: Schema, records: int = 1, name: str = "vbnet-state") -> StatePage:
        """Make memory for a page of ``records`` (1..4096) records, and lay it out.

        Raises:
            UsageError: too many records. ResourceError: no memory.
        """
        memory = Page.create(state_page_bytes(records, schema.value_bytes), name)
        state_format(memory, records, schema.value_bytes, schema.number)
        return cls(memory, schema, 0)

    @classmethod
    def in_ram(cls, ram: Ram, offset: int, schema: Schema, records: int = 1) -> StatePage:
        """Lay a page out in a guest's memory, at a multiple of 128 bytes; ``bytes_for`` says how long it is.

        Raises:
            UsageError: the place is misaligned, in the header or outside the memory.
        """
        state_format(ram, records, schema.value_bytes, schema.number, offset)
        return cls(ram, schema, offset)

    @classmethod
    def attach(cls, memory: Page | Ram, schema: Schema, offset: int = 0) -> StatePage:
        """Use a page that somebody else laid out; what its header says is checked with each publisher or sampler."""
        return cls(memory, schema, offset)

    @staticmethod
    def bytes_for(schema: Schema, records: int = 1) -> int:
        """Bytes of a page."""
        return state_page_bytes(records, schema.value_bytes)

    def publisher(self, record: int = 0) -> StatePublisher:
        """The writing end of a record; see to it that there is but one.

        Raises:
            UsageError: no such record, or this memory can only be read.
            PeerFault: the page is not what its header should say.
        """
        return StatePublisher(self.memory, self.schema.codec, self.schema.number, record, self._offset)

    def sampler(self, record: int = 0) -> StateSampler:
        """A reading end of a record; any number.

        Raises:
            UsageError: no such record. PeerFault: the page is not what its header should say.
        """
        sampler = StateSampler(self.schema.codec, self.schema.make_sample)
        sampler.move_to(self.memory, self.schema.number, record=record, offset=self._offset)
        return sampler


def _field(part: str) -> tuple[str, str]:
    name, _, kind = part.partition(":")
    if kind not in _LETTERS or not _NAME.fullmatch(name) or keyword.iskeyword(name) or name in _OURS:
        raise UsageError(
            f"{part!r} is no field; write name:type with a type of {', '.join(_LETTERS)}",
            got=part,
            types=list(_LETTERS),
        )
    return name, kind


def _fnv1a(data: bytes) -> int:
    number = 0xCBF29CE484222325
    for byte in data:
        number = (number ^ byte) * 0x100000001B3 & 0xFFFF_FFFF_FFFF_FFFF
    return number

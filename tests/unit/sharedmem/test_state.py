"""State records from Python: schemas, values, and what each refuses."""

import math
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbnet.errors import ClosedError, PeerFault, UsageError
from vbnet.sharedmem import Page, Ram, Schema, StatePage, StateRoll, StateSampler

LETTERS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "f64": "d"}


def values_of(kind: str) -> st.SearchStrategy[float]:
    """Numbers that fit a type."""
    if kind == "f64":
        return st.floats(allow_nan=False)
    bits = int(kind[1:])
    return st.integers(0, (1 << bits) - 1) if kind[0] == "u" else st.integers(-1 << (bits - 1), (1 << (bits - 1)) - 1)


@st.composite
def kinds_and_values(draw: st.DrawFn) -> tuple[list[str], list[float]]:
    """Draw types of fields with a value each."""
    kinds = draw(st.lists(st.sampled_from(sorted(LETTERS)), min_size=1, max_size=12))
    return kinds, [draw(values_of(kind)) for kind in kinds]


@given(kinds_and_values())
def test_values_come_back_as_they_were_published_and_lie_as_documented(case: tuple[list[str], list[float]]) -> None:
    """Every type, in every order: the same numbers, in the bytes that the struct module would make."""
    kinds, values = case
    schema = Schema(" ".join(f"f{index}:{kind}" for index, kind in enumerate(kinds)))
    page = StatePage.create(schema)
    sampler = page.sampler()

    page.publisher().publish(*values)

    packed = struct.pack("<" + "".join(LETTERS[kind] for kind in kinds), *values)
    assert tuple(values) == sampler.sample()[:-2]
    assert packed.ljust(schema.value_bytes, b"\0") == sampler.sample_raw()[0]  # type: ignore[index]  # it is published
    page.memory.close()


def test_fields_that_are_not_named_keep_their_values() -> None:
    """Publishing by name changes what is named; a new publisher begins with what is there."""
    page = StatePage.create(Schema("x:f64 mode:u8 on:bool z:f32"))
    publisher = page.publisher()

    publisher.publish(x=1.5, on=True)
    publisher.publish(mode=3, z=0.25)
    page.publisher().publish(2.5)

    sample = page.sampler().sample()
    assert (2.5, 3, True, 0.25) == sample[:-2]
    assert (2.5, True) == (sample.x, sample.is_alive)
    assert 0 < sample.published_ns


def test_nothing_published_is_no_sample() -> None:
    """None is told from a value of zeros."""
    page = StatePage.create(Schema("x:u8"), records=2)
    page.publisher(1).publish(0)

    assert None is page.sampler(0).sample()
    assert 0 == page.sampler(1).sample().x


@pytest.mark.parametrize(
    "text",
    ["", "x", "x:", ":u8", "x:u7", "x:u8 x:u8", "X:u8", "1x:u8", "class:u8", "published_ns:u64", "is_alive:bool",
     "é:u8", "x:u8\0", " ".join(f"f{index}:u64" for index in range(513)), "x:u8 " * 500],
)  # fmt: skip
def test_schema_that_is_none_is_refused(text: str) -> None:
    """Names, types and sizes are checked before any memory is made."""
    with pytest.raises(UsageError):
        Schema(text)


def test_spelling_of_a_schema_does_not_matter_its_meaning_does() -> None:
    """Blanks are no part of it; order and types are."""
    assert Schema("x:f64  y:u8 ") == Schema(" x:f64 y:u8")
    assert Schema("x:f64 y:u8").number != Schema("y:u8 x:f64").number


@pytest.mark.parametrize(
    ("values", "named"),
    [((256,), {}), ((-1,), {}), ((1, 40_000), {}), ((), {"z": 1}), ((1, 2, 3, 4), {}), (("a",), {}), ((1.5,), {}),
     ((), {"f": "x"})],
)  # fmt: skip
def test_value_that_does_not_fit_changes_nothing(values: tuple[float, ...], named: dict[str, float]) -> None:
    """Nothing is cut off, and no half of a value becomes visible."""
    page = StatePage.create(Schema("x:u8 y:i16 f:f64"))
    publisher = page.publisher()
    publisher.publish(7, -7, math.pi)

    with pytest.raises(UsageError):
        publisher.publish(*values, **named)

    assert (7, -7, math.pi) == page.sampler().sample()[:-2]
    assert 1 == publisher.count


def test_page_of_another_schema_is_a_fault_of_its_maker() -> None:
    """The number in the header tells, although the sizes are the same."""
    page = StatePage.create(Schema("x:f64"))

    with pytest.raises(PeerFault):
        StatePage.attach(page.memory, Schema("y:f64")).sampler()


def test_page_in_a_guest_s_memory_serves_both_sides() -> None:
    """A guest publishes in its own memory what the host, which maps it, samples."""
    guest = Ram.create(64 * 1024)
    host = Ram.open(guest.fileno())
    schema = Schema("load:f64")

    StatePage.in_ram(guest, 8192, schema, records=2).publisher(1).publish(0.5)

    assert 0.5 == StatePage.attach(host, schema, 8192).sampler(1).sample().load
    with pytest.raises(UsageError):
        StatePage.in_ram(guest, 0, schema)
    host.close()
    guest.close()


def test_closed_ends_and_read_only_pages_are_refused() -> None:
    """Closing ends the use, freezing ends publishing for whoever comes later."""
    page = StatePage.create(Schema("x:u8"))
    assert isinstance(page.memory, Page)
    publisher, sampler = page.publisher(), page.sampler()
    page.memory.freeze()
    lent = Page.open(page.memory.fileno())

    publisher.publish(1)
    publisher.close()
    sampler.close()

    for use in (lambda: publisher.publish(1), sampler.sample):
        with pytest.raises(ClosedError):
            use()
    with pytest.raises(UsageError):
        StatePage.attach(lent, page.schema).publisher()
    assert 1 == StatePage.attach(lent, page.schema).sampler().sample().x
    assert (False, True) == (lent.is_writable, page.memory.is_writable)


def test_sampler_follows_the_roll() -> None:
    """It tells once of each new place of its record, says who is gone, and keeps the last value meanwhile."""
    schema = Schema("x:u8")
    pages = [StatePage.create(schema), StatePage.create(schema)]
    roll_page = Page.create(StateRoll.bytes(2))
    roll = StateRoll(roll_page, 2)
    roll_page.freeze()
    moves: list[int] = []
    sampler = StateSampler(schema.codec, schema.make_sample, Page.open(roll_page.fileno()), 1, moves.append)

    before = sampler.sample()
    roll.enter(1, 1, is_owned=True)
    sampler.sample()
    pages[0].publisher().publish(10)
    sampler.move_to(pages[0].memory, schema.number, 1)
    owned = sampler.sample()
    roll.enter(1, 1, is_owned=False)
    left = sampler.sample()
    roll.enter(1, 2, is_owned=True)
    moved = [sampler.sample() for _ in range(3)][-1]
    pages[1].publisher().publish(20)
    sampler.move_to(pages[1].memory, schema.number, 2)

    assert None is before
    assert [(10, True), (10, False), (10, False)] == [(each.x, each.is_alive) for each in (owned, left, moved)]
    assert (20, True) == (sampler.sample().x, sampler.sample().is_alive)
    assert [1, 2] == moves
    assert (2, True) == sampler.standing


def test_descriptor_that_is_no_page_is_refused() -> None:
    """Whatever a guest is lent is checked before it is mapped."""
    reader, writer = os.pipe()

    for fd in (reader, -1):
        with pytest.raises((PeerFault, UsageError)):
            Page.open(fd)
    os.close(reader)
    os.close(writer)

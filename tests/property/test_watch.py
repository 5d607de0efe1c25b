"""Rates and the history, whatever is counted: the plain definitions beside what the screen uses."""

import tempfile
from array import array
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.support.counted_node import CountedNode
from vbnet.telemetry.catalogue import installed
from vbnet.telemetry.node import NodeFacts
from vbnet.telemetry.watch.history import History
from vbnet.telemetry.watch.look import Layout, Look
from vbnet.telemetry.watch.rates import Pair, Places
from vbnet.telemetry.watch.table import Column, Row, Sheet, Show, arranged, shown

PLACES = Places(installed().metrics)
FACTS = NodeFacts("lab", None, is_up=False)
WORD = st.one_of(st.integers(0, 50), st.integers(0, (1 << 64) - 1))
BLOCK = st.tuples(
    st.sampled_from(["port", "worker", "guest", "turbine"]),
    st.sampled_from(["guest=a", "guest=b", "worker=0"]),
    st.integers(1, 3),
    st.lists(WORD, max_size=8),
)
TEXT = st.text("abB12 ", max_size=4)
NODE = st.lists(BLOCK, max_size=6)


def look(blocks: list[tuple[str, str, int, list[int]]], at_ns: int) -> Look:
    """A look at a node with these blocks: kind, labels, generation, words."""
    layout = Layout(tuple((kind, labels, generation, len(words)) for kind, labels, generation, words in blocks))
    words = array("Q", [word for *_, words in blocks for word in words])
    return Look(at_ns / 1e9, at_ns, FACTS, is_paused=False, layout=layout, words=words)


@given(NODE, NODE, st.integers(-5, 5_000_000_000), st.lists(st.integers(0, 9), max_size=4))
def test_no_rate_is_ever_negative_and_each_is_its_definition(
    before: list[tuple[str, str, int, list[int]]],
    now: list[tuple[str, str, int, list[int]]],
    time_ns: int,
    places: list[int],
) -> None:
    """Other owners and lower counters began at 0; without time, or a block before, nothing is known."""
    old, new = look(before, 10), look(now, 10 + time_ns)
    pair = Pair(old, new)

    for block in new.layout.blocks:
        rate = pair.rate(block, places)
        past = old.layout.index.get(block.key)
        if past is None or time_ns <= 0:
            assert rate is None
            continue
        is_same = past.generation == block.generation
        more = 0
        for place in places:
            if place < block.words and (not is_same or place < past.words):
                word = new.words[block.start + place]
                base = old.words[past.start + place] if is_same else 0
                more += word - base if word >= base else word
        assert more / (time_ns / 1e9) == rate
        assert rate >= 0


@given(st.lists(NODE, min_size=1, max_size=8), st.integers(1, 20_000), st.integers(1, 6))
def test_history_keeps_the_newest_looks_unharmed(
    nodes: list[list[tuple[str, str, int, list[int]]]], bytes_max: int, seconds: int
) -> None:
    """What is kept is what was given, the newest without a gap, within the bounds or the newest alone."""
    history = History(PLACES, seconds=seconds, bytes_max=bytes_max)
    given_ = [look(node, number * 1_000_000_000) for number, node in enumerate(nodes)]

    for each in given_:
        history.append(each)

        assert len(history) == 1 or history.bytes <= bytes_max
        assert len(history) <= seconds + 1
    assert len(given_) == history.numbers.stop
    assert given_[history.numbers.start :] == [history.look(number) for number in history.numbers]
    assert history.bytes == sum(kept.bytes for kept in history._kept)


@given(
    st.lists(st.tuples(TEXT, st.one_of(st.none(), st.floats(0, 1e20), TEXT))),
    st.booleans(),
    TEXT,
)
def test_order_and_filter_lose_and_invent_nothing(
    pairs: list[tuple[str, float | str | None]], is_reversed: bool, words: str
) -> None:
    """Every row that has the words is there once; unknown ones are last."""
    columns = (Column("name", "NAME", Show.text), Column("value", "VALUE"))
    rows = tuple(Row((name, str(number)), (name, value)) for number, (name, value) in enumerate(pairs))
    sheet = Sheet(columns, rows, "value")

    everything = arranged(sheet, is_reversed=is_reversed)
    found = arranged(sheet, words=words, is_reversed=is_reversed)

    assert sorted(row.key for row in rows) == sorted(row.key for row in everything)
    unknown = [row.cells[1] is None for row in everything]
    assert sorted(unknown) == unknown
    assert [row for row in everything if row in found] == found


@given(st.floats(0, float((1 << 64) - 1)), st.sampled_from([Show.rate, Show.bytes]))
def test_every_rate_has_room_in_its_column(value: float, show: Show) -> None:
    """Six characters are enough for whatever 64 bits can count."""
    assert len(shown(value, show)) <= 6


@given(st.binary(max_size=200))
def test_a_file_of_anything_in_the_folder_is_no_more_than_a_problem(data: bytes) -> None:
    """A counters file and an error log of random bytes are left out."""
    with tempfile.TemporaryDirectory() as folder:
        node = CountedNode(Path(folder) / "run")
        (node.run_dir.counters / "other.counters").write_bytes(data)
        node.run_dir.errors_file.write_bytes(data)

        assert 2 == len(node.watcher.look().problems)

"""The guest's allocator: pieces never overlap, never leave the memory, and all of it comes back."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vbnet.errors import ResourceError
from vbnet.guestnode.memory import Block, Memory

START, END = 4096, 4096 + 8192


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(1, 3000), st.sampled_from([1, 8, 64, 4096])),
            st.tuples(st.just("free"), st.integers(0, 50), st.just(0)),
        ),
        max_size=60,
    )
)
def test_pieces_never_overlap_and_all_comes_back(steps: list[tuple[str, int, int]]) -> None:
    """Against a set of bytes: what is given out is free, aligned and inside; what is freed can be given again."""
    memory = Memory(START, END)
    held: list[Block] = []
    used: set[int] = set()

    for what, number, alignment in steps:
        if what == "free":
            if held:
                block = held.pop(number % len(held))
                memory.free(block)
                used -= set(range(block.offset, block.offset + block.length))
            continue
        try:
            block = memory.allocate(number, alignment)
        except ResourceError:
            starts = range(-(-START // alignment) * alignment, END - number + 1, alignment)
            assert all(used & set(range(start, start + number)) for start in starts)
            continue
        span = set(range(block.offset, block.offset + block.length))
        assert (number, 0, False) == (block.length, block.offset % alignment, bool(span & used))
        assert START <= block.offset <= END - number
        held.append(block)
        used |= span

    for block in held:
        memory.free(block)
    assert Block(START, END - START) == memory.allocate(END - START, 1)

"""Sync points: each ordering between two sides carries the same tag at both of its ends.

A tag is ``[XX-n what becomes visible]`` in a Rust comment. The store and the load that pair carry the same one, and
the table in the head of rust/core/src/lib.rs lists them all, there between ticks: ``| `XX-n what becomes visible` |``.
"""

import collections
import re
from pathlib import Path

import pytest

from tests.meta import tree

TAG = re.compile(r"\[(?P<id>[A-Z]{2,4}-\d+[a-z]?)(?: (?P<what>[^\]]+))?\]")
TABLE_ROW = re.compile(r"^//! \| `(?P<id>[A-Z]{2,4}-\d+[a-z]?) (?P<what>[^`]+)`", re.MULTILINE)
LIBRARY = tree.ROOT / "rust" / "core" / "src" / "lib.rs"
# The bare limits under bench/ pair within one function and meet no peer; they are measured, not relied on.
SOURCES = [path for path in tree.under("rust/core/src", suffix=".rs") if "bench" not in path.parts]
ORDERED = re.compile(r"\b(?:Ordering::)?(?:Acquire|Release|AcqRel|SeqCst)\b")
LINES_ABOVE = 8


def tags(path: Path) -> list[tuple[str, str]]:
    """Return the tags in the comments of a file as (id, what becomes visible)."""
    comments = " \n".join(line.partition("//")[2] for line in path.read_text().splitlines())
    return [(match["id"], match["what"] or "") for match in TAG.finditer(comments)]


def untagged(path: Path) -> list[str]:
    """Return the lines that order memory without a tag on them or shortly above; tests and imports are left out."""
    lines = path.read_text().partition("#[cfg(test)]")[0].splitlines()
    return [
        f"{tree.name(path)}:{number + 1}: {line.strip()}"
        for number, line in enumerate(lines)
        if ORDERED.search(line.partition("//")[0])
        and not line.lstrip().startswith(("use ", "pub use "))
        and "compiler_fence(" not in line  # holds the compiler back; orders nothing between two threads
        and not TAG.search("\n".join(lines[max(0, number - LINES_ABOVE) : number + 1]))
    ]


def test_each_sync_point_has_both_of_its_ends() -> None:
    """A tag that occurs once in the code has lost its partner, and with it the reason for the ordering."""
    ends = collections.Counter(tag for path in SOURCES if path != LIBRARY for tag, _ in tags(path))

    assert [] == sorted(tag for tag, count in ends.items() if count < 2)


def test_each_sync_point_has_one_name() -> None:
    """The same tag says the same thing wherever it stands."""
    names: dict[str, set[str]] = collections.defaultdict(set)
    for path in SOURCES:
        for tag, what in tags(path):
            names[tag] |= {what} - {""}

    assert {} == {tag: sorted(found) for tag, found in names.items() if len(found) > 1}


def test_table_of_sync_points_lists_each_by_name() -> None:
    """The head of lib.rs has every sync point that the code uses, and no other."""
    in_code = {(tag, what) for path in SOURCES if path != LIBRARY for tag, what in tags(path) if what}

    in_table = {(row["id"], row["what"]) for row in TABLE_ROW.finditer(LIBRARY.read_text())}

    assert in_code == in_table


@pytest.mark.parametrize("path", SOURCES, ids=tree.name)
def test_each_ordered_access_names_its_sync_point(path: Path) -> None:
    """An acquire, release or fence says which sync point it is an end of; relaxed accesses need none."""
    assert [] == untagged(path)

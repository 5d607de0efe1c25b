"""Decision records keep their form: one page each, numbered without gaps, listed, and never silently rewritten."""

import re
from pathlib import Path

import pytest

from tests.meta import markdown, tree

FOLDER = tree.ROOT / "docs" / "decisions"
RECORDS = [path for path in tree.under("docs/decisions", suffix=".md") if path.name != "README.md"]
PARTS = ["Status", "Context", "Decision", "Consequences", "Alternatives rejected"]


@pytest.mark.parametrize("path", RECORDS, ids=tree.name)
def test_record_has_the_five_parts_in_order(path: Path) -> None:
    """Status, context, decision, consequences, alternatives: a reader finds each in the same place."""
    headings = [match["text"] for line in markdown.prose(path) if (match := re.match(r"^## (?P<text>.*)$", line))]

    assert headings == PARTS


@pytest.mark.parametrize("path", RECORDS, ids=tree.name)
def test_record_fits_one_page(path: Path) -> None:
    """A decision that needs more than 80 lines is two decisions or a design document."""
    assert len(path.read_text().splitlines()) <= 80


def test_records_are_numbered_without_gaps() -> None:
    """Numbers run from 0001; a superseded record stays, so a gap means a lost one."""
    numbers = [int(path.name[:4]) for path in RECORDS]

    assert list(range(1, len(RECORDS) + 1)) == numbers


def test_every_record_is_listed_with_its_title() -> None:
    """The list of decisions names each record by the title that the record itself has."""
    listed = {(link.target, link.label) for link in markdown.links(FOLDER / "README.md")}

    expected = {(path.name, path.read_text().splitlines()[0].removeprefix("# ")) for path in RECORDS}

    assert expected <= listed

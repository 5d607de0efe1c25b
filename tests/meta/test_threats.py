"""The list of known attacks is whole, and each test that it names is there and is a test."""

import re
from typing import Final, NamedTuple

import pytest

from tests.meta import markdown, tree

PAGE: Final = tree.ROOT / "docs" / "threats.md"
ROW: Final = re.compile(
    r"^\| (?P<number>\d+) \| (?P<source>[^|]+) \| (?P<sent>[^|]+) \| (?P<verdict>[^|]+) \| (?P<tests>.+) \|$"
)
FAMILY: Final = re.compile(r"^\| [a-z]+ \| (?P<sent>[^|]+) \| (?P<verdict>[^|]+) \| (?P<tests>[^|]+) \|$")
VERDICTS: Final = {"refused", "survived"}
NOT_HERE: Final = "not here"


class Threat(NamedTuple):
    """One row: its number, what must become of the input, and its tests, or why there are none."""

    number: int
    verdict: str
    tests: str


def threats() -> list[Threat]:
    """Return the rows of every table of the page, in order."""
    rows = map(ROW.match, PAGE.read_text().splitlines())
    return [Threat(int(row["number"]), row["verdict"], row["tests"]) for row in rows if row]


def families() -> list[tuple[str, Threat]]:
    """Return what each row of the table of families sends, and the row as a threat without a number."""
    _before, _heading, table = PAGE.read_text().partition("\n## Families ")
    rows = map(FAMILY.match, table.splitlines())
    found = [(row["sent"], Threat(0, row["verdict"], row["tests"])) for row in rows if row]
    return [row for row in found if row[1].verdict != "verdict"]


def is_test(text: str, name: str) -> bool:
    """Say whether a source defines a test of this name: in Python by its prefix, in Rust by an attribute before it.

    Rust's property tests stand in a macro that gives them theirs; attributes and comments may lie between.
    """
    python = re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE) and name.startswith("test_")
    rust = re.search(rf"#\[test\]\n(?:\s*(?://|#\[).*\n)*\s*fn {name}\(", text)
    return bool(python or rust)


def test_list_of_threats_leaves_no_number_out() -> None:
    """Numbers are those that tests name in their words; one that is missing was lost, not solved."""
    assert list(range(1, 71)) == [threat.number for threat in threats()]


@pytest.mark.parametrize("threat", threats(), ids=lambda threat: str(threat.number))
def test_each_threat_has_a_verdict_and_tests_or_a_reason(threat: Threat) -> None:
    """A verdict is shown by a test; what does not exist here has a sentence that says so."""
    check(threat)


@pytest.mark.parametrize(("sent", "threat"), families(), ids=lambda part: part if isinstance(part, str) else "")
def test_each_family_has_a_verdict_and_one_test_or_a_reason(sent: str, threat: Threat) -> None:
    """The second table names one test a row."""
    assert sent
    assert 1 == threat.tests.count("](") + (threat.verdict == NOT_HERE)
    check(threat)


def check(threat: Threat) -> None:
    """Hold a row to what its verdict asks for."""
    links = [link for link in markdown.links(PAGE) if f"[{link.label}]({link.target})" in threat.tests]

    if threat.verdict == NOT_HERE:
        assert threat.tests.endswith(".")
        return
    assert set(threat.verdict.split(", ")) <= VERDICTS
    assert links
    for link in links:
        source = (PAGE.parent / link.target).resolve()
        assert is_test(tree.text(source), link.label.strip("`")), f"{link.target}: {link.label}"

"""docs/cli.md is what the program prints."""

from pathlib import Path

from vbnet.cli.failure import EXIT_CODES
from vbnet.cli.reference import render
from vbnet.cli.registry import ENTRIES

PAGE = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_page_is_fresh() -> None:
    """Regenerate it with: python -m vbnet.cli.reference > docs/cli.md."""
    assert render() == PAGE


def test_every_verb_is_on_the_page_with_an_example() -> None:
    """A verb without an example is a riddle."""
    without = [name for name in ENTRIES if f"vbnet {name}" not in PAGE.partition("## Labs")[2].replace("### ", "")]

    assert [] == without


def test_every_exit_code_is_on_the_page() -> None:
    """Scripts depend on them."""
    assert [] == [code for code, meaning in EXIT_CODES.items() if f"{code:>3}  {meaning}" not in PAGE]

"""The Makefile's verbs explain themselves and are the ones that README, CONTRIBUTING and the landing check use."""

import re
import subprocess

import pytest

from tests.meta import tree

VERBS = {
    "setup",
    "build",
    "test",
    "test-all",
    "lint",
    "types",
    "loom",
    "fuzz",
    "bench",
    "docs",
    "dashboards",
    "demo",
    "ci",
    "clean",
}
MAKEFILE = (tree.ROOT / "Makefile").read_text()


def targets() -> dict[str, str]:
    """Return each phony target with its help text, "" when it has none."""
    [phony] = re.findall(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE)
    texts = dict(re.findall(r"^([a-z-]+):.*?## (.+)$", MAKEFILE, re.MULTILINE))
    return {name: texts.get(name, "") for name in phony.split()}


def test_every_verb_has_a_help_text() -> None:
    """`make` lists what can be done; a verb without a text would not appear."""
    assert [] == [name for name, text in targets().items() if not text]


def test_the_verbs_that_contributors_know_exist() -> None:
    """The set of verbs is a promise: each of them works in a fresh clone."""
    assert set() == VERBS - set(targets())


def test_plain_make_lists_the_verbs() -> None:
    """Typing `make` alone changes nothing and shows every verb."""
    listing = subprocess.run(
        ["make", "--no-print-directory"], cwd=tree.ROOT, capture_output=True, text=True, check=True
    )

    shown = {line.split()[0] for line in listing.stdout.splitlines()}

    assert set(targets()) == shown


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_verbs_named_in_documents_exist(document: str) -> None:
    """A `make verb` that a reader is told to type is a verb of the Makefile."""
    text = (tree.ROOT / document).read_text()

    named = set(re.findall(r"(?:`|\$ |\bstage \w+ \d+ )make ([a-z-]+)", text))

    assert set() == named - set(targets())
    assert named

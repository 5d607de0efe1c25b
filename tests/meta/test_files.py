"""What holds for every file: a head that says what it is, no trace of one machine, nothing left for later."""

import ast
import re
from pathlib import Path

import pytest

from tests.meta import tree

PYTHON = [path for path in tree.files() if path.suffix == ".py"]
RUST = [path for path in tree.files() if path.suffix == ".rs"]
SHELL = [path for path in tree.files() if path.suffix == ".sh" or path == tree.ROOT / ".ci" / "run"]

# Written so that this file does not contain what it looks for.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:wor[k]|roo[t]|User[s]|hom[e]/\w+|tmp/w[t])/")
REGISTRY_HOSTS = re.compile(r"(?:pyp[i]\.org|pythonhoste[d]\.org|(?:static|index)\.crate[s]\.io|npmj[s]\.org)")
LEFT_FOR_LATER = re.compile(r"\b(?:TOD[O]|FIXM[E]|XX[X]|HAC[K])\b")


def lines_with(pattern: re.Pattern[str], paths: tuple[Path, ...]) -> list[str]:
    """Return ``file:line: text`` of each line that the pattern is found in; lock files are other people's words."""
    return [
        f"{tree.name(path)}:{number}: {line.strip()}"
        for path in paths
        if path.suffix != ".lock"
        for number, line in enumerate(tree.text(path).splitlines(), start=1)
        if pattern.search(line)
    ]


@pytest.mark.parametrize("path", PYTHON, ids=tree.name)
def test_python_module_says_what_it_is(path: Path) -> None:
    """A module opens with a docstring whose first line is a sentence about what it is."""
    head = ast.get_docstring(ast.parse(path.read_text())) or ""

    first = head.splitlines()[0] if head else ""

    assert len(first) >= 20, f"first line: {first!r}"
    assert first.endswith((".", "?")), f"first line: {first!r}"


@pytest.mark.parametrize("path", RUST, ids=tree.name)
def test_rust_module_says_what_it_is(path: Path) -> None:
    """A Rust file opens with an inner doc comment that is longer than a title."""
    lines = path.read_text().splitlines()
    body = next((number for number, line in enumerate(lines) if line.startswith("use ")), len(lines))

    words = " ".join(line.removeprefix("//!") for line in lines[:body] if line.startswith("//!")).split()

    assert len(words) >= 5, f"head: {words}"


@pytest.mark.parametrize("path", SHELL, ids=tree.name)
def test_shell_script_says_what_it_is_and_stops_at_errors(path: Path) -> None:
    """A script names its interpreter, then says what it does, and does not run on after a failure."""
    lines = path.read_text().splitlines()

    assert lines[0].startswith("#!")
    assert lines[1].startswith("# ")
    assert re.search(r"^set -e", path.read_text(), re.MULTILINE)


def test_no_path_of_one_machine_in_any_file() -> None:
    """What works only where it was written does not work."""
    assert [] == lines_with(MACHINE_PATHS, tree.files())


def test_no_package_registry_is_named() -> None:
    """Where packages come from is the business of whoever installs them."""
    assert [] == lines_with(REGISTRY_HOSTS, tree.files())


def test_nothing_is_left_for_later() -> None:
    """What is not done is no comment in the source."""
    assert [] == lines_with(LEFT_FOR_LATER, tree.files())


def test_change_notes_have_a_known_kind() -> None:
    """A change note's name says what it is about and of which kind it is, as towncrier.toml lists them."""
    notes = [path.name for path in tree.files() if path.parent.name == "changes" and path.name != "README.md"]
    kinds = re.findall(r'directory = "(\w+)"', (tree.ROOT / "towncrier.toml").read_text())

    misnamed = [name for name in notes if not re.fullmatch(rf"\+[a-z0-9-]+\.(?:{'|'.join(kinds)})\.md", name)]

    assert [] == misnamed

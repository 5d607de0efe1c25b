"""Tests obey their own rules: each says what it shows, none waits by sleeping, none stands idle or fakes a call."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.meta import tree

PYTHON = [path for path in tree.under("tests", "examples", suffix=".py") if "/.venv/" not in str(path)]
TEST_FILES = [path for path in PYTHON if path.name.startswith("test_")]
RUST = [path for path in tree.under("rust", suffix=".rs") if "tests" in path.parts]

# file → why it may sleep. A sleep that stands for "by now it will have happened" has no place here.
MAY_SLEEP: dict[str, str] = {
    "examples/doorbell/doorbell.py": "a guest is told of devices, not of another's signals, so it looks again",
    "examples/priorities/flood.py": "the work and the pace of the flood are times; and as in the doorbell",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    """Yield the functions and methods of a file that are not nested in another function."""
    for node in ast.parse(path.read_text()).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        yield from (member for member in members if isinstance(member, Function))


def is_fixture(function: Function) -> bool:
    """Say whether a decorator makes the function something that pytest or hypothesis calls by itself."""
    called = ("fixture", "hookimpl", "rule", "initialize", "invariant", "precondition", "composite", "property")
    return any(word in ast.unparse(decorator) for decorator in function.decorator_list for word in called)


def asleep(path: Path) -> list[str]:
    """Return ``file:line`` of each call to a function named sleep; ``sleep(0)`` is a turn of the event loop."""
    return [
        f"{tree.name(path)}:{number}"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(r"\bsleep\((?!0\))", line.partition("#")[0].partition("//")[0])
    ]


@pytest.mark.parametrize("path", TEST_FILES, ids=tree.name)
def test_every_test_says_in_one_sentence_what_it_shows(path: Path) -> None:
    """A test's docstring is what a reader of a failure sees first."""
    silent = [item.name for item in functions(path) if item.name.startswith("test") and not ast.get_docstring(item)]

    assert [] == silent


@pytest.mark.parametrize("path", TEST_FILES, ids=tree.name)
def test_every_function_is_a_test_a_fixture_or_called(path: Path) -> None:
    """A function that nobody calls is a test whose name was mistyped, or dead code.

    A fake's public methods are called by the code that is given the fake.
    """
    names = re.findall(r"\b\w+\b", path.read_text())
    fakes = {
        member
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name.startswith("Fake")
        for member in (item.name for item in node.body if isinstance(item, Function))
        if not member.startswith("_")
    }

    idle = [
        item.name
        for item in functions(path)
        if item.name not in fakes
        and not item.name.startswith(("test_", "__", "pytest_"))
        and not is_fixture(item)
        and names.count(item.name) < 2
    ]

    assert [] == idle


@pytest.mark.parametrize("path", PYTHON + RUST, ids=tree.name)
def test_nothing_waits_by_sleeping(path: Path) -> None:
    """A sleep makes a test slow on one machine and wrong on another; wait for the event, with a deadline."""
    allowed = tree.name(path) in MAY_SLEEP

    assert [] == ([] if allowed else asleep(path))


@pytest.mark.parametrize("path", PYTHON, ids=tree.name)
def test_no_test_replaces_calls_by_mocks(path: Path) -> None:
    """A mock repeats the author's belief about the other side; a fake has behaviour and can be wrong visibly."""
    imported = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in [*node.names, *([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else [])]
    }

    assert set() == imported & {"mock", "unittest.mock", "Mock", "MagicMock", "pytest_mock"}


def test_each_permission_to_sleep_is_used() -> None:
    """A file that no longer sleeps, or is gone, loses its permission."""
    unused = [name for name in MAY_SLEEP if not (tree.ROOT / name).is_file() or not asleep(tree.ROOT / name)]

    assert [] == unused


def test_every_file_of_rust_tests_is_run() -> None:
    """None is found by itself: each is a program of its own in Cargo.toml, or a part of the common one."""
    folder = tree.ROOT / "rust/core/tests"
    manifest = (folder.parent / "Cargo.toml").read_text()
    programs = set(re.findall(r'^\[\[test\]\]\nname = "(\w+)"', manifest, re.MULTILINE))
    parts = set(re.findall(r"^mod (\w+);", (folder / "behaviour.rs").read_text(), re.MULTILINE))

    files = {path.stem for path in folder.glob("*.rs")}

    assert files == (programs | parts) & files
    assert set() == programs & parts
    assert set() == programs - files

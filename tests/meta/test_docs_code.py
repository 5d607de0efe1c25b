"""Code in README and docs runs: an example that a reader copies works, or says that it is not meant to.

``python`` blocks run unless marked otherwise; ``console`` blocks (lines ``$ command``, then output) say which they are:

* ``<!-- run -->``: runs in the repository's root; the output shown, if any, must come (``...`` stands for anything).
* ``<!-- continues -->``: a python block that goes on where the one before it in the document ended.
* ``<!-- not run: reason -->``: is only shown.

Blocks of other languages (text, yaml, rust ...) are only shown. Each document gets a run directory of its own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.meta import markdown, tree

RUNNABLE = ("python", "console")
NOT_RUN = re.compile(r"^not run: \S.{4,}")
BLOCKS = [
    block
    for path in tree.documents()
    if path.name == "README.md" or path.is_relative_to(tree.ROOT / "docs")
    for block in markdown.blocks(path)
]
LIMIT_SECONDS = 50


def place(block: markdown.Block) -> str:
    """Name a block in a test's id."""
    return f"{tree.name(block.path)}:{block.line}"


def is_run(block: markdown.Block) -> bool:
    """Say whether the block is meant to run."""
    return not NOT_RUN.match(block.mark) and (block.language == "python" or block.mark == "run")


def python_programs() -> list[tuple[str, str]]:
    """Return the python programs of all documents as (place, code), continued blocks joined to their beginnings."""
    programs: list[tuple[str, str]] = []
    for block in BLOCKS:
        if block.language != "python" or not is_run(block):
            continue
        if block.mark == "continues":
            where, before = programs.pop()
            programs.append((where, before + block.code))
        else:
            programs.append((place(block), block.code))
    return programs


def console_steps(code: str) -> list[tuple[str, str]]:
    """Split a console block into (command, expected output); a command goes on after a backslash or ``> ``."""
    steps: list[tuple[str, str]] = []
    for line in code.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], ""))
        elif steps and line.startswith("> ") and not steps[-1][1]:
            steps[-1] = (f"{steps[-1][0]}\n{line[2:]}", "")
        elif steps:
            steps[-1] = (steps[-1][0], f"{steps[-1][1]}{line}\n")
    return steps


def matches(expected: str, actual: str) -> bool:
    """Compare output line by line, ``...`` in the expected text standing for anything."""
    pattern = ".*".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, actual.strip(), re.DOTALL) is not None


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of a document with this environment's programs first on the path, for at most 50 s."""
    # A `make` that these tests were started from tells its children so, and they would print that.
    inherited = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=folder,
        env=inherited | {"PATH": path, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in RUNNABLE], ids=place)
def test_each_block_says_whether_it_runs(block: markdown.Block) -> None:
    """A console block is marked as run or not run; a mark that nobody understands is a typing error."""
    understood = {"", "run", "continues"} if block.language == "python" else {"run"}

    assert block.mark in understood or NOT_RUN.match(block.mark)


@pytest.mark.parametrize(("where", "code"), python_programs(), ids=[where for where, _ in python_programs()])
def test_python_block_runs(where: str, code: str, tmp_path: Path, run_dir: Path, no_leaked_processes: None) -> None:
    """A python example of the documents ends without an exception and leaves no process behind."""
    program = tmp_path / "example.py"
    program.write_text(code)

    outcome = run([sys.executable, str(program)], tmp_path)

    assert 0 == outcome.returncode, f"{where} with {run_dir}\n{outcome.stdout}{outcome.stderr}"
    assert no_leaked_processes is None


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.language == "console" and is_run(block)],
    ids=place,
)
@pytest.mark.usefixtures("run_dir", "no_leaked_processes")
def test_console_block_runs_and_prints_what_it_shows(block: markdown.Block) -> None:
    """Each command of a console example succeeds and prints what the document says."""
    for command, expected in console_steps(block.code):
        outcome = run(["bash", "-euo", "pipefail", "-c", command], tree.ROOT)

        assert 0 == outcome.returncode, f"$ {command}\n{outcome.stdout}{outcome.stderr}"
        assert not expected or matches(expected, outcome.stdout), f"$ {command}\n{outcome.stdout}"


def test_console_block_is_split_into_commands_and_outputs() -> None:
    """A command may go on over several lines; what follows it is its output."""
    steps = console_steps("$ one \\\n> two\nout\n$ three\n")

    assert [("one \\\ntwo", "out\n"), ("three", "")] == steps


def test_dots_in_expected_output_stand_for_anything() -> None:
    """Ellipses match any text, also none and also several lines; everything else is literal."""
    assert matches("a ... d", "a b\nc d\n")
    assert not matches("a.c", "abc")

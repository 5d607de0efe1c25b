"""The files of the repository, for tests that read it: what is tracked, by kind, and as text.

A file counts when git would commit it (tracked, or new and not ignored), so build products never disturb a test.
"""

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def files() -> tuple[Path, ...]:
    """Return every file that belongs to the repository, sorted, as absolute paths."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = [name for name in listing.stdout.decode().split("\0") if name]
    return tuple(sorted(path for name in set(names) if (path := ROOT / name).is_file()))


def under(*folders: str, suffix: str) -> list[Path]:
    """Return the repository's files below any of ``folders`` whose name ends in ``suffix``."""
    roots = [ROOT / folder for folder in folders]
    return [path for path in files() if path.name.endswith(suffix) and any(path.is_relative_to(root) for root in roots)]


def name(path: Path) -> str:
    """Return the path as a reader of the repository writes it."""
    return path.relative_to(ROOT).as_posix()


def text(path: Path) -> str:
    """Return the content of a text file; a binary one gives the empty string."""
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode(errors="replace")


def documents() -> list[Path]:
    """Return every Markdown document, change notes aside: they are pieces of one, without links or code."""
    return [path for path in files() if path.suffix == ".md" and path.parent.name != "changes"]

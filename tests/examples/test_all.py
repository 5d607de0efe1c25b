"""Every example is complete: what it shows, something to run, a test that runs it, and a place in the list."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(entry for entry in (ROOT / "examples").iterdir() if entry.is_dir() and (entry / "README.md").exists())


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_an_example_has_a_test_and_is_listed(folder: Path) -> None:
    """An example that nobody runs stops working."""
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")

    assert (ROOT / "tests" / "examples" / f"test_{folder.name}.py").is_file()
    assert f"({folder.name}/README.md)" in listed

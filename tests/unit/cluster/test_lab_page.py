"""docs/lab.md says everything about the lab file, and its examples are right."""

import re
from pathlib import Path
from typing import Any

import pytest

from vbnet.cluster.topology import json_schema, parse_topology

PAGE = (Path(__file__).parents[3] / "docs" / "lab.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def keys(schema: dict[str, Any]) -> set[str]:
    """Return every key that some part of the lab file may have."""
    parts = [schema, *schema["$defs"].values()]
    return {key for part in parts for key in part.get("properties", {})}


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: str(re.search(r"name: (\S+)", text)))
def test_every_example_is_a_lawful_lab(text: str) -> None:
    """A reader who copies it gets a lab, not a message."""
    parse_topology(text, "lab.md", {})


def test_every_key_is_explained() -> None:
    """A key that the schema has and the page has not is a secret."""
    unexplained = {key for key in keys(json_schema()) if f"`{key}`" not in PAGE and f".{key}`" not in PAGE}

    assert set() == unexplained

"""Links in documents lead somewhere, every document can be reached, and what a link says about code is so."""

import re
from pathlib import Path

import pytest

from tests.meta import markdown, tree

DOCUMENTS = tree.documents()
SOURCES = {".py", ".rs", ".pyi", ".sh", ".toml"}
EXTERNAL = re.compile(r"^(https?|mailto):")


@pytest.mark.parametrize("path", DOCUMENTS, ids=tree.name)
def test_internal_links_resolve(path: Path) -> None:
    """A link within the repository names a file that git has and, after #, a heading that the file has."""
    known = set(tree.files()) | {parent for file in tree.files() for parent in file.parents}
    broken: list[str] = []

    for link in markdown.links(path):
        if EXTERNAL.match(link.target):
            continue
        file_part, _, anchor = link.target.partition("#")
        target = (path.parent / file_part).resolve() if file_part else path
        lost_anchor = anchor and target.suffix == ".md" and target in known and anchor not in markdown.anchors(target)
        if target not in known or lost_anchor:
            broken.append(f"{tree.name(path)}:{link.line}: {link.target}")

    assert [] == broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=tree.name)
def test_name_in_a_link_to_source_occurs_in_that_source(path: Path) -> None:
    """``[`Switch::forward`](…/switch.rs)`` promises that the file says forward: a rename breaks the tour visibly."""
    lost: list[str] = []

    for link in markdown.links(path):
        target = (path.parent / link.target.partition("#")[0]).resolve()
        label = link.label.strip()
        is_name = (
            label.startswith("`") and label.endswith("`") and "/" not in label and "." not in label.strip("`")[-4:]
        )
        if target.suffix in SOURCES and target.is_file() and is_name:
            words = re.findall(r"[A-Za-z_]\w+", label)
            lost += [f"{tree.name(path)}:{link.line}: {word}" for word in words if word not in tree.text(target)]

    assert [] == lost


def test_index_of_docs_reaches_every_document() -> None:
    """Following links from docs/index.md, and from the README, a reader comes to each document under docs/."""
    reached = {tree.ROOT / "README.md", tree.ROOT / "docs" / "index.md"}
    to_visit = list(reached)
    while to_visit:
        path = to_visit.pop()
        for link in markdown.links(path):
            target = (path.parent / link.target.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.is_file() and target not in reached:
                reached.add(target)
                to_visit.append(target)

    unreached = [tree.name(path) for path in tree.under("docs", suffix=".md") if path not in reached]

    assert [] == unreached


def test_link_reader_ignores_code_and_finds_images(tmp_path: Path) -> None:
    """Links in fenced blocks or between ticks are text; an image, and a label with ticks, are links."""
    document = tmp_path / "a.md"
    document.write_text("`[no](x)` and [`yes`](y.md)\n\n```text\n[no](z)\n```\n\n![picture](p.svg)\n")

    found = [(link.line, link.label, link.target) for link in markdown.links(document)]

    assert [(1, "`yes`", "y.md"), (7, "picture", "p.svg")] == found


def test_anchors_follow_the_rule_of_the_page(tmp_path: Path) -> None:
    """Headings become lower-case words joined by hyphens; a repeated one gets a number."""
    document = tmp_path / "a.md"
    document.write_text("# One `Two`: three\n\n## Again\n\n## Again\n")

    assert {"one-two-three", "again", "again-1"} == markdown.anchors(document)

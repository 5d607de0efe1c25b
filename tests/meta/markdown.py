"""Just enough Markdown to hold documents to their word: headings, anchors, links, fenced blocks and their marks.

A mark is an HTML comment on the last non-empty line before a block or table: ``<!-- run -->``. It says how a test
treats what follows and does not show on the page. Source of the anchor rule: GitHub's heading slugs.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> {0,3})(?P<ticks>`{3,}|~{3,})(?P<language>[\w+-]*)")
COMMENT = re.compile(r"^\s*<!--\s*(?P<text>.*?)\s*-->\s*$")
LINK = re.compile(
    r"(?<!\\)\[(?P<label>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+(?:\([^()\s]*\))?)(?:\s+\"[^\"]*\")?\)"
)
HEADING = re.compile(r"^#{1,6}\s+(?P<text>.*?)\s*#*\s*$")


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block: its language, its mark ("" if none), its lines, and where the first of them stands."""

    path: Path
    line: int
    language: str
    mark: str
    code: str


@dataclasses.dataclass(frozen=True)
class Link:
    """One inline link or image, and the line it stands on."""

    path: Path
    line: int
    label: str
    target: str


def mark_before(lines: list[str], index: int) -> str:
    """Return the text of the comment on the last non-empty line before ``index``, or the empty string."""
    for line in reversed(lines[:index]):
        if line.strip():
            comment = COMMENT.match(line)
            return comment["text"] if comment else ""
    return ""


def blocks(path: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a document in order. A fence that is never closed runs to the end, as on the page."""
    lines = path.read_text().splitlines()
    index = 0
    while index < len(lines):
        fence = FENCE.match(lines[index])
        index += 1
        if fence is None:
            continue
        start = index
        while index < len(lines) and not lines[index].strip().startswith(fence["ticks"]):
            index += 1
        code = "\n".join(line.removeprefix(fence["indent"]) for line in lines[start:index])
        yield Block(path, start + 1, fence["language"], mark_before(lines, start - 1), code + "\n")
        index += 1


def prose(path: Path) -> list[str]:
    """Return the document's lines with fenced blocks blanked out, so that line numbers still hold."""
    lines = path.read_text().splitlines()
    kept = list(lines)
    closing: str | None = None
    for index, line in enumerate(lines):
        if closing is None:
            fence = FENCE.match(line)
            if fence is not None:
                closing = fence["ticks"]
                kept[index] = ""
        else:
            kept[index] = ""
            if line.strip().startswith(closing):
                closing = None
    return kept


def links(path: Path) -> Iterator[Link]:
    """Yield the inline links and images of a document; what stands in code, fenced or not, is no link."""
    for number, line in enumerate(prose(path), start=1):
        spans = [match.span() for match in re.finditer(r"`[^`]*`", line)]
        for match in LINK.finditer(line):
            if not any(begin < match.start() and match.end() < end for begin, end in spans):
                yield Link(path, number, match["label"], match["target"])


def anchors(path: Path) -> set[str]:
    """Return the anchors that the document's headings make, and those set by hand with ``<a id=...>``."""
    found: dict[str, int] = {}
    result: set[str] = set()
    for line in prose(path):
        result.update(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", line))
        heading = HEADING.match(line)
        if heading is None:
            continue
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading["text"]).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        seen = found.get(slug, 0)
        found[slug] = seen + 1
        result.add(slug if seen == 0 else f"{slug}-{seen}")
    return result

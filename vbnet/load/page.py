"""Pieces of the reports: tables in Markdown and HTML, lines over time, and a page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

__all__ = ["markdown_table", "page", "plot", "table", "yes"]

_WIDTH, _HEIGHT, _MARGIN = 760, 180, 8
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:820px;margin:2rem auto;padding:0 1rem;color:#1c2024}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;text-align:left;"
    "border-bottom:1px solid #d9dde1}td+td{text-align:right}.good{color:#18794e}.bad{color:#c62a2f}"
    "svg{background:#f8f9fa;border:1px solid #d9dde1;width:100%}figcaption{color:#60646c}figure{margin:1rem 0}"
)


def page(name: str, *, is_good: bool, headline: str, parts: Sequence[str], record: msgspec.Struct) -> str:
    """Return one HTML page, with a record as JSON inside, so that a program can read it again.

    Args:
        name: the heading.
        is_good: the headline is good news.
        headline: one sentence, not escaped.
        parts: HTML.
        record: what the page is about.
    """
    inside = msgspec.json.encode(record).decode().replace("</", "<\\/")
    head = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(name)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(name)}</h1><p class={'good' if is_good else 'bad'}><b>{html.escape(headline)}</b></p>",
    ]
    end = f'<script type="application/json" id="result">{inside}</script>'
    return "\n".join([*head, *parts, end]) + "</html>\n"


def yes(holds: bool | None) -> str:
    """Return whether something holds; None: nobody can say."""
    return "too little to say" if holds is None else "yes" if holds else "no"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown; a verdict `no` is bold."""
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return lines + [f"| {' | '.join('**no**' if cell == 'no' else cell for cell in row)} |" for row in rows]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in HTML."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def plot(
    title: str,
    times: Sequence[float],
    values: Sequence[float],
    write: Callable[[float], str],
    marks: Sequence[tuple[float, float, str]] = (),
) -> str:
    """Draw one line over time, from 0 to the largest value.

    Args:
        title: what it is.
        times: one at least.
        values: as many.
        write: a value in words.
        marks: spans that are shaded: begin, end, what.
    """
    top = max(values) or 1.0
    first, span = min(times), max(times) - min(times) or 1.0

    def across(at: float) -> float:
        return _MARGIN + min(1.0, max(0.0, (at - first) / span)) * (_WIDTH - 2 * _MARGIN)

    shades = "".join(
        f'<rect x="{across(begin):.1f}" y="0" width="{max(1.0, across(end) - across(begin)):.1f}" height="{_HEIGHT}" '
        f'fill="#e5484d" opacity="0.2"><title>{html.escape(what)}</title></rect>'
        for begin, end, what in marks
    )
    points = " ".join(
        f"{across(at):.1f},{_HEIGHT - _MARGIN - value / top * (_HEIGHT - 2 * _MARGIN):.1f}"
        for at, value in zip(times, values, strict=True)
    )
    caption = f"{title}: at most {write(top)}, at least {write(min(values))}, {times[0]:g} to {times[-1]:g} s"
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(caption)}">'
        f'{shades}<polyline fill="none" stroke="#0b68cb" stroke-width="2" points="{points}"/></svg>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )

"""A record as a report: tables for terminal and review, one HTML page with plots that needs nothing else.

The page has the whole record as JSON inside, so that it can be read again by a program and compared with another.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from vbnet.load.bakeoff.figures import FIGURES
from vbnet.load.bakeoff.record import Cell, Median, Record, cells
from vbnet.load.bakeoff.subjects import BASE, MECHANISMS, SAYS
from vbnet.load.bakeoff.verdict import Change, Comparison, Worth, comparisons, worths
from vbnet.load.bakeoff.workloads import WORKLOADS
from vbnet.load.bench.report import as_markdown
from vbnet.load.page import markdown_table, page, table

__all__ = ["change_rows", "comparison_rows", "headline", "html_page", "markdown", "result_rows", "worth_rows"]

_TOLD: Final = ("rate", "p50", "p99", "wakeups", "traps", "system_calls", "bytes_a_wakeup", "cpu")
_HEADS: Final = {"system_calls": "system calls", "bytes_a_wakeup": "bytes a wake-up", "wakeups": "wake-ups"}
_BAR, _ROW, _NAME, _WIDTH = 420, 22, 230, 820
_COLOURS: Final = {BASE: "#0b68cb"}
_OTHER, _LESSER = "#60646c", "#7fb2e8"


def result_rows(record: Record) -> list[dict[str, Any]]:
    """Return one row for each subject in each workload, written for people."""
    return [
        {"workload": cell.workload, "subject": cell.subject} | {_head(name): _said(cell, name) for name in _TOLD}
        for cell in cells(record.readings)
    ]


def comparison_rows(found: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Return venet against the other models, one row a figure."""
    return [
        {
            "workload": item.workload,
            "against": item.model,
            "figure": _head(item.figure),
            BASE: FIGURES[item.figure].say(item.own.median),
            "other": FIGURES[item.figure].say(item.other.median),
            f"{BASE} is": item.standing,
            "why": item.why,
        }
        for item in found
    ]


def worth_rows(found: Iterable[Worth]) -> list[dict[str, Any]]:
    """Return what each mechanism is worth, one row a workload."""
    return [
        {
            "mechanism": item.mechanism,
            "workload": item.workload,
            "figure": _head(item.figure),
            "with": FIGURES[item.figure].say(item.on.median),
            "without": FIGURES[item.figure].say(item.off.median),
            "gain": f"{item.gain:.3g} x" + ("" if item.is_certain else " (within the spread)"),
        }
        for item in sorted(found, key=lambda item: list(MECHANISMS).index(item.mechanism))
    ]


def change_rows(found: Iterable[Change]) -> list[dict[str, Any]]:
    """Return what is not what it was, one row a figure."""
    return [
        {
            "workload": item.workload,
            "subject": item.subject,
            "figure": _head(item.figure),
            "before": FIGURES[item.figure].say(item.before.median),
            "now": FIGURES[item.figure].say(item.now.median),
            "is": "better" if item.is_better else "worse",
        }
        for item in found
    ]


def headline(record: Record) -> str:
    """Return how it ended, and where venet stands."""
    standings = [item.standing for item in comparisons(record)]
    said = f"{record.state}, {len(record.readings)} measurements in {record.seconds:.0f} s"
    if standings:
        counted = ", ".join(
            f"{word} {standings.count(word)}" for word in ("ahead", "level", "behind") if word in standings
        )
        said += f"; {BASE} against other models, {len(standings)} figures: {counted}"
    return said


def markdown(record: Record) -> str:
    """Return the report as Markdown."""
    lines = ["# Bake-off", "", headline(record), "", f"{record.machine}; vbnet {record.vbnet}; {record.began}.", ""]
    lines += [f"- {fact}" for fact in _facts(record)]
    for title, rows in _sections(record):
        lines += ["", f"## {title}", "", *_markdown(rows)]
    if record.aside:
        lines += ["", "## Beside it", "", as_markdown(record.aside, with_names=True).rstrip()]
    return "\n".join(lines) + "\n"


def html_page(record: Record) -> str:
    """Return the report as one HTML page."""
    parts = [
        f"<p>{html.escape(str(record.machine))}; vbnet {html.escape(record.vbnet)}; {html.escape(record.began)}</p>",
        "<ul>" + "".join(f"<li>{html.escape(fact)}</li>" for fact in _facts(record)) + "</ul>",
    ]
    found = list(cells(record.readings))
    for workload in dict.fromkeys(cell.workload for cell in found):
        own = [cell for cell in found if cell.workload == workload]
        parts.append(f"<h2>{html.escape(workload)}</h2><p>{html.escape(WORKLOADS[workload].says)}</p>")
        parts += [_bars(name, own) for name in dict.fromkeys((WORKLOADS[workload].judged_by, "rate", "wakeups"))]
    for title, rows in _sections(record):
        parts.append(f"<h2>{html.escape(title)}</h2>" + _table_of(rows))
    if record.aside:
        lines = [line.strip("| ").split(" | ") for line in as_markdown(record.aside, with_names=True).splitlines()]
        parts.append("<h2>Beside it</h2>" + table(lines[0], lines[2:]))
    is_good = record.state == "finished" and not record.missing
    return page("Bake-off", is_good=is_good, headline=headline(record), parts=parts, record=record)


def _sections(record: Record) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for title, rows in (
        (f"{BASE} against other models", comparison_rows(comparisons(record))),
        ("What each mechanism is worth", worth_rows(worths(record))),
        ("Everything", result_rows(record)),
    ):
        if rows:
            yield title, rows


def _facts(record: Record) -> list[str]:
    """What a reader must know."""
    contest = record.contest
    return [
        (
            f"Each figure is the median of {contest['repeats']} measurements of {contest['for']}, subjects in turn "
            f"(seed {contest['seed']}); the range is behind it. A request counts as one frame, with its reply."
        ),
        f"Host node and guests had a core each; these were {' and then '.join(dict.fromkeys(record.placement))}.",
        f"Each trap costs {contest['trap-cost']} on top of its way to the host node and back."
        if contest["trap-cost"]
        else "A trap costs its way to the host node and back, and nothing on top.",
        *(f"{model}: {SAYS[model]}." for model in contest["models"] if model in SAYS),
        *(f"{subject} is missing: {why}." for subject, why in record.missing.items()),
        *record.notes,
        "To repeat it: `vbnet bakeoff`, with the keys of `contest` in `result.json` as a file.",
    ]


def _head(name: str) -> str:
    return _HEADS.get(name, name)


def _said(cell: Cell, name: str) -> str:
    found = cell.figures.get(name)
    if found is None:
        return "-"
    say = FIGURES[name].say
    middle = say(found.median)
    if found.count == 1 or name not in ("rate", "p99"):
        return middle
    return f"{middle} ({say(found.least)} .. {say(found.most)})"


def _markdown(rows: Sequence[dict[str, Any]]) -> list[str]:
    return markdown_table(list(rows[0]), [[str(cell).replace("|", "\\|") for cell in row.values()] for row in rows])


def _table_of(rows: Sequence[dict[str, Any]]) -> str:
    return table(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows])


def _bars(name: str, own: Sequence[Cell]) -> str:
    """Draw one bar a subject, its range as a line across the end."""
    figure = FIGURES[name]
    shown = [(cell, cell.figures[name]) for cell in own if name in cell.figures]
    top = max((found.most for _, found in shown), default=0.0) or 1.0
    caption = f"{figure.says}; {'more' if figure.is_more_better else 'less'} is better"
    lines = [_bar(index, cell, found, top, figure.say) for index, (cell, found) in enumerate(shown)]
    height = _ROW * len(shown) + 8
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{html.escape(caption)}" '
        f'font-family="system-ui,sans-serif" font-size="13">{"".join(lines)}</svg>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _bar(index: int, cell: Cell, found: Median, top: float, say: Callable[[float | None], str]) -> str:
    y = 4 + index * _ROW
    middle = y + _ROW / 2
    colour = _LESSER if cell.without else _COLOURS.get(cell.model, _OTHER)
    length, least, most = (value / top * _BAR for value in (found.median, found.least, found.most))
    return (
        f'<text x="{_NAME - 8}" y="{middle + 4:.0f}" text-anchor="end">{html.escape(cell.subject)}</text>'
        f'<rect x="{_NAME}" y="{y + 3}" width="{max(length, 1):.1f}" height="{_ROW - 6}" fill="{colour}"/>'
        f'<line x1="{_NAME + least:.1f}" x2="{_NAME + most:.1f}" y1="{middle:.0f}" y2="{middle:.0f}" '
        f'stroke="#1c2024" stroke-width="1.5"/>'
        f'<text x="{_NAME + max(length, most) + 8:.0f}" y="{middle + 4:.0f}">{html.escape(say(found.median))}</text>'
    )

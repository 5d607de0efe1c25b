"""A result as a report: Markdown for a review, one HTML page that needs nothing else for everybody.

The page has the whole result as JSON inside, so that it can be read again by a program.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from vbnet.load.figures import say, say_count, say_figure, say_rate, say_time
from vbnet.load.result import Result

__all__ = ["html_page", "markdown"]

_WIDTH, _HEIGHT, _MARGIN = 760, 180, 8
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:820px;margin:2rem auto;padding:0 1rem;color:#1c2024}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;text-align:left;"
    "border-bottom:1px solid #d9dde1}td+td{text-align:right}.good{color:#18794e}.bad{color:#c62a2f}"
    "svg{background:#f8f9fa;border:1px solid #d9dde1;width:100%}figcaption{color:#60646c}figure{margin:1rem 0}"
)


def markdown(result: Result) -> str:
    """Return the report as Markdown."""
    lines = [f"# {result.profile['name']}", "", _headline(result), "", str(result.machine), ""]
    lines += ["| figure | measured |", "| --- | --- |"]
    lines += [f"| {say(name)} | {say_figure(name, value)} |" for name, value in result.figures.items()]
    if result.limit is not None:
        lines += ["", "| rate of each sender | | |", "| --- | --- | --- |"]
        lines += [
            f"| {say_rate(trial.rate)} | {'passes' if trial.passes else 'fails'} | {trial.why_not} |"
            for trial in result.trials
        ]
    if result.verdicts:
        lines += ["", "| threshold | measured | holds |", "| --- | --- | --- |"]
        for verdict in result.verdicts:
            measured = say_figure(verdict.threshold.split()[0], verdict.measured)
            lines.append(f"| {verdict.threshold} | {measured} | {'yes' if verdict.holds else '**no**'} |")
    lines += ["", "| guest | does | sent | received | p99 |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {guest.name} | {guest.role} | {say_count(guest.sent)} | {say_count(guest.received)} "
        f"| {say_time(guest.latency_ns.get('p99'))} |"
        for guest in result.guests
    ]
    return "\n".join(lines) + "\n"


def html_page(result: Result) -> str:
    """Return the report as one HTML page."""
    name = html.escape(str(result.profile["name"]))
    is_good = "good" if result.is_good else "bad"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title><style>{_STYLE}</style>",
        f"<h1>{name}</h1><p class={is_good}><b>{html.escape(_headline(result))}</b></p>",
        f"<p>{html.escape(str(result.machine))}; vbnet {html.escape(result.vbnet)}; {html.escape(result.began)}</p>",
        _table(["figure", "measured"], [[say(key), say_figure(key, value)] for key, value in result.figures.items()]),
    ]
    if result.verdicts:
        rows = [
            [verdict.threshold, say_figure(verdict.threshold.split()[0], verdict.measured), _yes(verdict.holds)]
            for verdict in result.verdicts
        ]
        parts.append(_table(["threshold", "measured", "holds"], rows))
    if result.trials:
        trials = [[say_rate(trial.rate), _yes(trial.passes), trial.why_not] for trial in result.trials]
        parts.append("<h2>Search</h2>" + _table(["rate of each sender", "passes", "why not"], trials))
    if len(result.samples) > 1:
        times = [sample.at_s for sample in result.samples]
        received = [sample.received / max(sample.seconds, 1e-9) for sample in result.samples]
        parts.append(_plot("Frames received a second", times, received, say_rate))
        tails = [float(sample.latency_ns.get("p99", 0)) for sample in result.samples]
        if any(tails):
            parts.append(_plot("Latency, 99th percentile of each interval", times, tails, say_time))
    guests = [
        [
            guest.name,
            guest.role,
            say_count(guest.sent),
            say_count(guest.received),
            say_time(guest.latency_ns.get("p99")),
        ]
        for guest in result.guests
    ]
    parts.append("<h2>Guests</h2>" + _table(["guest", "does", "sent", "received", "p99"], guests))
    inside = msgspec.json.encode(result).decode().replace("</", "<\\/")
    parts.append(f'<script type="application/json" id="result">{inside}</script>')
    return "\n".join(parts) + "</html>\n"


def _headline(result: Result) -> str:
    ended = result.outcome.state + (f" ({result.outcome.detail})" if result.outcome.detail else "")
    said = f"{ended}, {result.seconds:g} s measured"
    if result.limit is not None:
        found = say_rate(result.limit) if result.limit else "below the lowest rate that was tried"
        said += f"; limit of each sender: {found}"
    failed = [verdict.threshold for verdict in result.verdicts if not verdict.holds]
    if failed:
        said += f"; does not hold: {', '.join(failed)}"
    return said


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _plot(title: str, times: Sequence[float], values: Sequence[float], write: Callable[[float], str]) -> str:
    """Draw one line over time, from 0 to the largest value."""
    top = max(values) or 1.0
    span = max(times) - min(times) or 1.0
    points = " ".join(
        f"{_MARGIN + (at - min(times)) / span * (_WIDTH - 2 * _MARGIN):.1f},"
        f"{_HEIGHT - _MARGIN - value / top * (_HEIGHT - 2 * _MARGIN):.1f}"
        for at, value in zip(times, values, strict=True)
    )
    caption = f"{title}: at most {write(top)}, at least {write(min(values))}, {times[0]:g} to {times[-1]:g} s"
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(caption)}">'
        f'<polyline fill="none" stroke="#0b68cb" stroke-width="2" points="{points}"/></svg>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )

"""A result as a report: Markdown for a review, one HTML page that needs nothing else for everybody.

The page has the whole result as JSON inside, so that it can be read again by a program.
"""

from __future__ import annotations

import html

from vbnet.load.figures import say, say_count, say_figure, say_rate, say_time
from vbnet.load.page import page, plot, table, yes
from vbnet.load.result import Result

__all__ = ["html_page", "markdown"]


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
    parts = [
        f"<p>{html.escape(str(result.machine))}; vbnet {html.escape(result.vbnet)}; {html.escape(result.began)}</p>",
        table(["figure", "measured"], [[say(key), say_figure(key, value)] for key, value in result.figures.items()]),
    ]
    if result.verdicts:
        rows = [
            [verdict.threshold, say_figure(verdict.threshold.split()[0], verdict.measured), yes(verdict.holds)]
            for verdict in result.verdicts
        ]
        parts.append(table(["threshold", "measured", "holds"], rows))
    if result.trials:
        trials = [[say_rate(trial.rate), yes(trial.passes), trial.why_not] for trial in result.trials]
        parts.append("<h2>Search</h2>" + table(["rate of each sender", "passes", "why not"], trials))
    if len(result.samples) > 1:
        times = [sample.at_s for sample in result.samples]
        received = [sample.received / max(sample.seconds, 1e-9) for sample in result.samples]
        parts.append(plot("Frames received a second", times, received, say_rate))
        tails = [float(sample.latency_ns.get("p99", 0)) for sample in result.samples]
        if any(tails):
            parts.append(plot("Latency, 99th percentile of each interval", times, tails, say_time))
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
    parts.append("<h2>Guests</h2>" + table(["guest", "does", "sent", "received", "p99"], guests))
    return page(
        str(result.profile["name"]), is_good=result.is_good, headline=_headline(result), parts=parts, record=result
    )


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

"""A soak as a report: Markdown for a review, one HTML page with faults marked in every line over time."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence

from vbnet.load.figures import say_count, say_figure, say_rate, say_time
from vbnet.load.page import markdown_table, page, plot, table, yes
from vbnet.load.soak.faults import KINDS
from vbnet.load.soak.profile import DRIFTS
from vbnet.load.soak.result import DriftVerdict, SoakResult, SoakSample, Window

__all__ = ["headline", "html_page", "markdown", "say_amount", "sections"]

_MIB = 1 << 20

Section = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""A title, the heads of columns, rows."""


def markdown(result: SoakResult) -> str:
    """Return the report as Markdown."""
    lines = [f"# {result.profile['name']}", "", headline(result), "", _where(result)]
    for title, head, rows in sections(result):
        lines += ["", f"## {title}", "", *markdown_table(head, rows)]
    return "\n".join(lines) + "\n"


def html_page(result: SoakResult) -> str:
    """Return the report as one HTML page."""
    parts = [f"<p>{html.escape(_where(result))}</p>"]
    found = sections(result)
    parts += [f"<h2>{html.escape(title)}</h2>{table(head, rows)}" for title, head, rows in found[:4]]
    parts += ["<h2>Over time</h2><p>Shaded: faults.</p>", *_plots(result)]
    parts += [f"<h2>{html.escape(title)}</h2>{table(head, rows)}" for title, head, rows in found[4:]]
    return page(
        str(result.profile["name"]), is_good=result.is_good, headline=headline(result), parts=parts, record=result
    )


def headline(result: SoakResult) -> str:
    """Return what became of it, in one line."""
    ended = result.outcome.state + (f" ({result.outcome.detail})" if result.outcome.detail else "")
    parts = f" in {result.parts} parts" if result.parts > 1 else ""
    said = (
        f"{ended} after {say_length(result.elapsed_s)} of {say_length(result.planned_s)}{parts}, "
        f"{len(result.marks)} of {result.planned_faults} faults done, seed {result.seed}"
    )
    return said + (f"; does not hold: {', '.join(result.failed)}" if result.failed else "; everything holds")


def sections(result: SoakResult) -> list[Section]:
    """Return the tables of a report, those that matter most first."""
    named = ["invariant", "what must be", "broken", "holds"]
    found: list[Section] = [
        ("Invariants", named, [[one.what, one.meaning, str(one.broken), yes(one.holds)] for one in result.invariants]),
        (
            "Drift",
            ["what", "of", "level", "growth an hour", "99 % between", "in all", "tolerated", "holds"],
            [_drift(one) for one in result.drifts],
        ),
        ("Faults", ["fault", "times", "over after", "frames lost to it", "what it is"], list(_by_kind(result))),
        (
            "Load",
            ["windows", "number", "seconds", "sent", "lost", "p50", "p99"],
            [_windows(kind, [one for one in result.windows if one.kind == kind]) for kind in _kinds(result)],
        ),
    ]
    if result.thresholds:
        rows = [
            [one.threshold, say_figure(one.threshold.split()[0], one.measured), yes(one.holds)]
            for one in result.thresholds
        ]
        found.append(("Thresholds, in every calm window", ["threshold", "worst", "holds"], rows))
    if result.findings:
        rows = [[f"{one.at_s:.1f} s", one.what, one.detail] for one in result.findings]
        found.append(("What was found", ["at", "invariant", "what"], rows))
    if any(window.unjudged for window in result.windows):
        found.append(
            (
                "Not compared",
                ["switch", "why its counters could not be compared", "windows"],
                list(_unjudged(result.windows)),
            )
        )
    marks = [
        [
            str(one.fault.number),
            f"{one.at_s:.1f} s",
            one.clock,
            one.fault.kind,
            one.fault.target,
            f"{one.fault.for_s:g} s",
            "-" if one.after_s is None else f"{one.after_s:.2f} s",
        ]
        for one in result.marks
    ]
    found.append(("Every fault", ["fault", "at", "clock", "kind", "target", "for", "over after"], marks))
    return found


def say_amount(what: str, value: float | None, *, is_growth: bool = True) -> str:
    """Return a level or a growth of something that may drift, in its unit."""
    if value is None:
        return "unbounded"
    kind = DRIFTS[what].kind
    sign = "+" if is_growth and value > 0 else ""
    if kind == "bytes":
        return f"{sign}{value / _MIB:.2f} MiB"
    if kind == "count":
        return f"{sign}{value:.3g}"
    if is_growth:
        return f"{sign}{100 * value:.3g} %"
    return say_rate(value) if what == "rate" else say_time(value)


def say_length(seconds: float) -> str:
    """Return a length of time: ``8 h``, ``1 h 30 min``, ``2 min 5 s``."""
    whole = round(seconds)
    parts = [(whole // 3600, "h"), (whole % 3600 // 60, "min"), (whole % 60, "s")]
    said = [f"{count} {unit}" for count, unit in parts if count]
    return " ".join(said[:2]) or "0 s"


def _where(result: SoakResult) -> str:
    return f"{result.machine}; vbnet {result.vbnet}; {result.began} to {result.ended}"


def _drift(one: DriftVerdict) -> list[str]:
    if one.level is None:
        return [one.what, one.whose, "-", "-", "-", "-", _tolerated(one), yes(one.holds)]
    bounds = f"{say_amount(one.what, one.low)} and {say_amount(one.what, one.high)}"
    return [
        one.what,
        one.whose,
        say_amount(one.what, one.level, is_growth=False),
        say_amount(one.what, one.per_hour),
        bounds,
        say_amount(one.what, one.growth),
        _tolerated(one),
        yes(one.holds),
    ]


def _tolerated(one: DriftVerdict) -> str:
    way = "fall of" if DRIFTS[one.what].is_bad_falling else ""
    hourly, whole = (
        say_amount(one.what, value).lstrip("+") or "0" for value in (one.tolerated_per_hour, one.tolerated)
    )
    return f"{way} {hourly} an hour, or {whole} in all".strip()


def _by_kind(result: SoakResult) -> Iterator[list[str]]:
    for kind, about in KINDS.items():
        windows = [one for one in result.windows if one.mark is not None and one.mark.fault.kind == kind]
        if not windows:
            continue
        after = [one.mark.after_s for one in windows if one.mark is not None and one.mark.after_s is not None]
        slowest = f"{max(after):.2f} s at most" if after else "-"
        yield [kind, str(len(windows)), slowest, say_count(sum(one.lost for one in windows)), about.meaning]


def _kinds(result: SoakResult) -> list[str]:
    present = {window.kind for window in result.windows}
    return [kind for kind in ("warm-up", "calm", "fault") if kind in present]


def _windows(kind: str, windows: Sequence[Window]) -> list[str]:
    def worst(figure: str) -> str:
        return say_time(max((one.figures.get(figure, 0.0) for one in windows), default=0.0)) + " at most"

    return [
        kind,
        str(len(windows)),
        f"{sum(one.seconds for one in windows):.0f}",
        say_count(sum(one.counts.sent for one in windows)),
        say_count(sum(one.lost for one in windows)),
        worst("p50"),
        worst("p99"),
    ]


def _unjudged(windows: Sequence[Window]) -> Iterator[list[str]]:
    counts: dict[tuple[str, str], int] = {}
    for window in windows:
        for place in window.unjudged.items():
            counts[place] = counts.get(place, 0) + 1
    for (switch, why), count in sorted(counts.items()):
        yield [switch, why, str(count)]


def _plots(result: SoakResult) -> Iterator[str]:
    marks = [
        (one.at_s, one.at_s + one.fault.for_s + (one.after_s or 0.0), f"{one.fault.kind} of {one.fault.target}")
        for one in result.marks
    ]

    def line(title: str, points: Sequence[tuple[float, float]], write: Callable[[float], str]) -> Iterator[str]:
        if len(points) > 1:
            yield plot(title, [at for at, _ in points], [value for _, value in points], write, marks)

    samples = [sample for sample in result.samples if sample.seconds > 0]
    yield from line("Frames received a second", [(one.at_s, one.received / one.seconds) for one in samples], say_rate)
    for name in ("p50", "p99"):
        late = [(one.at_s, float(one.latency_ns[name])) for one in samples if name in one.latency_ns]
        yield from line(f"Latency, {name} of each interval", late, say_time)
    for whose in sorted({name for sample in samples for name in sample.processes}, key=lambda name: name != "host"):
        yield from _of_process(whose, samples, line)


def _of_process(
    whose: str,
    samples: Sequence[SoakSample],
    line: Callable[[str, Sequence[tuple[float, float]], Callable[[float], str]], Iterator[str]],
) -> Iterator[str]:
    seen = [(one.at_s, one.processes[whose]) for one in samples if whose in one.processes]
    memory = [(at, float(held.resident_bytes)) for at, held in seen]
    yield from line(f"Resident memory of {whose}", memory, lambda value: f"{value / _MIB:.1f} MiB")
    yield from line(f"Descriptors of {whose}", [(at, float(held.descriptors)) for at, held in seen], say_count)

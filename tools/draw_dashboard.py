"""Draws a dashboard with live data: docs/images/dashboard.svg.

    python tools/draw_dashboard.py                  bring up a lab and Prometheus, watch, draw, end all
    python tools/draw_dashboard.py --url URL        draw what that Prometheus knows of its last minutes

Panels, queries, units, colours and places are those of dashboards/, so the picture is what Grafana shows, drawn more
simply. Data differ from run to run; a test only compares which panels there are.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dashboards.every import DASHBOARDS  # noqa: E402 - found by the line above
from dashboards.panels import BAD, GOOD, WARN, Dashboard, Kind, Panel  # noqa: E402

COLUMN, LINE, GAP, WIDTH = 49, 30, 8, 1200
INK, MUTED, PAPER, GROUND, GRID = "#1f2933", "#66727f", "#ffffff", "#eef1f4", "#e3e7ec"
PALETTE = ["#3b7dd8", "#e8871e", "#37a76f", "#8a5fd1", "#d64550", "#18a3b8", "#b8860b", "#c2569b", "#5b6b7b", "#7aa116"]
NAMED = {GOOD: "#37a76f", WARN: "#f0a030", BAD: "#d64550", "blue": "#3b7dd8"}
LEGEND_MAX, TICKS, STEPS = 4, 4, 90
STATE_ROWS_MAX = 9
STEP_S = 2
PATIENCE_S = 30.0

Series = tuple[str, list[tuple[float, float]]]

LAB: Final = """
name: office
switches: {lan: , dmz: }
guests:
  web: {kind: stack, count: 2, nics: [{switch: lan, ip: 10.10.0.10/24}]}
  backup: {kind: traffic, nics: [{switch: lan}], send: {to: store, size: 1500, rate: 9k, for: 40s}, restart: always}
  store: {kind: traffic, nics: [{switch: lan}]}
  camera: {kind: python, run: "picture.py:camera", nics: [{switch: dmz}]}
  screen: {kind: python, run: "picture.py:screen", nics: [{switch: dmz}]}
  moody: {kind: python, run: "picture.py:moody", nics: [{switch: dmz}], restart: on-failure}
"""
PROGRAM: Final = """
import math, threading, time
pause = threading.Event()

def camera(guest):
    nic, began = guest.nic("eth0"), time.monotonic()
    own = bytes(nic.mac)
    while True:
        wave = 1 + math.sin((time.monotonic() - began) / 9)
        frame = b"\\xff" * 6 + own + b"\\x88\\xb5" + bytes(600)
        nic.send([frame] * int(4 + 26 * wave), 1.0)
        pause.wait(0.01)

def screen(guest):
    nic, began = guest.nic("eth0"), time.monotonic()
    while True:
        nic.recv(512, 0.1)
        if (time.monotonic() - began) % 60 > 48:
            pause.wait(0.25)

def moody(guest):
    nic = guest.nic("eth0")
    end = time.monotonic() + 45
    while time.monotonic() < end:
        nic.recv(512, 0.1)
    return 1
"""


# ---- asking Prometheus -----------------------------------------------------------------------------------------------


class Prometheus:
    """What is asked.

    Args:
        url: of a Prometheus. end: of the time that is drawn, in seconds since 1970.
    """

    def __init__(self, url: str, end: float) -> None:
        self._url, self.end = url, end
        self.begin = end - STEPS * STEP_S

    def series(self, panel: Panel) -> list[Series]:
        """Return every series of a panel with its name, over the time that is drawn."""
        found: list[Series] = []
        for query in panel.queries:
            text = re.sub(r'"\$\w+"', '".*"', query.expr.text.replace("$__rate_interval", "10s"))
            for each in self._range(text):
                labels = each["metric"]
                name = re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), query.legend)  # noqa: B023
                points = [(float(at), float(value)) for at, value in each["values"] if value != "NaN"]
                if points:
                    found.append((" ".join(name.split()), points))
        return found

    def _range(self, text: str) -> list[dict[str, Any]]:
        span = {"query": text, "start": f"{self.begin:.3f}", "end": f"{self.end:.3f}", "step": str(STEP_S)}
        address = f"{self._url}/api/v1/query_range?{urllib.parse.urlencode(span)}"
        with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:  # noqa: S310 - the caller's own
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result


# ---- drawing ---------------------------------------------------------------------------------------------------------


def said(value: float, unit: str) -> str:
    """Return a value as Grafana would say it."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        for limit, factor, name in ((1e-3, 1e6, "µs"), (1, 1e3, "ms")):
            if 0 < value < limit:
                return f"{value * factor:.3g} {name}"
        return f"{value:.3g} s"
    suffix = {"pps": " p/s", "Bps": "B/s", "bytes": "B", "reqps": " req/s", "cps": " c/s"}.get(unit, "")
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {letter}{suffix.lstrip()}" if suffix else f"{value / limit:.3g}{letter}"
    return f"{value:.3g}{suffix}"


def text(
    x: float, y: float, words: str, *, size: float = 11, colour: str = INK, weight: int = 400, at: str = "start"
) -> str:
    """Return one line of text."""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size:g}" fill="{colour}" font-weight="{weight}" '
        f'text-anchor="{at}">{escape(words)}</text>'
    )


def rectangle(x: float, y: float, width: float, height: float, fill: str, *, radius: float = 4) -> str:
    """Return a filled rectangle."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" fill="{fill}"/>'


def judged(panel: Panel, value: float) -> str:
    """Return the colour that a value has in a panel."""
    for number, _, colour in panel.words:
        if number == value:
            return NAMED.get(colour, colour)
    if panel.limits is None:
        return PAPER
    orange, red = panel.limits
    return NAMED[BAD if value >= red else WARN if value >= orange else GOOD]


class Canvas:
    """One panel's place on the picture, in pixels, and what is drawn there."""

    def __init__(self, panel: Panel, x: float, y: float, prometheus: Prometheus) -> None:
        self.panel, self.x, self.y = panel, x + GAP / 2, y + GAP / 2
        self.width, self.height = panel.width * COLUMN - GAP, panel.height * LINE - GAP
        self._prometheus = prometheus

    def draw(self) -> list[str]:
        """Return the panel."""
        series = self._prometheus.series(self.panel)
        title = text(self.x + 10, self.y + 18, self.panel.title, size=12, weight=600)
        match self.panel.kind:
            case Kind.NUMBER:
                return self._number(series)
            case Kind.STATES:
                return [rectangle(self.x, self.y, self.width, self.height, PAPER), title, *self._states(series)]
            case _:
                return [rectangle(self.x, self.y, self.width, self.height, PAPER), title, *self._lines(series)]

    def _number(self, series: list[Series]) -> list[str]:
        name, points = series[0] if series else ("", [(0.0, 0.0)])
        value = points[-1][1]
        ground = judged(self.panel, value)
        ink = INK if ground == PAPER else "#ffffff"
        words = {number: word for number, word, _ in self.panel.words}
        shown = words.get(int(value), said(value, self.panel.shown_unit))
        named = f"{name}: {shown}" if self.panel.words else shown
        return [
            rectangle(self.x, self.y, self.width, self.height, ground),
            text(self.x + 10, self.y + 18, self.panel.title, size=12, weight=600, colour=ink),
            text(self.x + self.width / 2, self.y + 72, named, size=25, weight=700, colour=ink, at="middle"),
        ]

    def _across(self, at: float, left: float) -> float:
        span = self._prometheus.end - self._prometheus.begin
        return left + (at - self._prometheus.begin) / span * (self.x + self.width - 12 - left)

    def _times(self, left: float, y: float) -> Iterator[str]:
        for part in range(TICKS):
            at = self._prometheus.begin + (part + 0.5) / TICKS * (self._prometheus.end - self._prometheus.begin)
            words = time.strftime("%H:%M:%S", time.gmtime(at))
            yield text(self._across(at, left), y, words, size=9.5, colour=MUTED, at="middle")

    def _lines(self, series: list[Series]) -> list[str]:
        shown = sorted(series, key=lambda each: -max(value for _, value in each[1]))[: len(PALETTE)]
        stacked = self._stacked(shown) if self.panel.is_stacked else None
        legend = min(len(shown), LEGEND_MAX)
        left, top, bottom = self.x + 62, self.y + 32, self.y + self.height - 26 - 15 * ((legend + 1) // 2)
        highest = max((value for _, points in (stacked or shown) for _, value in points), default=0.0)
        limit = self.panel.limits[1] if self.panel.limits else 0.0
        ceiling = self.panel.top or max(highest, limit if highest * 3 > limit else 0.0) * 1.1 or 1.0

        def up(value: float) -> float:
            return bottom - min(value / ceiling, 1) * (bottom - top)

        parts = []
        for tick in range(TICKS):
            value = ceiling * tick / (TICKS - 1)
            parts.append(f'<path d="M{left:.0f} {up(value):.0f}H{self.x + self.width - 12:.0f}" stroke="{GRID}"/>')
            parts.append(
                text(left - 6, up(value) + 4, said(value, self.panel.shown_unit), size=9.5, colour=MUTED, at="end")
            )
        parts += self._times(left, bottom + 14)
        for place, (_, points) in enumerate(stacked or shown):
            colour = PALETTE[place]
            way = "L".join(f"{self._across(at, left):.1f} {up(value):.1f}" for at, value in points)
            if stacked:
                first, last = self._across(points[0][0], left), self._across(points[-1][0], left)
                parts.append(f'<path d="M{first:.1f} {bottom}L{way}L{last:.1f} {bottom}Z" fill="{colour}"/>')
            else:
                parts.append(f'<path d="M{way}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        for limit_value, colour in zip(self.panel.limits or (), (NAMED[WARN], NAMED[BAD]), strict=False):
            if limit_value <= ceiling:
                line = f"M{left:.0f} {up(limit_value):.0f}H{self.x + self.width - 12:.0f}"
                parts.append(f'<path d="{line}" stroke="{colour}" stroke-dasharray="5 4"/>')
        return parts + self._legend(shown, bottom + 32)

    def _stacked(self, shown: list[Series]) -> list[Series]:
        """Return each with those after it below it, the highest first, so that all can be seen."""
        made: list[Series] = []
        for place, (name, points) in enumerate(shown):
            below = [dict(others) for _, others in shown[place + 1 :]]
            made.append((name, [(at, value + sum(each.get(at, 0.0) for each in below)) for at, value in points]))
        return made

    def _legend(self, shown: list[Series], y: float) -> list[str]:
        parts = []
        column = (self.width - 24) / 2
        room = int(column / 6.4) - 12
        for place, (name, points) in enumerate(shown[:LEGEND_MAX]):
            x = self.x + 12 + column * (place % 2)
            line = y + 15 * (place // 2)
            last = said(points[-1][1], self.panel.shown_unit)
            brief = name if len(name) <= room else f"{name[: room - 1]}…"
            parts.append(rectangle(x, line - 7, 10, 4, PALETTE[place], radius=2))
            parts.append(text(x + 15, line, f"{brief}  {last}", size=10.5, colour=MUTED))
        return parts

    def _states(self, series: list[Series]) -> list[str]:
        shown = sorted(series)[:STATE_ROWS_MAX]
        left, top = self.x + 110, self.y + 30
        row = (self.height - 54) / max(len(shown), 1)
        half = STEP_S / 2
        parts = []
        for place, (name, points) in enumerate(shown):
            y = top + place * row
            parts.append(text(left - 8, y + row / 2 + 4, name, size=10.5, colour=MUTED, at="end"))
            runs: list[tuple[float, float, float]] = []
            for at, value in points:
                if runs and runs[-1][2] == value and at - runs[-1][1] <= STEP_S * 1.5:
                    runs[-1] = (runs[-1][0], at, value)
                else:
                    runs.append((at, at, value))
            for first, last, value in runs:
                begin = self._across(max(first - half, self._prometheus.begin), left)
                end = self._across(min(last + half, self._prometheus.end), left)
                parts.append(rectangle(begin, y + 2, end - begin, row - 4, judged(self.panel, value), radius=2))
                word = next((word for number, word, _ in self.panel.words if number == value), "")
                if end - begin > 7 * len(word) + 8:
                    middle = (begin + end) / 2
                    parts.append(text(middle, y + row / 2 + 4, word, size=10.5, colour="#ffffff", at="middle"))
        return [*parts, *self._times(left, self.y + self.height - 8)]


def picture(dashboard: Dashboard, prometheus: Prometheus) -> str:
    """Return the dashboard as SVG."""
    parts = []
    y = 58.0
    for row in dashboard.rows:
        parts.append(text(18, y + 18, f"▾ {row.title}", size=13, weight=700))
        y += LINE
        x, tallest = 0.0, 0
        for panel in row.panels:
            if x + panel.width > 24:  # noqa: PLR2004 - Grafana's columns
                x, y, tallest = 0.0, y + tallest * LINE, 0
            parts += Canvas(panel, (WIDTH - 24 * COLUMN) / 2 + x * COLUMN, y, prometheus).draw()
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest * LINE
    height = y + 14
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" role="img" '
        'aria-labelledby="title">'
    )
    names = " ".join(["Data source: Prometheus", *(f"· {variable.label}: All" for variable in dashboard.variables)])
    return "\n".join(
        [
            head,
            f'<title id="title">The dashboard {escape(dashboard.title)}, with the data of a lab</title>',
            rectangle(0, 0, WIDTH, height, GROUND, radius=12),
            text(18, 36, dashboard.title, size=20, weight=700),
            text(WIDTH - 18, 36, names, size=12, colour=MUTED, at="end"),
            *parts,
            "</svg>\n",
        ]
    )


# ---- a lab to draw ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    """Return a port of the loopback that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@contextlib.contextmanager
def watched_lab() -> Iterator[str]:
    """Bring up a lab with an exporter, and a Prometheus that watches it; gives its URL. All of it ends, and is gone."""
    folder = Path(tempfile.mkdtemp(prefix="vb-"))
    environment = {**os.environ, "VBNET_RUN_DIR": str(folder / "run"), "PYTHONPATH": str(ROOT)}
    vbnet = [sys.executable, "-m", "vbnet.cli.main"]
    exporter, prometheus = free_port(), free_port()
    configuration = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    configuration["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
    configuration["scrape_configs"][0]["http_sd_configs"][0]["url"] = f"http://127.0.0.1:{exporter}/sd"
    configuration["rule_files"] = [str(ROOT / "deploy" / "prometheus" / name) for name in ("rules.yml", "alerts.yml")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    (folder / "lab.yaml").write_text(f"{LAB}metrics: {{listen: '127.0.0.1:{exporter}'}}\n", encoding="utf-8")
    (folder / "picture.py").write_text(PROGRAM, encoding="utf-8")
    try:
        subprocess.run([*vbnet, "up", str(folder / "lab.yaml"), "-d"], env=environment, check=True)  # noqa: S603
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{prometheus}", "--log.level=warn"]
        with subprocess.Popen(command) as watcher:  # noqa: S603
            try:
                yield f"http://127.0.0.1:{prometheus}"
            finally:
                watcher.terminate()
    finally:
        subprocess.run([*vbnet, "down", "--all"], env=environment, check=False)  # noqa: S603
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Draw, and say where."""
    parser = argparse.ArgumentParser(description="Draw a dashboard with live data.")
    parser.add_argument("--url", help="of a Prometheus; without it, a lab and a Prometheus are brought up")
    parser.add_argument("--uid", default="vbnet-overview", help="of the dashboard")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "dashboard.svg", help="file to write")
    chosen = parser.parse_args()
    [dashboard] = [each for each in DASHBOARDS if each.uid == chosen.uid]
    with contextlib.ExitStack() as stack:
        url = chosen.url
        if url is None:
            url = stack.enter_context(watched_lab())
            print(f"watching a lab for {STEPS * STEP_S + 20} s at {url}")
            time.sleep(STEPS * STEP_S + 20)
        drawn = picture(dashboard, Prometheus(url, time.time()))
    chosen.out.write_text(drawn, encoding="utf-8")
    print(f"wrote {chosen.out}, {len(drawn.encode()) // 1024} KiB")


if __name__ == "__main__":
    main()

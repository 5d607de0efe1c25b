"""Draws docs/images/top.svg: the screen of `vbnet top` on a lab that really runs.

    python tools/draw_top.py        needs an installed vbnet; takes half a minute, leaves nothing behind

The lab's figures are of the moment, so nobody compares the picture with a new one; draw it again when the screen
changes. The picture is plain SVG of text and rectangles, without fonts or anything else from elsewhere.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from rich.segment import Segment

from vbnet.bus.rundir import RunDir
from vbnet.cli.top.screen import TopApp
from vbnet.telemetry.watch.look import Watcher
from vbnet.telemetry.watch.viewer import Viewer

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "top.svg"
LAB = """
name: lab
switches: {lan: }
guests:
  web: {kind: stack, count: 4, nics: [{switch: lan, ip: 10.10.0.10/24}]}
  camera: {kind: traffic, nics: [{switch: lan}], send: {to: recorder, size: 1400, rate: 4k, for: 300s}}
  recorder: {kind: traffic, nics: [{switch: lan}]}
  sensor: {kind: traffic, nics: [{switch: lan}], send: {to: control, size: 64, rate: 900, for: 300s}}
  control: {kind: traffic, nics: [{switch: lan}]}
  flood: {kind: traffic, nics: [{switch: lan}], send: {to: victim, size: 64, rate: 150k, for: 300s}}
  victim: {kind: traffic, nics: [{switch: lan}]}
"""
COLUMNS, LINES = 100, 18
SECONDS = 25
CELL, LINE, EDGE, SIZE = 8.43, 19, 12, 14
PAPER = "#121212"


def main() -> None:
    """Bring the lab up, watch it for a while, draw what is seen, and take it down."""
    root = Path(tempfile.mkdtemp(prefix="vb-"))
    file = root.with_suffix(".yaml")
    file.write_text(LAB, encoding="utf-8")
    vbnet = [sys.executable, "-m", "vbnet.cli.main"]
    environment = {**os.environ, "VBNET_RUN_DIR": str(root)}
    subprocess.run([*vbnet, "up", str(file), "-d"], check=True, env=environment)  # noqa: S603 -- ourselves
    try:
        TARGET.write_text(asyncio.run(watched(RunDir.for_node("lab", root))), encoding="utf-8")
    finally:
        subprocess.run([*vbnet, "down", "--all"], check=True, env=environment)  # noqa: S603 -- ourselves
        file.unlink()
        root.rmdir()


async def watched(run_dir: RunDir) -> str:
    """Return the picture of the screen after some seconds."""
    app = TopApp(Viewer(Watcher(run_dir)))
    async with app.run_test(size=(COLUMNS, LINES)) as pilot:
        await pilot.pause(SECONDS)
        await pilot.press("down", "down")
        await pilot.pause()
        lines = [list(strip) for strip in app.screen._compositor.render_strips()]  # noqa: SLF001 -- no other door
    return picture(lines)


def picture(lines: list[list[Segment]]) -> str:
    """Return lines of styled text as SVG."""
    width, height = round(COLUMNS * CELL + 2 * EDGE), LINES * LINE + 2 * EDGE
    drawn = "\n".join(part for row, line in enumerate(lines) for part in runs(line, row))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="{SIZE}" '
        f'font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace">\n'
        f"<title>vbnet top: guests of a running lab, sorted by frames received a second</title>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>\n{drawn}\n</svg>\n'
    )


def runs(line: list[Segment], row: int) -> Iterator[str]:
    """Yield the rectangles and texts of one line, pieces of the same look joined."""
    joined: list[tuple[int, str, tuple[str, str, bool]]] = []
    column = 0
    for segment in line:
        look = styled(segment)
        if joined and joined[-1][2] == look:
            joined[-1] = (joined[-1][0], joined[-1][1] + segment.text, look)
        else:
            joined.append((column, segment.text, look))
        column += segment.cell_length
    for begin, text, (colour, paper, is_bold) in joined:
        x, y, length = EDGE + begin * CELL, EDGE + row * LINE, len(text) * CELL
        if paper != PAPER:
            yield f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="{LINE}" fill="{paper}"/>'
        left = len(text) - len(text.lstrip())
        if words := text.strip():
            weight = ' font-weight="700"' if is_bold else ""
            yield (
                f'<text x="{x + left * CELL:.1f}" y="{y + SIZE}" textLength="{len(words) * CELL:.1f}" '
                f'fill="{colour}"{weight} xml:space="preserve">{escape(words)}</text>'
            )


def styled(segment: Segment) -> tuple[str, str, bool]:
    """Return colour, ground and weight of a piece of text."""
    style = segment.style
    if style is None:
        return "#e0e0e0", PAPER, False
    colour = style.color.get_truecolor().hex if style.color and not style.color.is_default else "#e0e0e0"
    paper = style.bgcolor.get_truecolor().hex if style.bgcolor and not style.bgcolor.is_default else PAPER
    if style.reverse:
        colour, paper = paper, colour
    return colour, paper, bool(style.bold)


if __name__ == "__main__":
    main()

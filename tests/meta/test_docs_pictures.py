"""Committed pictures are what their scripts draw: nobody edits one by hand, and none grows old."""

import subprocess
import sys
from xml.etree import ElementTree as ET

from dashboards.overview import OVERVIEW as OVERVIEW_DASHBOARD
from tests.meta import tree

DASHBOARD = tree.ROOT / "docs" / "images" / "dashboard.svg"
OVERVIEW = tree.ROOT / "docs" / "images" / "overview.svg"
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); import draw_overview; print(draw_overview.picture(), end='')"


def test_overview_is_what_its_script_draws() -> None:
    """`make docs` draws the picture again; a difference means that one of the two was forgotten."""
    drawn = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tree.ROOT / "tools")],
        capture_output=True,
        text=True,
        check=True,
    )

    assert OVERVIEW.read_text() == drawn.stdout


def test_dashboard_shows_the_panels_that_there_are() -> None:
    """`tools/draw_dashboard.py` draws live data, so only which panels are drawn is compared."""
    root = ET.fromstring(DASHBOARD.read_text())  # noqa: S314 -- our own file
    words = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]

    missing = [panel.title for panel in OVERVIEW_DASHBOARD.panels() if panel.title not in words]

    assert [] == missing
    assert DASHBOARD.stat().st_size < 150_000


def test_pictures_are_well_formed_and_stay_inside_their_frame() -> None:
    """No line or text starts outside of what is shown."""
    outside: list[str] = []

    for path in tree.under("docs", suffix=".svg"):
        root = ET.fromstring(path.read_text())  # noqa: S314 -- our own file
        _, _, width, height = (float(number) for number in root.attrib["viewBox"].split())
        for item in root.iter():
            x, y = float(item.get("x", "0")), float(item.get("y", "0"))
            if not (0 <= x <= width and 0 <= y <= height):
                outside.append(f"{tree.name(path)}: {item.tag} at {x}, {y}")

    assert [] == outside

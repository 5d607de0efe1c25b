"""The screen of `vbnet top`, driven by keys and clicks, and what it prints into a pipe."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from tests.support import vbnet_program
from tests.support.counted_node import CountedNode
from vbnet.cli import top as command
from vbnet.cli.top import grid as grids
from vbnet.cli.top.screen import TextScreen, TopApp
from vbnet.errors import NotFoundError, ResourceError, UsageError
from vbnet.hostnode.rows import Row
from vbnet.telemetry.watch.table import Column, Sheet, Show
from vbnet.telemetry.watch.table import Row as TableRow
from vbnet.telemetry.watch.tabs import TABS
from vbnet.telemetry.watch.viewer import Viewer

GUESTS = ("app", "db", "web")


class Screen:
    """The screen, the node it shows, and somebody's hands."""

    def __init__(self, node: CountedNode, ports: dict[str, Row], app: TopApp, pilot: Pilot[None]) -> None:
        self.node, self.ports, self.app, self.pilot = node, ports, app, pilot

    async def press(self, *keys: str) -> None:
        """Press keys, and let the screen follow."""
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def later(self, **frames: int) -> None:
        """Let a second pass in which guests are given frames."""
        for guest, count in frames.items():
            self.ports[guest].add("receive_frames", count)
        self.node.now_s += 1
        self.node.beat()
        self.app.look()
        await self.pilot.pause()

    @property
    def names(self) -> list[str]:
        """First words of the rows that one sees."""
        return [line[2:].split()[0] for line in self.app.grid.lines[1:] if line.strip()]

    def line(self, name: str) -> str:
        """One of the lines around the table."""
        return str(self.app.query_one(f"#{name}", Static).render())


@pytest.fixture
def node(tmp_path: Path) -> CountedNode:
    """A node that only has a run directory."""
    return CountedNode(tmp_path / "run")


def on_screen(node: CountedNode, work: Any, size: tuple[int, int] = (80, 24)) -> None:
    """Show three guests, of which ``web`` is given most, and let ``work`` have the screen."""
    ports = {name: node.guest(name) for name in GUESTS}
    viewer = Viewer(node.watcher, now_s=lambda: node.now_s)

    async def main() -> None:
        app = TopApp(viewer, is_ticking=False)
        async with app.run_test(size=size) as pilot:
            screen = Screen(node, ports, app, pilot)
            await screen.later(app=1, db=20, web=300)
            await work(screen)

    asyncio.run(main())


def test_busiest_guests_are_first_and_all_has_room_on_a_small_terminal(node: CountedNode) -> None:
    """80 x 24, with titles, tabs, keys, and nothing wider than the screen."""

    async def work(screen: Screen) -> None:
        assert ["web", "db", "app"] == screen.names
        assert {80} >= {len(line) for line in screen.app.grid.lines}
        assert "RX/S▼" in screen.app.grid.lines[0]
        assert "live" in screen.line("top")
        assert all(name in screen.line("tabs") for name in TABS)
        assert len(screen.line("tabs")) <= 80
        assert len(screen.line("keys")) <= 80
        assert [0] == [line.region.x for line in screen.app.query("#keys")]

    on_screen(node, work)


def test_sort_by_key_and_by_a_click_on_a_title(node: CountedNode) -> None:
    """S goes to the next column, r turns round, a click chooses; a triangle says which way."""

    async def work(screen: Screen) -> None:
        title = screen.app.grid.lines[0]
        await screen.pilot.click(screen.app.grid, offset=(title.index("GUEST") + 1, 0))
        await screen.pilot.pause()
        assert ["app", "db", "web"] == screen.names
        assert "GUEST▲" in screen.app.grid.lines[0]
        await screen.press("r")
        assert ["web", "db", "app"] == screen.names
        await screen.press("s", "s")
        assert "RX/S▼" in screen.app.grid.lines[0]

    on_screen(node, work)


def test_filter_while_it_is_typed_and_dropped_by_escape(node: CountedNode) -> None:
    """Enter keeps it, and the screen says that rows are left out."""

    async def work(screen: Screen) -> None:
        await screen.press("slash", "d", "b")
        assert ["db"] == screen.names
        await screen.press("enter")
        assert "filter: db 1 of 3" in screen.line("where")
        assert screen.app.grid.has_focus
        await screen.press("escape")
        assert 3 == len(screen.names)

    on_screen(node, work)


def test_letters_typed_into_the_filter_are_no_keys(node: CountedNode) -> None:
    """Q does not leave, s does not sort, digits do not change the tab."""

    async def work(screen: Screen) -> None:
        await screen.press("slash", "q", "s", "2", "space")
        assert screen.app.is_running
        assert "qs2 " == screen.app.viewer.words
        assert "guests" == screen.app.viewer.path[0].to

    on_screen(node, work)


def test_enter_leads_from_a_guest_to_its_device_to_its_counters(node: CountedNode) -> None:
    """The way is written above; Escape leads back."""

    async def work(screen: Screen) -> None:
        await screen.press("enter", "enter")
        assert "guests > guest web > device web.eth0" in screen.line("where")
        assert any("receive drop no room" in line for line in screen.app.grid.lines)
        await screen.press("escape", "escape")
        assert ["web", "db", "app"] == screen.names

    on_screen(node, work)


def test_enter_on_a_counter_shows_all_of_its_row(node: CountedNode) -> None:
    """Its unit and its whole meaning, which have little room in a line."""

    async def work(screen: Screen) -> None:
        await screen.press("enter", "enter", "enter")
        assert isinstance(screen.app.screen, TextScreen)
        text = str(screen.app.screen.query_one(Static).render())
        assert "Frames given to the guest." in text
        assert "packets" in text
        await screen.press("escape")
        assert "device web.eth0" in screen.line("where")
        assert any("Frames give" in line for line in screen.app.grid.lines)

    on_screen(node, work)


def test_cursor_stays_with_its_row_when_the_order_changes(node: CountedNode) -> None:
    """A row is known by its name, not by its place."""

    async def work(screen: Screen) -> None:
        await screen.press("down")
        await screen.later(app=900, db=1)
        assert ["app", "db", "web"] == screen.names
        await screen.press("down", "up")
        await screen.later(web=1000, app=10, db=1)
        await screen.press("enter")
        assert "guest db" in screen.line("where")

    on_screen(node, work)


def test_rewinding_is_seen_and_the_present_comes_back(node: CountedNode) -> None:
    """How long ago it was is said in words; the sparkline ends where one is."""

    async def work(screen: Screen) -> None:
        await screen.later(web=5, app=1000)
        assert ["app", "web", "db"] == screen.names
        await screen.press("left")
        assert ["web", "db", "app"] == screen.names
        assert "paused, 1 s ago" in screen.line("top")
        await screen.later()
        assert "paused, 2 s ago" in screen.line("top")
        await screen.press("right", "right", "right")
        assert "live" in screen.line("top")
        await screen.press("space")
        assert "paused, 0 s ago" in screen.line("top")

    on_screen(node, work)


def test_tabs_by_digit_by_tab_and_by_click(node: CountedNode) -> None:
    """The one that is shown is in brackets, so no colour is needed to see it."""

    async def work(screen: Screen) -> None:
        await screen.press("5")
        assert "[signals]" in screen.line("tabs")
        await screen.press("tab")
        assert "[timers]" in screen.line("tabs")
        await screen.press("shift+tab", "shift+tab")
        assert "[queues]" in screen.line("tabs")
        await screen.press("0")
        assert "[errors]" in screen.line("tabs")
        await screen.pilot.click("#tabs", offset=(screen.line("tabs").index("devices") + 1, 0))
        await screen.pilot.pause()
        assert "[devices]" in screen.line("tabs")

    on_screen(node, work)


def test_help_opens_and_closes_and_has_room(node: CountedNode) -> None:
    """On 80 x 24 nothing of it needs scrolling."""

    async def work(screen: Screen) -> None:
        await screen.press("question_mark")
        assert isinstance(screen.app.screen, TextScreen)
        assert 0 == screen.app.screen.query_one("VerticalScroll").max_scroll_y
        await screen.press("escape")
        assert not isinstance(screen.app.screen, TextScreen)

    on_screen(node, work)


def test_node_that_hangs_dies_or_goes_away_is_told_in_words(node: CountedNode) -> None:
    """What was seen last stays."""

    async def work(screen: Screen) -> None:
        node.now_s += 10
        screen.app.look()
        assert "hangs: " in screen.line("top")
        await screen.later()
        assert "up: " in screen.line("top")
        shutil.rmtree(node.run_dir.path)
        node.now_s += 5
        screen.app.look()
        await screen.pilot.pause()
        assert "last picture, 5 s ago" in screen.line("top")
        assert "ended" in screen.line("top")
        assert 3 == len(screen.names)

    on_screen(node, work)


def test_resizing_shows_what_has_room(node: CountedNode) -> None:
    """Wider: more columns; tiny: the name is still there, and nothing breaks."""

    async def work(screen: Screen) -> None:
        small = len(screen.app.grid.lines[0].split())
        await screen.pilot.resize_terminal(160, 30)
        await screen.pilot.pause()
        assert len(screen.app.grid.lines[0].split()) > small
        assert "1 guests" in screen.line("tabs")
        await screen.pilot.resize_terminal(20, 7)
        await screen.pilot.pause()
        assert "web" == screen.names[0]

    on_screen(node, work)


def test_a_thousand_rows_scroll(node: CountedNode) -> None:
    """End is the last row, Page up goes a screen back, and only lines one sees are drawn."""
    for number in range(1000):
        node.block("bus", bus=f"bus-{number}")

    async def work(screen: Screen) -> None:
        await screen.press("9", "end")
        assert "bus-999" == screen.names[-1]
        await screen.press("pageup")
        assert "bus-999" not in screen.names[-1] or ">" not in screen.app.grid.lines[-1]
        await screen.press("home")
        assert "bus-0" == screen.names[0]
        assert len(screen.names) < 24

    on_screen(node, work)


def test_marks_are_characters_and_without_colours_there_are_none(
    node: CountedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_COLOR leaves grey; ``~`` and ``>`` say the same as the colours."""
    monkeypatch.setenv("NO_COLOR", "1")

    async def work(screen: Screen) -> None:
        screen.ports["web"].add("receive_drop_no_room", 3)
        await screen.later(web=100)
        assert screen.app.grid.lines[1].startswith("~>web")
        colours = {
            segment.style.color.get_truecolor()
            for strip in screen.app.screen._compositor.render_strips()
            for segment in strip.apply_filter(screen.app._filters[0], screen.app.background_colors[0])
            if segment.style is not None and segment.style.color is not None
        }
        assert colours
        assert all(red == green == blue for red, green, blue in colours)

    on_screen(node, work)


# --- columns that have room ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 40, 79, 120, 300])
def test_columns_never_take_more_room_than_there_is(width: int) -> None:
    """The least important ones go first; texts are cut before the important ones would go."""
    columns = (
        Column("name", "NAME", Show.text),
        Column("rate", "RATE"),
        Column("much", "MUCH", Show.number, 1),
        Column("little", "LITTLE", Show.text, 2),
        Column("line", "HISTORY", Show.line, 3),
    )
    sheet = Sheet(columns, (TableRow(("a",), ("a" * 50, 1.0, 2, "b" * 30, None)),))

    chosen = grids.fitted(sheet, sheet.rows, width)

    assert 2 + sum(each.cells + 1 for each in chosen) <= width
    ranks = [columns[each.place].rank for each in chosen]
    assert [0, 0, *range(1, 4)][: len(ranks)] == ranks


# --- into a pipe --------------------------------------------------------------------------------------------------


@pytest.fixture
def full(node: CountedNode, monkeypatch: pytest.MonkeyPatch) -> CountedNode:
    """A node with one guest that lost frames, which commands find."""
    monkeypatch.setenv("VBNET_RUN_DIR", str(node.run_dir.path.parent))
    node.guest("web").add("receive_drop_no_room", 3)
    return node


@pytest.mark.usefixtures("full")
def test_piped_it_prints_every_table_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Plain text, with the reason why frames were dropped."""
    command.top(interval=0.1)
    said = capsys.readouterr().out

    assert "\x1b" not in said
    assert all(f"\n{name}" in said for name in TABS)
    assert "no_room" in said


@pytest.mark.usefixtures("full")
def test_programs_get_one_document() -> None:
    """Values in plain units, with the node's state and the time between the two looks."""
    document = json.loads(vbnet_program.run("top", "--once", "-i", "0.1", "--tab", "guests", "--format", "json").stdout)

    assert ["guests"] == [name for name in document if name in TABS]
    assert 0.1 <= document["seconds"] < 30
    (guest,) = document["guests"]
    assert ("web", 3, 0.0) == (guest["guest"], guest["drops"], guest["drops_per_second"])


def test_tabs_that_can_be_asked_for_are_those_that_there_are() -> None:
    """The command's list is written out, so that its help is quick."""
    assert list(TABS) == [str(tab) for tab in command.Tab]


@pytest.mark.usefixtures("full")
def test_printing_loads_no_screen() -> None:
    """Textual is for the screen alone."""
    program = (
        "import sys\nfrom vbnet.cli.main import main\n"
        "try: main(['top', '--once', '-i', '0.1'])\nexcept SystemExit: pass\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('textual', 'aiohttp')), file=sys.stderr)"
    )

    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "[]" == finished.stderr.strip()


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"node": "nobody"}, NotFoundError, "there are: lab"),
        ({"web": True, "once": True}, UsageError, "choose one of them"),
        ({"web": True, "listen": "nonsense"}, UsageError, "is not HOST:PORT"),
        ({"web": True, "listen": "127.0.0.1:1/x"}, UsageError, "is not HOST:PORT"),
        ({"web": True, "listen": "192.0.2.1:80"}, ResourceError, "cannot listen on 192.0.2.1:80"),
    ],
)
def test_what_cannot_be_is_said_with_what_can(how: dict[str, Any], error: type[Exception], words: str) -> None:
    """Before anything is shown."""
    with pytest.raises(error, match=words):
        command.top(**how)


@pytest.mark.usefixtures("full")
def test_missing_package_is_named_with_how_to_install_it() -> None:
    """The browser needs a package that few want."""
    program = (
        "import sys\nsys.modules['textual_serve'] = None\nfrom vbnet.cli.main import main\nmain(['top', '--web'])\n"
    )

    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (2, True) == (finished.returncode, "pip install 'vbnet[web]'" in finished.stderr)

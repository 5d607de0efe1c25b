"""The screen of ``vbnet top``: what a viewer sees, drawn with Textual, in a terminal or in a browser.

Nothing is decided here but where things stand and which key does what. Only this module and ``grid`` import Textual,
and only ``vbnet top`` on a terminal imports them.
"""

from __future__ import annotations

from typing import ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from vbnet.cli.top.grid import Grid
from vbnet.telemetry.watch.look import State
from vbnet.telemetry.watch.sheets import title
from vbnet.telemetry.watch.table import Row, Sheet, Show, shown, shown_moment
from vbnet.telemetry.watch.tabs import TABS
from vbnet.telemetry.watch.viewer import View, Viewer

__all__ = ["TopApp"]

_STYLES: Final = {State.up: "green", State.hangs: "bold red", State.paused: "bold red", State.dead: "bold red"}
_WIDE_CELLS: Final = 96
_DIGITS: Final = "1234567890"
"""The key of each tab."""
_KEYS: Final = "?:help  enter:open  esc:back  /:filter  s:sort  space:pause  ←→:rewind  q:quit"
HELP: Final = """[b]vbnet top[/b] shows what a host node counts, a second and in all. It only
reads the node's files, so it also shows one that hangs or is dead.

[b]Where[/b]  1..9, 0, Tab          another table (Shift+Tab: the one before)
       arrows, PgUp, Home..  another row (also k j g G)
       Enter                 into a guest, a device, a whole row
       Esc, Backspace        back
[b]Order[/b]  s                     sort by the next column; or click its title
       r                     the other way round
       /                     only rows with these words; Esc shows all
[b]Time[/b]   Space                 pause, and go on
       ← →                   one look back, forward; with Shift ten
[b]Signs[/b]  !                     broke a rule, is stuck, or is an error
       ~                     something is lost just now
       -                     not known, or not known yet
       ▁▃█                   main rate of the row, the newest at the right

A counter that began again counts from 0; no rate is below 0. Columns
without room are left out. q leaves."""


class TextScreen(ModalScreen[None]):
    """A text above the table; any of the usual keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,q,enter,space", "dismiss", "Close")]
    DEFAULT_CSS = """
    TextScreen { align: center middle; }
    TextScreen > VerticalScroll { width: 78; max-height: 100%; height: auto; border: round $primary; padding: 0 1; }
    """

    def __init__(self, text: str | Text) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Make its one text."""
        with VerticalScroll():
            yield Static(self._text)


class TopApp(App[None]):
    """The screen.

    Args:
        viewer: has looked once.
        interval_s: time between looks, seconds, > 0.
        is_ticking: look by itself; a test looks when it likes.
    """

    ENABLE_COMMAND_PALETTE = False
    TITLE = "vbnet top"
    CSS = """
    #top, #tabs, #where, #keys { height: 1; width: 100%; }
    #top { text-style: bold; }
    #keys { color: $text-muted; }
    #tabs { link-style: none; link-color: $text; link-background: $background; }
    #filter { display: none; height: 1; border: none; padding: 0; }
    #filter.-open { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *[Binding(key, f"tab('{name}')", name, show=False) for key, name in zip(_DIGITS, TABS, strict=True)],
        Binding("tab", "turn(1)", "Next", show=False, priority=True),
        Binding("shift+tab", "turn(-1)", "Previous", show=False, priority=True),
        Binding("escape,backspace", "leave", "Back", show=False),
        Binding("slash", "filter", "Filter", show=False),
        Binding("s", "sort", "Sort", show=False),
        Binding("r,S", "reverse", "Reverse", show=False),
        Binding("space", "pause", "Pause", show=False),
        Binding("left", "go(-1)", "Back in time", show=False),
        Binding("right", "go(1)", "Forward in time", show=False),
        Binding("shift+left", "go_far(-1)", "Far back", show=False),
        Binding("shift+right", "go_far(1)", "Far forward", show=False),
        Binding("question_mark,h", "help", "Help", show=False),
        Binding("q,ctrl+c", "quit", "Quit", show=False),
    ]

    def __init__(self, viewer: Viewer, interval_s: float = 1.0, *, is_ticking: bool = True) -> None:
        super().__init__()
        self.viewer = viewer
        self._interval_s = interval_s
        self._is_ticking = is_ticking
        self._shown_path = list(viewer.path)
        self.grid = Grid(lambda key, length: viewer.history.line(key, viewer.shown_number, length))

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        yield Static(id="top")
        yield Static(id="tabs")
        yield Static(id="where")
        yield self.grid
        yield Input(placeholder="words that must be in a row; Enter keeps it, Esc drops it", id="filter", compact=True)
        yield Static(_KEYS, id="keys", markup=False)

    def on_mount(self) -> None:
        """Begin."""
        self.grid.focus()
        self.call_after_refresh(self.draw, is_new=True)
        if self._is_ticking:
            self.set_interval(self._interval_s, self.look)

    def on_resize(self) -> None:
        """Draw the lines whose text depends on the width."""
        self.call_after_refresh(self.draw)

    def look(self) -> None:
        """Look once more, and draw."""
        self.viewer.tick()
        self.draw()

    def draw(self, *, is_new: bool = False) -> None:
        """Draw what the viewer shows."""
        is_new = is_new or self._shown_path != self.viewer.path
        self._shown_path = list(self.viewer.path)
        view = self.viewer.view()
        self.grid.show(view, is_new=is_new)
        self.query_one("#top", Static).update(self._top())
        self.query_one("#tabs", Static).update(self._tabs())
        self.query_one("#where", Static).update(self._where(view))

    # --- lines of text --------------------------------------------------------------------------------------------

    def _top(self) -> Text:
        viewer = self.viewer
        condition, look = viewer.condition(), viewer.history.look(viewer.shown_number)
        is_live = viewer.number is None and not viewer.gone
        parts = [
            (f" {look.facts.name}  ", "bold"),
            (f"{'▶' if is_live else '■'} {viewer.time_text()}", "green" if is_live else "bold reverse"),
            (f"  {shown_moment(look.wall_s)}  ", ""),
            (f"{condition.state.value}", _STYLES.get(condition.state, "bold yellow")),
            (f": {condition.text}", ""),
        ]
        return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")

    def _tabs(self) -> str:
        is_wide = self.size.width >= _WIDE_CELLS
        shown = []
        for key, name in zip(_DIGITS, TABS, strict=True):
            text = f"{key} {name}" if is_wide else name
            is_here = name == self.viewer.path[0].to
            # A bracket that is meant as one is written with a backslash before it.
            label = f"[reverse]\\[{text}][/]" if is_here else text
            shown.append(f"[@click=app.tab('{name}')]{label}[/]")
        return " " + " ".join(shown)

    def _where(self, view: View) -> Text:
        viewer = self.viewer
        parts: list[tuple[str, str]] = []
        if len(viewer.path) > 1:
            parts.append((f" {title(viewer.path)}", "bold"))
        if viewer.words:
            parts.append((f" filter: {viewer.words}", "reverse"))
        count = f"{len(view.rows)} of {len(view.sheet.rows)}" if viewer.words else f"{len(view.sheet.rows)}"
        parts.append((f" {count} row{'' if count == '1' else 's'}", ""))
        problems = viewer.history.look(viewer.shown_number).problems
        if problems:
            parts.append((f"; {len(problems)} files not read, {problems[0]}", "bold red"))
        if view.sheet.note:
            parts.append((f"; {view.sheet.note}", "dim"))
        return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")

    # --- keys -----------------------------------------------------------------------------------------------------

    def action_tab(self, name: str) -> None:
        """Go to a tab."""
        self.viewer.choose(name)
        self.draw()

    def action_turn(self, by: int) -> None:
        """Go to the next tab, or the one before."""
        self.viewer.turn(by)
        self.draw()

    def action_leave(self) -> None:
        """Close the filter's line, or drop the filter, or go back."""
        entry = self.query_one("#filter", Input)
        if entry.has_class("-open"):
            self._close_filter(entry)
        self.viewer.back()
        entry.value = self.viewer.words
        self.draw()

    def action_filter(self) -> None:
        """Open the filter's line."""
        entry = self.query_one("#filter", Input)
        entry.value = self.viewer.words
        entry.add_class("-open")
        entry.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        if event.input.has_class("-open"):
            self.viewer.words = event.value
            self.draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keep the filter."""
        self._close_filter(event.input)

    def _close_filter(self, entry: Input) -> None:
        entry.remove_class("-open")
        self.grid.focus()

    def action_sort(self) -> None:
        """Sort by the next column."""
        self.viewer.sort_next()
        self.draw()

    def action_reverse(self) -> None:
        """Turn the order round."""
        self.viewer.reverse()
        self.draw()

    def on_grid_sorted(self, event: Grid.Sorted) -> None:
        """Sort by the column that was clicked."""
        self.viewer.sort_by(event.column)
        self.draw()

    def on_grid_opened(self, event: Grid.Opened) -> None:
        """Go into the row; where nothing is in it, show all of it, also what had no room."""
        if not self.viewer.open(event.row):
            self.push_screen(TextScreen(_whole(self.viewer.view().sheet, event.row)))
        self.draw()

    def action_pause(self) -> None:
        """Stop the picture, or let it go on."""
        self.viewer.pause()
        self.draw()

    def action_go(self, looks: int) -> None:
        """Go back or forward in time."""
        self.viewer.go(looks)
        self.draw()

    def action_go_far(self, sign: int) -> None:
        """Go far back or forward in time."""
        self.viewer.go_far(sign)
        self.draw()

    def action_help(self) -> None:
        """Show which key does what."""
        self.push_screen(TextScreen(HELP))


def _whole(sheet: Sheet, row: Row) -> Text:
    """Every column of a row, below each other."""
    columns = [
        (column, cell) for column, cell in zip(sheet.columns, row.cells, strict=True) if column.show is not Show.line
    ]
    width = max(len(column.title) for column, _ in columns)
    lines = [(f"{column.title:<{width}}  ", f"{shown(cell, column.show)}\n") for column, cell in columns]
    return Text.assemble(*((part, style) for title_, value in lines for part, style in ((title_, "bold"), (value, ""))))

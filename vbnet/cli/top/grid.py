"""A table on the screen that draws only the lines one sees, so a thousand rows cost as much as twenty.

Columns that have no room are left out, the least important first. The row under the cursor is known by its key, so it
stays under the cursor when rows change places. What is wrong with a row is said by ``!`` or ``~`` in its first column,
and by a colour besides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from vbnet.telemetry.watch.look import Key
from vbnet.telemetry.watch.table import NUMBERS, SIGNS, Mark, Row, Sheet, Show, shown, spark
from vbnet.telemetry.watch.viewer import View

__all__ = ["Grid", "fitted"]

_NUMBER_CELLS: Final = 8
_TEXT_CELLS: Final = 24
_TEXT_CELLS_MIN: Final = 6
_PROSE_CELLS: Final = 12
_LINE_CELLS: Final = 8
_LINE_CELLS_MAX: Final = 60
_EDGE_CELLS: Final = 2
_ROWS_MEASURED: Final = 2000
_TEXTS: Final = frozenset({Show.text, Show.prose})


@dataclass(frozen=True, slots=True)
class Fitted:
    """A column that is shown: its place in the sheet, and how many cells it has."""

    place: int
    cells: int


def fitted(sheet: Sheet, rows: Sequence[Row], width: int) -> list[Fitted]:
    """Choose the columns that have room.

    Args:
        sheet: whose columns.
        rows: whose texts.
        width: cells there are, sign and edges included.

    Returns:
        The columns from left to right; with the gaps between them they take at most ``width`` cells, unless not even
        those of rank 0 have room.
    """
    cells = {place: _wanted(sheet, rows, place) for place in range(len(sheet.columns))}
    for place in sorted(cells, key=lambda place: -sheet.columns[place].rank):
        if sheet.columns[place].rank == 0 or _taken(cells) <= width:
            break
        del cells[place]
    texts = [place for place in cells if sheet.columns[place].show in _TEXTS]
    while _taken(cells) > width and any(cells[place] > _TEXT_CELLS_MIN for place in texts):
        cells[max(texts, key=lambda place: cells[place])] -= 1
    _spread(sheet, rows, cells, width - _taken(cells))
    return [Fitted(place, cells[place]) for place in sorted(cells)]


def _wanted(sheet: Sheet, rows: Sequence[Row], place: int) -> int:
    column = sheet.columns[place]
    if column.show is Show.line:
        return _LINE_CELLS
    if column.show is Show.prose:
        return _PROSE_CELLS
    if column.show in NUMBERS:
        return max(_NUMBER_CELLS, len(column.title) + 1)
    return min(_TEXT_CELLS, max(len(column.title) + 1, _longest(rows, place)))


def _longest(rows: Sequence[Row], place: int) -> int:
    return max((cell_len(shown(row.cells[place], Show.text)) for row in rows[:_ROWS_MEASURED]), default=0)


def _taken(cells: dict[int, int]) -> int:
    return _EDGE_CELLS + sum(cells.values()) + len(cells)


def _spread(sheet: Sheet, rows: Sequence[Row], cells: dict[int, int], spare: int) -> None:
    """Give room that is left to texts that are longer, and then to the sparkline."""
    for place, own in list(cells.items()):
        if sheet.columns[place].show in _TEXTS:
            more = max(0, min(spare, _longest(rows, place) - own))
            cells[place] += more
            spare -= more
    for place, own in list(cells.items()):
        if sheet.columns[place].show is Show.line:
            cells[place] = max(own, min(_LINE_CELLS_MAX, own + spare))


class Grid(ScrollView, can_focus=True, inherit_bindings=False):
    """One sheet; arrow keys move, Enter opens, a click on a title sorts."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "grid--header", "grid--sorted", "grid--cursor", "grid--bad", "grid--notice", "grid--line", "grid--faint",
    }  # fmt: skip
    DEFAULT_CSS = """
    Grid {
        height: 1fr;
        overflow-x: hidden;
        scrollbar-size-vertical: 1;
        & > .grid--header { text-style: bold; color: $text-muted; background: $surface; }
        & > .grid--sorted { text-style: bold underline; }
        & > .grid--cursor { background: $primary-darken-2; text-style: bold; }
        & > .grid--bad { color: $text-error; text-style: bold; }
        & > .grid--notice { color: $text-warning; }
        & > .grid--line { color: $text-success; }
        & > .grid--faint { text-style: dim; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "edge(-1)", "First", show=False),
        Binding("end,G", "edge(1)", "Last", show=False),
        Binding("enter", "open", "Open", show=False),
    ]

    @dataclass
    class Sorted(Message):
        """Somebody clicked a column's title."""

        column: str

    @dataclass
    class Opened(Message):
        """Somebody chose a row."""

        row: Row

    def __init__(self, line: Callable[[Key, int], Sequence[float | None]]) -> None:
        """Make a grid; ``line`` gives the last so many main rates of a block."""
        super().__init__()
        self._line = line
        self._view = View(Sheet((), ()), [], "", is_reversed=False)
        self._fitted: list[Fitted] = []
        self._key: tuple[str, ...] | None = None
        self._cursor = 0

    # --- what is shown --------------------------------------------------------------------------------------------

    def show(self, view: View, *, is_new: bool) -> None:
        """Show this; ``is_new``: another table than before, so the cursor goes to its first row."""
        self._view = view
        if is_new:
            self._key, self._cursor = None, 0
            self.scroll_to(0, 0, animate=False)
        elif self._key is not None:
            place = next((place for place, row in enumerate(view.rows) if row.key == self._key), None)
            self._cursor = self._cursor if place is None else place
        self._cursor = max(0, min(self._cursor, len(view.rows) - 1))
        self._fit()

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return self._view.rows[self._cursor] if self._view.rows else None

    @property
    def hidden_columns(self) -> int:
        """How many columns have no room."""
        return len(self._view.sheet.columns) - len(self._fitted)

    @property
    def lines(self) -> list[str]:
        """The texts of what one sees, the titles first."""
        return [self.render_line(y).text for y in range(self.size.height)]

    def _fit(self) -> None:
        self.virtual_size = Size(self.size.width, len(self._view.rows) + 1)
        # Room for the scroll bar is kept always, so that nothing moves when it comes.
        self._fitted = fitted(self._view.sheet, self._view.rows, self.size.width - 1)
        self.refresh()

    def on_resize(self) -> None:
        """Choose the columns anew."""
        self._fit()
        self._follow()

    def render_line(self, y: int) -> Strip:
        """Draw one line of the screen: titles on the first, rows below."""
        width = self.size.width
        if y == 0:
            return self._strip(self._titles(), width, self.get_component_rich_style("grid--header"))
        place = int(self.scroll_offset.y) + y - 1
        if place >= len(self._view.rows):
            return Strip.blank(width, self.rich_style)
        is_here = place == self._cursor
        style = self.get_component_rich_style("grid--cursor") if is_here else Style()
        return self._strip(self._cells(self._view.rows[place], is_here=is_here), width, style)

    def _strip(self, segments: list[Segment], width: int, style: Style) -> Strip:
        strip = Strip(segments).adjust_cell_length(width)
        return strip.apply_style(self.rich_style + style)

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(f"grid--{name}", partial=True)

    def _titles(self) -> list[Segment]:
        segments = [Segment("  ")]
        for each in self._fitted:
            column = self._view.sheet.columns[each.place]
            is_sorted = column.name == self._view.sort
            goes_down = (column.show in NUMBERS) is not self._view.is_reversed
            text = column.title + (("▼" if goes_down else "▲") if is_sorted else "")
            segments.append(Segment(_fill(text, each.cells, column.show), self._style("sorted") if is_sorted else None))
            segments.append(Segment(" "))
        return segments

    def _cells(self, row: Row, *, is_here: bool) -> list[Segment]:
        marked = {Mark.bad: self._style("bad"), Mark.notice: self._style("notice")}.get(row.mark)
        segments = [Segment(f"{SIGNS[row.mark]}{'>' if is_here else ' '}", marked)]
        for each in self._fitted:
            show = self._view.sheet.columns[each.place].show
            if show is Show.line:
                line = spark(self._line(row.line, each.cells)) if row.line is not None else ""
                segments.append(Segment(set_cell_size(line, each.cells), self._style("line")))
            else:
                cell = row.cells[each.place]
                faint = self._style("faint") if cell in {None, 0} else None
                segments.append(Segment(_fill(shown(cell, show), each.cells, show), faint or marked))
            segments.append(Segment(" "))
        return segments

    # --- moving ---------------------------------------------------------------------------------------------------

    def action_move(self, by: int) -> None:
        """Go ``by`` rows down."""
        self._go(self._cursor + by)

    def action_page(self, by: int) -> None:
        """Go ``by`` pages down."""
        self._go(self._cursor + by * max(1, self.size.height - 2))

    def action_edge(self, sign: int) -> None:
        """Go to the first row (-1) or the last (1)."""
        self._go(0 if sign < 0 else len(self._view.rows) - 1)

    def action_open(self) -> None:
        """Open the row under the cursor."""
        if self.row is not None:
            self.post_message(self.Opened(self.row))

    def on_click(self, event: events.Click) -> None:
        """Sort by the title that was clicked; go to the row that was, or open it when one is there already."""
        if event.y == 0:
            column = self._column_at(event.x)
            if column is not None:
                self.post_message(self.Sorted(column))
            return
        place = int(self.scroll_offset.y) + event.y - 1
        if place >= len(self._view.rows):
            return
        if place == self._cursor:
            self.action_open()
        self._go(place)

    def _column_at(self, x: int) -> str | None:
        left = _EDGE_CELLS
        for each in self._fitted:
            if left <= x < left + each.cells + 1:
                return self._view.sheet.columns[each.place].name
            left += each.cells + 1
        return None

    def _go(self, place: int) -> None:
        self._cursor = max(0, min(place, len(self._view.rows) - 1))
        self._key = self.row.key if self.row is not None else None
        self._follow()
        self.refresh()

    def _follow(self) -> None:
        """Scroll so far that one sees the cursor."""
        top, shown_rows = int(self.scroll_offset.y), max(1, self.size.height - 1)
        if self._cursor < top:
            self.scroll_to(0, self._cursor, animate=False)
        elif self._cursor >= top + shown_rows:
            self.scroll_to(0, self._cursor - shown_rows + 1, animate=False)


def _fill(text: str, cells: int, show: Show) -> str:
    """A text in exactly so many cells; one that is cut ends in ``…``."""
    length = cell_len(text)
    if length > cells:
        return f"{set_cell_size(text, cells - 1)}…"
    return " " * (cells - length) + text if show in NUMBERS else set_cell_size(text, cells)

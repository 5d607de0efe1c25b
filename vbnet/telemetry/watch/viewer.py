"""What somebody who looks at a node sees: where they are, in which order, of which moment.

Everything that a screen decides is decided here, so that it is tried without a screen: tabs and the way into a guest
and a device, order and filter, pausing, going back and forward in time, and what is said about the node.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vbnet.errors import VbnetError
from vbnet.telemetry.catalogue import Known, installed
from vbnet.telemetry.watch.history import History
from vbnet.telemetry.watch.look import Condition, State, Watcher, condition
from vbnet.telemetry.watch.rates import Places
from vbnet.telemetry.watch.sheets import sheet
from vbnet.telemetry.watch.table import Row, Sheet, Step, arranged, shown_moment
from vbnet.telemetry.watch.tabs import TABS

__all__ = ["View", "Viewer"]

_FAR: Final = 10
"""Looks that a long step goes."""


@dataclass(frozen=True, slots=True)
class View:
    """A table as it is to be shown.

    Attributes:
        sheet: with all its rows. rows: those that are wanted, in order.
        sort: name of the column they are sorted by; "": none. is_reversed: against that column's usual direction.
    """

    sheet: Sheet
    rows: list[Row]
    sort: str
    is_reversed: bool


class Viewer:
    """Looks at one node, and remembers.

    Args:
        watcher: of the node.
        known: what is declared; None takes what is installed.
        now_s: seconds since 1970.

    Raises:
        NotFoundError: no node ran there, or it was cleaned. ResourceError: its folder cannot be read.

    Attributes:
        path: where one is; its first step is a tab.
        words: the filter.
        number: of the look that is shown while paused; None: the newest, always.
        gone: why the node cannot be looked at any more; "": it can.
    """

    def __init__(
        self, watcher: Watcher, known: Known | None = None, now_s: Callable[[], float] = time.time, tab: str = "guests"
    ) -> None:
        self.watcher = watcher
        self.places = Places((known or installed()).metrics)
        self.history = History(self.places)
        self.path: list[Step] = [Step(tab)]
        self.words = ""
        self.number: int | None = None
        self.gone = ""
        self._now_s = now_s
        self._orders: dict[str, tuple[str, bool]] = {}
        self.history.append(watcher.look())

    # --- time -----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Look once more. When the node's folder is gone, what was seen last stays."""
        try:
            self.history.append(self.watcher.look())
        except VbnetError as error:
            self.gone = str(error)
        else:
            self.gone = ""
        if self.number is not None:
            self.number = max(self.number, self.history.numbers.start)

    @property
    def shown_number(self) -> int:
        """Number of the look that is shown."""
        return self.history.numbers[-1] if self.number is None else self.number

    def pause(self) -> None:
        """Stay with the look that is shown, or go on with the newest."""
        self.number = self.shown_number if self.number is None else None

    def go(self, looks: int) -> None:
        """Go back (below 0) or forward in time; forward beyond the newest look is the present again."""
        numbers = self.history.numbers
        wanted = self.shown_number + looks
        self.number = None if wanted > numbers[-1] else max(numbers.start, wanted)

    def go_far(self, sign: int) -> None:
        """Go many looks back (-1) or forward (1), as far as there are any."""
        numbers = self.history.numbers
        wanted = self.shown_number + sign * _FAR
        self.number = min(max(numbers.start, wanted), numbers[-1])

    def time_text(self) -> str:
        """Whether it is live, and how long ago what is shown was."""
        look = self.history.look(self.shown_number)
        age_s = max(0.0, self._now_s() - look.wall_s)
        if self.number is not None:
            return f"paused, {age_s:.0f} s ago"
        return f"last picture, {age_s:.0f} s ago" if self.gone else "live"

    def condition(self) -> Condition:
        """How the node was when what is shown was; or that it is gone."""
        look = self.history.look(self.shown_number)
        if self.gone and self.number is None:
            return Condition(State.ended, f"it has ended and was cleaned; last seen at {shown_moment(look.wall_s)}")
        return condition(look)

    # --- places ---------------------------------------------------------------------------------------------------

    def choose(self, tab: str) -> None:
        """Go to a tab."""
        self.path = [Step(tab)]

    def turn(self, by: int) -> None:
        """Go to the tab that is ``by`` further, round and round."""
        names = list(TABS)
        self.choose(names[(names.index(self.path[0].to) + by) % len(names)])

    def open(self, row: Row) -> bool:
        """Go into a row; False: there is nothing in it."""
        if row.opens is None or row.opens == self.path[-1]:
            return False
        self.path.append(row.opens)
        self.words = ""
        return True

    def back(self) -> bool:
        """Go back to where one came from, or drop the filter; False: there is nothing to go back from."""
        if self.words:
            self.words = ""
            return True
        if len(self.path) > 1:
            self.path.pop()
            return True
        return False

    # --- order ----------------------------------------------------------------------------------------------------

    def sort_by(self, name: str) -> None:
        """Sort by this column; once more turns the order round."""
        view = self.view()
        self._orders[self.path[-1].to] = (name, not view.is_reversed if view.sort == name else False)

    def sort_next(self) -> None:
        """Sort by the next column."""
        view = self.view()
        names = [column.name for column in view.sheet.columns if column.name != "line"]
        place = names.index(view.sort) + 1 if view.sort in names else 0
        self._orders[self.path[-1].to] = (names[place % len(names)], False)

    def reverse(self) -> None:
        """Turn the order round."""
        view = self.view()
        self._orders[self.path[-1].to] = (view.sort, not view.is_reversed)

    def view(self) -> View:
        """What is to be seen."""
        made = sheet(self.history.pair(self.shown_number), self.places, self.path)
        sort, is_reversed = self._orders.get(self.path[-1].to, ("", False))
        sort = sort if made.column(sort) is not None else made.sort
        rows = arranged(made, words=self.words, sort=sort, is_reversed=is_reversed)
        return View(made, rows, sort, is_reversed)

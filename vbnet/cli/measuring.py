"""What commands that measure a lab share: Ctrl-C, progress on standard error, and a folder for the results."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

from vbnet.cli import output
from vbnet.cli.failure import exit_code
from vbnet.cli.output import Format
from vbnet.cli.progress import Progress
from vbnet.cluster.lab import LabEvent

if TYPE_CHECKING:
    from vbnet.load.store import ReportFolder

INTERRUPTED: Final = 130

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Measurement(Protocol[T_co]):
    """Something that brings a lab up, measures it, and takes it down whatever happens."""

    is_measuring: bool

    async def run(self) -> T_co:
        """Do so."""


async def until_stopped(make: Callable[[asyncio.Event], Measurement[T]]) -> T:
    """Measure until the end, or until the user stops it: then what was measured until then is told.

    Args:
        make: makes the measurement, which ends early once the event is set.

    Raises:
        KeyboardInterrupt: the user stopped it before anything was measured.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - this runs in one
    measurement = make(stop)

    def ask_stop() -> None:
        # Before anything is measured there is nothing to report: coming up is called off.
        if measurement.is_measuring:
            stop.set()
        else:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, ask_stop)
    try:
        return await measurement.run()
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


class Shown:
    """Shows how a measurement goes, on standard error, and says once when its folder takes nothing more.

    Args:
        how: only tables are for people.
        folder: that is written into, or None.
        what: is measured, in a word or two.
        silent: states of the lab that nobody wants to hear of.
    """

    def __init__(
        self, how: Format, folder: ReportFolder | None, what: str, silent: Collection[str] = ("stopping",)
    ) -> None:
        self.is_shown = how is Format.table
        self.folder = folder
        self.progress = Progress(Format.table)
        self._what = what
        self._silent = silent
        self._is_told = False

    def __enter__(self) -> Self:
        if self.is_shown:
            self.progress.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()

    def lab(self, event: LabEvent) -> None:
        """One step of the lab's life."""
        if self.is_shown and event.state not in self._silent:
            self.progress.show(event)

    def note(self, text: str) -> None:
        """Show a line."""
        if self.is_shown:
            output.note(text)
        self.tell_problem()

    def tell_problem(self) -> None:
        """Say, once, that nothing can be written any more."""
        if self.folder is not None and self.folder.problem is not None and not self._is_told:
            self._is_told = True
            output.note(f"vbnet: {self.folder.problem}; {self._what} goes on")


def outcome(folder: ReportFolder | None, how: Format, what: str, *, is_interrupted: bool, is_good: bool) -> int:
    """Say where the results are, and return the exit code.

    Args:
        folder: that was written into, or None.
        how: only tables are for people.
        what: is in the folder.
        is_interrupted: by the user.
        is_good: nothing that was measured is wrong.
    """
    if folder is not None and folder.problem is not None:
        output.note(f"vbnet: {folder.problem}; what was written before is there, the result above is whole")
        return exit_code(folder.problem)
    if folder is not None and how is Format.table:
        output.note(f"{what} are in {folder.folder}")
    return INTERRUPTED if is_interrupted else int(not is_good)

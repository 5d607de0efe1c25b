"""Where a soak is written down, and read again to go on with it.

    DIR/soak.json         what was asked for: profile, seed, length, schedule
    DIR/samples.jsonl     one line an interval, at once
    DIR/windows.jsonl     one line a window, when it is over: where a soak goes on is behind the last whole line
    DIR/summary.json      how far it is, and what was found; replaced whole after each window
    DIR/result.json, DIR/report.md, DIR/report.html

A folder without space ends the writing, not the run, and nothing that was written is lost. What lies behind the last
whole line of a file was cut short by the death of its writer: it is removed before lines are added.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vbnet.errors import NotFoundError, ResourceError, UsageError
from vbnet.load.soak.profile import SoakPlan
from vbnet.load.soak.report import html_page, markdown
from vbnet.load.soak.result import SoakResult, SoakSample, Window
from vbnet.load.soak.run import Past
from vbnet.load.soak.schedule import Fault
from vbnet.load.store import ReportFolder, as_json

__all__ = ["Asked", "SoakStore", "read_asked", "read_past"]

ASKED, SUMMARY = "soak.json", "summary.json"

T = TypeVar("T", bound=msgspec.Struct)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for when a soak began.

    Attributes:
        profile: the file or the name, as an absolute path where it is a file.
        settings: the profile's keys, `for` and `seed` as they were asked for.
        began: when, as ISO 8601.
        schedule: every fault.
    """

    profile: str
    settings: dict[str, Any]
    began: str
    schedule: list[Fault]

    def refuse_other(self, plan: SoakPlan, folder: Path) -> None:
        """Go on only with what was begun.

        Raises:
            UsageError: the plan is another one.
        """
        now = msgspec.json.decode(msgspec.json.encode(plan.settings()))
        if now != self.settings or plan.schedule != self.schedule:
            keys = sorted(key for key in {*now, *self.settings} if now.get(key) != self.settings.get(key))
            raise UsageError(
                f"{folder} has a soak of another profile (different: {', '.join(keys) or 'the schedule'}); "
                f"go on with the profile as it was, or begin in a new folder",
                path=str(folder),
            )


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """How far a soak is."""

    elapsed_s: float
    planned_s: float
    faults: int
    planned_faults: int
    findings: int
    sent: int
    lost_to_faults: int
    lost_otherwise: int


class SoakStore(ReportFolder):
    """Writes one soak into a folder.

    Args:
        folder: new or empty; or one that :func:`read_asked` has read.
        plan: what is soaked.
        asked: what is asked for now, or was when it began.
        past: what was written before; None begins anew.

    Raises:
        ExistsError: there is something in it. ResourceError: it cannot be made or written into.
    """

    def __init__(self, folder: Path, plan: SoakPlan, asked: Asked, past: Past | None = None) -> None:
        super().__init__(folder, goes_on=past is not None)
        self._plan = plan
        self._windows = list(past.windows) if past is not None else []
        self.open("windows")
        if past is None:
            self.replace(ASKED, as_json(asked))
        if self.problem is not None:
            raise self.problem

    def sample(self, sample: SoakSample) -> None:
        """Add a sample."""
        self.append("samples", sample)

    def window(self, window: Window) -> None:
        """Add a window; a soak that is gone on with does so behind it."""
        self.append("windows", window)
        self._windows.append(window)
        faults = [one for one in self._windows if one.mark is not None]
        lost = sum(one.lost for one in faults)
        self.replace(
            SUMMARY,
            as_json(
                Summary(
                    elapsed_s=window.end_s,
                    planned_s=self._plan.total_s,
                    faults=sum(not one.is_cut for one in faults),
                    planned_faults=len(self._plan.schedule),
                    findings=sum(len(one.findings) for one in self._windows),
                    sent=sum(one.counts.sent for one in self._windows),
                    lost_to_faults=lost,
                    lost_otherwise=sum(one.lost for one in self._windows) - lost,
                )
            ),
        )

    def finish(self, result: SoakResult) -> None:
        """Write the reports."""
        self.replace("result.json", as_json(result))
        self.replace("report.md", markdown(result).encode())
        self.replace("report.html", html_page(result).encode())
        self.close()


def read_asked(folder: Path) -> Asked:
    """Read what was asked for in a folder.

    Raises:
        NotFoundError: no soak was begun there. ResourceError: it cannot be read.
    """
    try:
        return msgspec.json.decode((folder / ASKED).read_bytes(), type=Asked)
    except FileNotFoundError:
        raise NotFoundError(
            f"{folder} has no {ASKED}: no soak was begun there; begin one with `vbnet soak PROFILE --out {folder}`",
            path=str(folder),
        ) from None
    except (OSError, msgspec.DecodeError) as error:
        raise ResourceError(f"cannot read {folder / ASKED}: {error}", path=str(folder)) from error


def read_past(folder: Path, asked: Asked) -> Past:
    """Read what a soak did; lines that were cut short are left out."""
    return Past(
        began=asked.began,
        windows=list(_lines(folder / "windows.jsonl", Window)),
        samples=list(_lines(folder / "samples.jsonl", SoakSample)),
    )


def _lines(path: Path, kind: type[T]) -> list[T]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ResourceError(
            f"cannot read {path}: {error.strerror or os.strerror(error.errno or 0)}",
            errno=error.errno or 0,
            path=str(path),
        ) from error
    found = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            found.append(msgspec.json.decode(line, type=kind))
        except msgspec.DecodeError as error:
            raise ResourceError(f"{path}:{number} cannot be read: {error}", path=str(path)) from error
    return found

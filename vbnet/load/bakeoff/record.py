"""Everything that a bake-off measured, as it is written down and read again."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from vbnet.errors import ResourceError, UsageError
from vbnet.load.bench.machine import Machine
from vbnet.load.bench.row import Row

__all__ = ["COUNT_MIN", "Cell", "Median", "Reading", "Record", "cells", "load_record"]

FORMAT = 1
COUNT_MIN = 3
"""Of fewer measurements nobody can say how they spread."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement.

    Attributes:
        subject: its name; ``model`` and ``without`` are its parts.
        workload: its name.
        turn: the repeat it belongs to, from 0.
        figures: by the names of :data:`vbnet.load.bakeoff.figures.FIGURES`, in base units.
    """

    subject: str
    model: str
    without: str = ""
    workload: str
    turn: int
    figures: dict[str, float]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A whole bake-off.

    Attributes:
        contest: the keys of its file.
        began: when, as ISO 8601.
        seconds: how long all of it took.
        vbnet: the version.
        machine: what it ran on.
        placement: where the cores of host and guests were to each other at the beginning and at the end.
        state: ``finished``, or ``interrupted`` by the user: then of what was measured until then.
        readings: in the order in which they were made.
        missing: of each subject that could not go on, why.
        aside: measurements of single mechanisms, and of what others offer, as ``vbnet bench`` makes them.
        notes: what else a reader must know, such as peers that are not installed.
        format: of this record.
    """

    contest: dict[str, Any]
    began: str
    seconds: float
    vbnet: str
    machine: Machine
    placement: tuple[str, str]
    state: str
    readings: list[Reading]
    missing: dict[str, str] = {}
    aside: list[Row] = []
    notes: list[str] = []
    format: int = FORMAT


class Median(msgspec.Struct, frozen=True):
    """Several measurements of one figure."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Median:
        """Sum them up; there is at least one."""
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1], len(ordered))

    def may_be(self, other: Median) -> bool:
        """Whether their order may be chance: the ranges overlap, or there are too few."""
        are_few = min(self.count, other.count) < COUNT_MIN
        return are_few or (self.least <= other.most and other.least <= self.most)


class Cell(msgspec.Struct, frozen=True):
    """A subject in a workload: every figure over all repeats."""

    subject: str
    model: str
    without: str
    workload: str
    figures: dict[str, Median]


def cells(readings: Iterable[Reading]) -> Iterator[Cell]:
    """Yield all readings of a subject in a workload as one, in the order in which they came first."""
    found: dict[tuple[str, str], list[Reading]] = {}
    for reading in readings:
        found.setdefault((reading.workload, reading.subject), []).append(reading)
    for (workload, subject), own in found.items():
        names = dict.fromkeys(name for reading in own for name in reading.figures)
        figures = {
            name: Median.of(reading.figures[name] for reading in own if name in reading.figures) for name in names
        }
        yield Cell(subject, own[0].model, own[0].without, workload, figures)


def load_record(path: Path) -> Record:
    """Read a record that a bake-off wrote.

    Raises:
        ResourceError: it cannot be read. UsageError: it is no record, or of another version's format.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror}", errno=error.errno or 0, path=str(path)) from error
    try:
        record: Record = msgspec.json.decode(content, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is no result of `vbnet bakeoff`: {error}; give the result.json of its folder", path=str(path)
        ) from error
    if record.format != FORMAT:
        raise UsageError(
            f"{path} has format {record.format}, this vbnet reads {FORMAT}; measure again with this version",
            path=str(path),
        )
    return record

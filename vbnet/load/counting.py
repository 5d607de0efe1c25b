"""What the guests of a run have counted, read from their counters files and added up.

A guest that was killed has its file removed. It is held open here, so its last words are read all the same; what its
successor counts comes on top, and totals never go back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from vbnet._native import TRAFFIC_SINK_COUNTERS, TRAFFIC_SOURCE_COUNTERS, histogram_quantile
from vbnet.errors import VbnetError
from vbnet.sharedmem import read_blocks

__all__ = ["PERCENTILES", "Counter", "Counts", "Latency"]

PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999}
_SOURCE, _SINK = "traffic_source", "traffic_sink"
_LATENCY: Final = len(TRAFFIC_SINK_COUNTERS)
_BUCKETS: Final = 4
"""Words in front of a histogram's buckets: count, sum, least, largest."""


@dataclass(frozen=True, slots=True)
class Latency:
    """A histogram of nanoseconds: its words, of one guest or added up."""

    words: tuple[int, ...] = ()

    def __add__(self, other: Latency) -> Latency:
        if not self.words or not other.words:
            return self if self.words else other
        added = [one + two for one, two in zip(self.words, other.words, strict=True)]
        added[2:_BUCKETS] = _span(self, other)
        return Latency(tuple(added))

    def since(self, before: Latency) -> Latency:
        """Return what was recorded after ``before``; its least and largest are those of the buckets."""
        if not before.words:
            return self
        left = [max(0, now - then) for now, then in zip(self.words, before.words, strict=True)]
        return Latency(tuple(left))

    @property
    def count(self) -> int:
        """How many were recorded."""
        return sum(self.words[_BUCKETS:])

    def percentile_ns(self, share: float) -> int | None:
        """Return the latency below or at which a share of all lie, within 1/16; None: there are none."""
        if not self.count:
            return None
        words = list(self.words)
        words[3] = (1 << 63) - 1
        return histogram_quantile(words, share)

    def percentiles_ns(self) -> dict[str, int]:
        """Return the usual ones by name, and ``max``; {} when there are none."""
        if not self.count:
            return {}
        found = {name: self.percentile_ns(share) or 0 for name, share in PERCENTILES.items()}
        return {**found, "max": self.percentile_ns(1.0) or 0}


def _span(one: Latency, two: Latency) -> tuple[int, int]:
    """The least and the largest of two histograms; one that counted nothing has none."""
    least = min((latency.words[2] for latency in (one, two) if latency.words[0]), default=0)
    return least, max(one.words[3], two.words[3])


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted so far: by the senders, and by those that count what arrives."""

    sent: int = 0
    sent_bytes: int = 0
    blocked: int = 0
    late_max_ns: int = 0
    received: int = 0
    received_bytes: int = 0
    reordered: int = 0
    duplicates: int = 0
    corrupted: int = 0
    foreign: int = 0
    misdelivered: int = 0
    given_up: int = 0

    def __add__(self, other: Counts) -> Counts:
        sums = {name: getattr(self, name) + getattr(other, name) for name in Counts.__struct_fields__}
        return Counts(**{**sums, "late_max_ns": max(self.late_max_ns, other.late_max_ns)})

    def __sub__(self, other: Counts) -> Counts:
        """What was counted after ``other``; of the latest frame it is not known when that was."""
        left = {name: getattr(self, name) - getattr(other, name) for name in Counts.__struct_fields__}
        return Counts(**{**left, "late_max_ns": self.late_max_ns})


@dataclass
class _Guest:
    """What one guest said last, and what those before it in its place had counted."""

    now: Counts = field(default_factory=Counts)
    latency: Latency = field(default_factory=Latency)
    before: Counts = field(default_factory=Counts)
    latency_before: Latency = field(default_factory=Latency)
    file: int | None = None
    """Descriptor of the file that it counts in."""

    def ended(self) -> None:
        """What it has counted is all; the next begins at 0."""
        self.before, self.latency_before = self.before + self.now, self.latency_before + self.latency
        self.now, self.latency = Counts(), Latency()
        if self.file is not None:
            os.close(self.file)
            self.file = None


class Counter:
    """Reads the counters files of guests.

    Args:
        files: of each guest the counters file of its process.
    """

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files
        self._guests = {name: _Guest() for name in files}

    def look(self) -> float:
        """Read every file that is there; the moment, in seconds of the monotonic clock."""
        moment = time.monotonic()
        for name, path in self._files.items():
            self._look_at(self._guests[name], name, path)
        return moment

    def total(self, names: Iterable[str] | None = None) -> Counts:
        """Return what these guests, or all, have counted."""
        total = Counts()
        for guest in self._chosen(names):
            total = total + guest.before + guest.now
        return total

    def latency(self, names: Iterable[str] | None = None) -> Latency:
        """Return what these guests, or all, have recorded."""
        total = Latency()
        for guest in self._chosen(names):
            total = total + guest.latency_before + guest.latency
        return total

    def _chosen(self, names: Iterable[str] | None) -> Sequence[_Guest]:
        return [guest for name, guest in self._guests.items() if names is None or name in set(names)]

    def close(self) -> None:
        """Let go of every file."""
        for guest in self._guests.values():
            guest.ended()

    def _look_at(self, guest: _Guest, name: str, path: Path) -> None:
        if guest.file is not None and not _is_at(guest.file, path):
            _read(guest, name)
            guest.ended()
        if guest.file is None:
            with suppress(OSError):  # its process has not begun, or has ended: what was said before stands
                guest.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if guest.file is not None:
            _read(guest, name)


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one of this name; a number cannot come again while it is open."""
    try:
        there = path.stat()
    except OSError:
        return False
    held = os.fstat(file)
    return (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)


def _read(guest: _Guest, name: str) -> None:
    try:
        blocks = [block for block in read_blocks(f"/proc/self/fd/{guest.file}") if block.labels.get("guest") == name]
    except VbnetError:
        return  # it begins just now
    words = {block.kind: block.values for block in blocks}
    if _SOURCE not in words or _SINK not in words:
        return
    now = _counts(words[_SOURCE], words[_SINK])
    # A block that was given back while its file stays: a guest that began anew in the same process.
    if now.sent < guest.now.sent or now.received < guest.now.received:
        guest.before, guest.latency_before = guest.before + guest.now, guest.latency_before + guest.latency
    guest.now, guest.latency = now, Latency(words[_SINK][_LATENCY:])


def _counts(source: Sequence[int], sink: Sequence[int]) -> Counts:
    sent = dict(zip(TRAFFIC_SOURCE_COUNTERS, source, strict=False))
    got = dict(zip(TRAFFIC_SINK_COUNTERS, sink, strict=False))
    return Counts(
        sent=sent["frames"],
        sent_bytes=sent["bytes"],
        blocked=sent["blocked"],
        late_max_ns=sent["late_max_ns"],
        received=got["frames"] - got["duplicates"],
        received_bytes=got["bytes"],
        reordered=got["reordered"],
        duplicates=got["duplicates"],
        corrupted=got["corrupted"],
        foreign=got["foreign"],
        misdelivered=got["misdelivered"],
        given_up=got["lost"],
    )

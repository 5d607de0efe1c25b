"""What the guests of a run have counted, read from their counters files and added up.

A guest that was killed leaves its file for a moment, or none: what it had said before is kept, and what its successor
counts comes on top, so that totals never go back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
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
    inode: int = 0


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

    def _look_at(self, guest: _Guest, name: str, path: Path) -> None:
        try:
            inode = path.stat().st_ino
            blocks = [block for block in read_blocks(path) if block.labels.get("guest") == name]
        except (OSError, VbnetError):
            return  # its process has ended, or begins just now: what it said before stands
        words = {block.kind: block.values for block in blocks}
        if _SOURCE not in words or _SINK not in words:
            return
        now = _counts(words[_SOURCE], words[_SINK])
        # The number of a file that was removed may come again; a count that went back gives its successor away.
        if guest.inode not in (0, inode) or now.sent < guest.now.sent or now.received < guest.now.received:
            guest.before, guest.latency_before = guest.before + guest.now, guest.latency_before + guest.latency
        guest.now, guest.latency, guest.inode = now, Latency(words[_SINK][_LATENCY:]), inode


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
        given_up=got["lost"],
    )

"""What a metric is: declared once by its owner, read by the exporter, the dashboards and the documentation.

A process counts in *blocks* of words in shared memory (docs/wire/counters.md). Whoever writes a kind of block declares
it beside itself, in a ``metrics.py``, as one :class:`MetricBlock`: which labels say whose the block is, and what each
word means. Metrics of one name are one family: ``fixed`` labels tell its members apart.

    NIC = MetricBlock(
        "nic",
        ("guest", "device"),
        {
            "frames": Metric("vbnet_nic_packets_total", "packets", "Frames taken."),
            "drop_runt": Metric("vbnet_nic_drop_total", "packets", "Frames not taken.", fixed={"reason": "runt"}),
        },
    )

Names follow Prometheus: ``vbnet_`` first, base units, ``_total`` for counters. A reason for a drop is a value of the
label ``reason``, so the sum over a family's labels is the sum of all drops.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from vbnet.errors import UsageError

__all__ = ["HISTOGRAM_WORDS", "PROGRAM_PREFIX", "Metric", "MetricBlock", "MetricCatalogue", "MetricKind"]

_NAME = re.compile(r"vbnet_[a-z][a-z0-9_]*\Z")
_LABEL = re.compile(r"[a-z][a-z0-9_]*\Z")

PROGRAM_PREFIX: Final = "vbnet_guest_program_"
"""How metrics begin that guests' own programs declare (:mod:`vbnet.sharedmem.programs`), and no others."""
HISTOGRAM_WORDS: Final = 596
"""Words of a histogram (``rust/core/src/shm/histogram.rs``): count, sum, smallest, largest, then its buckets."""


class MetricKind(enum.StrEnum):
    """How a metric moves, and how its word is shown."""

    COUNTER = "counter"
    """Goes up; starts at 0 with its block."""
    GAUGE = "gauge"
    """Goes up and down."""
    HISTOGRAM = "histogram"
    """``HISTOGRAM_WORDS`` words instead of one."""
    INFO = "info"
    """Shown as 1 under a label ``shown_as`` whose value is the word."""
    STATE = "state"
    """One member for each of ``states``: 1 for that whose place the word says, else 0."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One word of a block (or one histogram): one member of the family of its name.

    Args:
        name: ``vbnet_…`` in lower case; ends in ``_total`` if and only if it is a counter, in ``_info`` if it is one.
        unit: base unit in the plural (``"bytes"``, ``"seconds"``, ``"packets"``), or a noun for what is counted.
        help: one sentence for the operator; the same for all of a family.
        kind: how it moves.
        fixed: labels of this member, known when it is declared (``{"reason": "no_room"}``).
        detail: what this member means beside its siblings, for the documentation.
        per_unit: how much of what the word counts makes one ``unit`` (1_000_000_000 for nanoseconds shown in seconds).
        shown_as: INFO and STATE: name of the label that shows the word.
        states: STATE: what each value of the word is called, from 0 on.

    Raises:
        UsageError: something breaks the rules above (the declaring module's mistake).
    """

    name: str
    unit: str
    help: str
    kind: MetricKind = MetricKind.COUNTER
    fixed: Mapping[str, str] = field(default_factory=dict, hash=False)
    detail: str = ""
    per_unit: int = 1
    shown_as: str = ""
    states: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise UsageError(f"metric name {self.name!r} is not vbnet_ and lower case", name=self.name)
        if self.name.endswith("_total") is not (self.kind is MetricKind.COUNTER):
            raise UsageError(f"metric {self.name!r}: counters, and only they, end in _total", name=self.name)
        if self.name.endswith("_info") is not (self.kind is MetricKind.INFO):
            raise UsageError(f"metric {self.name!r}: infos, and only they, end in _info", name=self.name)
        for label in (*self.fixed, *((self.shown_as,) if self.shown_as else ())):
            _check_label(label, self.name)
        if bool(self.shown_as) is not (self.kind in {MetricKind.INFO, MetricKind.STATE}):
            raise UsageError(f"metric {self.name!r}: infos and states, and only they, have shown_as", name=self.name)
        if bool(self.states) is not (self.kind is MetricKind.STATE):
            raise UsageError(f"metric {self.name!r}: states, and only they, name their states", name=self.name)
        if self.per_unit < 1:
            raise UsageError(f"metric {self.name!r}: {self.per_unit} per unit, at least 1", name=self.name)
        object.__setattr__(self, "fixed", MappingProxyType(dict(self.fixed)))

    @property
    def words(self) -> int:
        """How many words of its block it takes."""
        return HISTOGRAM_WORDS if self.kind is MetricKind.HISTOGRAM else 1

    @property
    def own_labels(self) -> tuple[str, ...]:
        """Names of the labels it adds to its block's."""
        return (*self.fixed, *((self.shown_as,) if self.shown_as else ()))


@dataclass(frozen=True, slots=True)
class MetricBlock:
    """One kind of block.

    Args:
        kind: under which it is found in counters files; lower case, at most 32 bytes.
        labels: names of the labels that say whose it is. A block has them in its file; others it has there, which tell
            blocks apart but grow without bound (a number of a session), are not shown.
        values: what each word means, by the writer's name for it, in the order of the words.

    Raises:
        UsageError: two values are one (the declaring module's mistake).
    """

    kind: str
    labels: tuple[str, ...]
    values: Mapping[str, Metric] = field(hash=False)

    def __post_init__(self) -> None:
        if not _LABEL.match(self.kind) or len(self.kind) > 32:  # noqa: PLR2004 - what the file has room for
            raise UsageError(f"kind of block {self.kind!r} is not lower case, or too long", kind=self.kind)
        for label in self.labels:
            _check_label(label, self.kind)
        seen = set()
        for metric in self.values.values():
            if (member := (metric.name, *sorted(metric.fixed.items()))) in seen:
                raise UsageError(f"block {self.kind!r} has {metric.name!r} twice", kind=self.kind, name=metric.name)
            seen.add(member)
            if twice := set(self.labels) & set(metric.own_labels):
                raise UsageError(f"metric {metric.name!r} has label {twice.pop()!r} of its block", name=metric.name)
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    @property
    def words(self) -> int:
        """How many words a block has."""
        return sum(metric.words for metric in self.values.values())

    def places(self) -> Iterator[tuple[int, str, Metric]]:
        """First word, name and metric of each value."""
        place = 0
        for name, metric in self.values.items():
            yield place, name, metric
            place += metric.words

    def index(self, name: str) -> int:
        """First word of the value that its writer calls ``name``; KeyError: there is none."""
        for place, known, _ in self.places():
            if known == name:
                return place
        raise KeyError(name)


class MetricCatalogue:
    """All kinds of block that are known.

    Args:
        blocks: their declarations.

    Attributes:
        blocks: by kind.
        families: each family's members, by name, in order of declaration.

    Raises:
        UsageError: two blocks have one kind or one family, or members of a family differ in what they have in common.
    """

    def __init__(self, blocks: Iterable[MetricBlock]) -> None:
        self.blocks: dict[str, MetricBlock] = {}
        self.families: dict[str, list[tuple[MetricBlock, Metric]]] = {}
        for block in blocks:
            self.add(block)

    def add(self, block: MetricBlock) -> None:
        """Know one more; raises UsageError, and changes nothing then."""
        if block.kind in self.blocks:
            raise UsageError(f"two declarations are for blocks of kind {block.kind!r}", kind=block.kind)
        for metric in block.values.values():
            self._check(block, metric)
        self.blocks[block.kind] = block
        for metric in block.values.values():
            self.families.setdefault(metric.name, []).append((block, metric))

    def _check(self, block: MetricBlock, metric: Metric) -> None:
        """Raise UsageError unless ``metric`` may join its family."""
        if metric.name.startswith(PROGRAM_PREFIX):
            raise UsageError(f"{metric.name}: names of guests' own programs are theirs alone", name=metric.name)
        first, example = self.families.get(metric.name, [(block, metric)])[0]
        if first.kind != block.kind:
            raise UsageError(f"{metric.name} is of blocks {first.kind!r} and {block.kind!r}", name=metric.name)
        siblings = [each for each in block.values.values() if each.name == metric.name]
        common = {(each.unit, each.help, each.kind, each.per_unit, each.own_labels) for each in [example, *siblings]}
        if len(common) > 1:
            raise UsageError(f"members of {metric.name} differ in unit, help, kind or labels", name=metric.name)


def _check_label(label: str, owner: str) -> None:
    if not _LABEL.match(label):
        raise UsageError(f"{owner!r} has a malformed label {label!r}", owner=owner, label=label)

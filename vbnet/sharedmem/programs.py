"""Counters of guests' own programs: a file of each guest's own, which says by itself what it counts.

A host cannot know what programs count, so declarations stand in the file, as blocks beside those with the numbers:

    program_metric   name=requests,type=counter,unit=requests,help=Answered.    one word: how many make one unit
    program          metric=requests,path=/index                                one word: the number

Who writes what: the guest's process writes all of it, and may write anything. Whoever reads believes nothing: the
guest's name comes from the file's, not from within; names that are none, too many, too large or twice are left out and
counted (:mod:`vbnet.telemetry.programs`). Source: the counters file of docs/wire/counters.md.
"""

from __future__ import annotations

import contextlib
import errno
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeAlias

from vbnet._native import CounterBlock, CounterFile, counter_labels, parse_counter_labels
from vbnet.errors import ClosedError, ResourceError, UsageError
from vbnet.metric import PROGRAM_PREFIX, Metric, MetricKind

__all__ = [
    "DECLARATION",
    "FILE_BYTES",
    "METRICS_MAX",
    "METRIC_LABEL",
    "SERIES_MAX",
    "VALUE",
    "Declaration",
    "ProgramCounter",
    "ProgramCounters",
    "labelled",
]

METRICS_MAX: Final = 64
"""Metrics of one guest, by name."""
SERIES_MAX: Final = 128
"""Numbers of one guest: members of all its metrics together."""
DECLARATION: Final = "program_metric"
"""Kind of a block that declares."""
VALUE: Final = "program"
"""Kind of a block that counts."""
METRIC_LABEL: Final = "metric"
"""Label of a number's block that says which metric's it is."""

_BLOCK_BYTES: Final = 264
FILE_BYTES: Final = -(-(64 + _BLOCK_BYTES * (METRICS_MAX + SERIES_MAX + 1)) // 4096) * 4096
"""Size of a guest's file; a larger one is not read."""
_WORD_MAX: Final = (1 << 64) - 1
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_ENDINGS: Final = ("_total", "_info", "_bucket", "_sum", "_count", "_created")
_TAKEN: Final = frozenset({"guest", "lab", "node", "job", "instance", "le", "quantile", METRIC_LABEL})
_PER_UNIT_MAX: Final = 10**12
_KINDS: Final = {"counter": MetricKind.COUNTER, "gauge": MetricKind.GAUGE}


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a program says of one of its metrics.

    Args:
        name: the program's own, such as ``requests``; exported as ``vbnet_guest_program_requests_total``.
        kind: ``"counter"`` or ``"gauge"``.
        unit: base unit or noun, in the plural.
        help: one sentence.
        per_unit: how much of what is counted makes one unit, 1 to 10^12.
    """

    name: str
    kind: str
    unit: str
    help: str
    per_unit: int = 1

    def member(self, fixed: Mapping[str, str]) -> Metric:
        """One number of it, with labels of its own, declared as everything else is that is counted.

        Raises:
            UsageError: a name, the kind, a label or ``per_unit`` cannot be.
        """
        if not _NAME.match(self.name) or self.name.endswith(_ENDINGS):
            raise UsageError(
                f"a program's metric is named like `requests`: lower case, at most 64 characters, and no ending that "
                f"Prometheus gives a meaning ({', '.join(_ENDINGS)}); got {self.name!r}",
                name=self.name,
            )
        if self.kind not in _KINDS:
            raise UsageError(f"a program's metric is a counter or a gauge; got {self.kind!r}", kind=self.kind)
        if taken := _TAKEN.intersection(fixed):
            raise UsageError(f"metric {self.name!r}: the label {min(taken)!r} is not a program's", label=min(taken))
        if not 1 <= self.per_unit <= _PER_UNIT_MAX:
            raise UsageError(f"metric {self.name!r}: 1 to {_PER_UNIT_MAX} make a unit; got {self.per_unit}")
        ending = "_total" if self.kind == "counter" else ""
        name = f"{PROGRAM_PREFIX}{self.name}{ending}"
        return Metric(name, self.unit, self.help, _KINDS[self.kind], fixed, per_unit=self.per_unit)


_Shape: TypeAlias = tuple[Declaration, tuple[str, ...]]
"""What the members of a metric have in common: its declaration, and the names of its labels."""


def labelled(labels: Mapping[str, str]) -> str:
    """Labels as a block has them.

    Raises:
        UsageError: they are too long to be there whole.
    """
    text = counter_labels(list(labels.items()))
    if dict(parse_counter_labels(text)) != dict(labels):
        raise UsageError(f"too long for a counters file, about 170 bytes together: {dict(labels)!r}")
    return text


class ProgramCounter:
    """One number of a program; made by :class:`ProgramCounters`. Any thread may use it."""

    def __init__(self, block: CounterBlock) -> None:
        self._block = block

    @property
    def value(self) -> int:
        """What it says now."""
        return self._block.load(0)

    def add(self, amount: int = 1) -> None:
        """Count so many more, 0 <= amount < 2^64. Behind 2^64 - 1 comes 0.

        Raises:
            UsageError: the amount cannot be. ClosedError: its guest is closed.
        """
        self._block.add(0, _word(amount))

    def set(self, value: int) -> None:
        """Say so many, 0 <= value < 2^64: for a gauge, or a count that is kept elsewhere. Raises as :meth:`add`."""
        self._block.set(0, _word(value))


def _word(number: int) -> int:
    if not 0 <= number <= _WORD_MAX:
        raise UsageError(f"what is counted lies between 0 and 2^64 - 1; got {number}", got=number)
    return number


class ProgramCounters:
    """The counters of one guest's program. The file is made with the first of them.

    Args:
        place: of the file; None: a nameless one, which nobody else reads (the host's folder is not to be reached).
    """

    def __init__(self, place: Path | None) -> None:
        self._place = place
        self._file: CounterFile | None = None
        self._blocks: list[CounterBlock] = []
        self._shapes: dict[str, _Shape] = {}
        self._members: dict[str, ProgramCounter] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def is_exported(self) -> bool:
        """Whether the host's exporter can see them."""
        return self._place is not None

    def counter(
        self,
        name: str,
        *,
        help: str,  # noqa: A002 - as Metric calls it
        unit: str = "",
        fixed: Mapping[str, str] | None = None,
        per_unit: int = 1,
    ) -> ProgramCounter:
        """A number that only goes up, exported as ``vbnet_guest_program_NAME_total`` with the guest's name.

        Asked for again it is the same one. Members of one metric differ in the values of ``fixed`` alone.

        Args:
            name: lower case, at most 64 characters, without ``_total``.
            help: one sentence for the operator.
            unit: base unit in the plural, or a noun for what is counted; the name, if none is given.
            fixed: labels of this member, from a list that does not grow: ``{"reason": "no_room"}``.
            per_unit: how much of what is counted makes one unit (1_000_000_000 for nanoseconds shown in seconds).

        Raises:
            UsageError: a name or label cannot be, is too long, or the metric was declared otherwise before.
            ResourceError: it has 64 metrics or 128 numbers already, or the file cannot be made. ClosedError: closed.
        """
        return self._member(Declaration(name, "counter", unit or name, help, per_unit), fixed or {})

    def gauge(
        self,
        name: str,
        *,
        help: str,  # noqa: A002 - as Metric calls it
        unit: str = "",
        fixed: Mapping[str, str] | None = None,
        per_unit: int = 1,
    ) -> ProgramCounter:
        """As :meth:`counter`, for a number that goes up and down, >= 0; exported as ``vbnet_guest_program_NAME``."""
        return self._member(Declaration(name, "gauge", unit or name, help, per_unit), fixed or {})

    def close(self) -> None:
        """Stop counting, and remove the file; harmless when closed already."""
        with self._lock:
            self._is_closed = True
            had_file, self._file = self._file is not None, None
            while self._blocks:
                self._blocks.pop().close()
        if had_file and self._place is not None:
            with contextlib.suppress(OSError):  # a host that went took it along
                self._place.unlink(missing_ok=True)

    def _member(self, said: Declaration, fixed: Mapping[str, str]) -> ProgramCounter:
        said.member(fixed)
        declaration = labelled({"name": said.name, "type": said.kind, "unit": said.unit, "help": said.help})
        shape = (said, tuple(sorted(fixed)))
        labels = labelled({METRIC_LABEL: said.name, **fixed})
        with self._lock:
            if self._is_closed:
                raise ClosedError("the counters of this guest are closed")
            if self._shapes.get(said.name, shape) != shape:
                raise UsageError(f"metric {said.name!r} was declared otherwise before", name=said.name)
            if labels not in self._members:
                self._members[labels] = self._made(shape, declaration, labels)
            return self._members[labels]

    def _made(self, shape: _Shape, declaration: str, labels: str) -> ProgramCounter:
        said, _ = shape
        is_new = said.name not in self._shapes
        if len(self._members) >= SERIES_MAX or (is_new and len(self._shapes) >= METRICS_MAX):
            raise ResourceError(
                f"a guest's program counts at most {METRICS_MAX} metrics, {SERIES_MAX} numbers together; {said.name!r} "
                "is one too many. The values of a label must come from a list that does not grow",
                limit=SERIES_MAX,
                errno=errno.ENOSPC,
            )
        file = self._file = self._file or CounterFile.create(self._place, FILE_BYTES)
        if is_new:
            self._block(file, DECLARATION, declaration).set(0, said.per_unit)
            self._shapes[said.name] = shape
        return ProgramCounter(self._block(file, VALUE, labels))

    def _block(self, file: CounterFile, kind: str, labels: str) -> CounterBlock:
        block = file.allocate(kind, labels, 1)
        self._blocks.append(block)
        return block

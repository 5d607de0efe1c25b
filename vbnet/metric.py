"""What a metric is: declared once by its owner, read by the exporter, the dashboards and the documentation.

Names follow Prometheus: ``vbnet_`` first, base units, ``_total`` for counters. A reason for a drop is a metric of its
own or a value of the label ``reason``, never part of a name that varies.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from vbnet.errors import UsageError

__all__ = ["Metric", "MetricKind"]

_NAME = re.compile(r"vbnet_[a-z][a-z0-9_]*\Z")
_LABEL = re.compile(r"[a-z][a-z0-9_]*\Z")


class MetricKind(enum.StrEnum):
    """How a metric moves."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of the catalogue.

    Args:
        name: ``vbnet_…`` in lower case; ends in ``_total`` if and only if it is a counter.
        unit: base unit in the plural (``"bytes"``, ``"seconds"``, ``"packets"``), or a noun for what is counted.
        help: one sentence for the operator.
        labels: names of its labels, in order.
        kind: how it moves.

    Raises:
        UsageError: a name or label breaks the rules above (the declaring module's mistake).
    """

    name: str
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    kind: MetricKind = MetricKind.COUNTER

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise UsageError(f"metric name {self.name!r} is not vbnet_ and lower case", name=self.name)
        if self.name.endswith("_total") is not (self.kind is MetricKind.COUNTER):
            raise UsageError(f"metric {self.name!r}: counters, and only they, end in _total", name=self.name)
        for label in self.labels:
            if not _LABEL.match(label):
                raise UsageError(f"metric {self.name!r} has a malformed label {label!r}", name=self.name, label=label)

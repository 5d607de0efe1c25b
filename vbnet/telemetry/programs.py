"""What guests' own programs count, read from a file of each guest's own: input, of which nothing is believed.

A program names its metrics itself, so whatever it says may clash with itself, with other guests and with the rules of
Prometheus. Here it is made to fit, or left out and counted under a reason:

* the guest's name is the file's, so a program speaks for its own guest alone;
* every name begins with ``vbnet_guest_program_``, which no metric of vbnet's does;
* a guest has at most 64 metrics and 128 numbers, and so many guests are read; a file of another size is not read;
* of guests that declare one name differently, the first in the alphabet is believed.

Numbers are whole words, so there is no such thing as a NaN here. Source: :mod:`vbnet.sharedmem.programs`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from prometheus_client.metrics_core import Metric as PrometheusFamily

from vbnet._native import scan_counters
from vbnet.bus.rundir import RunDir
from vbnet.errors import UsageError
from vbnet.metric import Metric, MetricKind
from vbnet.sharedmem.programs import (
    DECLARATION,
    FILE_BYTES,
    METRIC_LABEL,
    METRICS_MAX,
    SERIES_MAX,
    VALUE,
    Declaration,
)
from vbnet.sharedmem.snapshot import BlockSnapshot, snapshots
from vbnet.telemetry.node import FILE_ERRORS

__all__ = ["GUESTS_MAX", "PROGRAM_DROPS", "Programs", "program_families", "read_programs"]

GUESTS_MAX: Final = 1024
"""Guests whose programs' counters are read, the first in the alphabet."""
PROGRAM_DROPS: Final = {
    **FILE_ERRORS,
    "too_many": "a guest has 64 metrics and 128 numbers, a host 1024 guests that count",
    "malformed": "a declaration or a number whose name, unit, kind or labels cannot be, or that was there before",
    "undeclared": "a number of a metric that its guest does not declare",
    "conflict": "another guest declares a metric of this name differently",
    "unknown": "a block of another kind",
}
"""Why something of a guest's program is left out, by the word it is counted under."""


@dataclass(slots=True)
class Programs:
    """What was found.

    Attributes:
        metrics: by name without ending, as the first guest declares them.
        samples: of each metric: labels and value.
        drops: what was left out, by reason.
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    samples: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)
    drops: Counter[str] = field(default_factory=Counter)


def read_programs(run_dir: RunDir) -> Programs:
    """Read the files of all guests that have one; what cannot be read is counted."""
    found = Programs()
    try:
        paths = sorted(path for path in run_dir.programs.iterdir() if path.suffix == ".counters")
    except OSError:
        return found  # no guest's program ever counted here, or the folder's loss is told by the counters folder's
    found.drops["too_many"] += max(0, len(paths) - GUESTS_MAX)
    for path in paths[:GUESTS_MAX]:
        try:
            is_sized = path.stat().st_size == FILE_BYTES
        except OSError:
            continue  # its guest has just ended
        if not is_sized:
            found.drops["size"] += 1
            continue
        blocks, _, _, skipped = scan_counters(path)
        if skipped:
            found.drops[skipped] += 1
            continue
        _add_guest(found, unquote(path.stem), snapshots(blocks))
    return found


def program_families(found: Programs) -> Iterator[PrometheusFamily]:
    """The metrics that have numbers, by name."""
    for name, metric in sorted(found.metrics.items()):
        if samples := found.samples.get(name):
            base = metric.name.removesuffix("_total")
            unit = metric.unit if metric.unit and base.endswith(f"_{metric.unit}") else ""
            family = PrometheusFamily(base, metric.help, str(metric.kind), unit)
            for labels, value in samples:
                family.add_sample(metric.name, labels, value)
            yield family


def _add_guest(found: Programs, guest: str, blocks: Sequence[BlockSnapshot]) -> None:
    own = _declarations(found, [block for block in blocks if block.kind == DECLARATION])
    numbers = [block for block in blocks if block.kind == VALUE]
    found.drops["unknown"] += sum(block.kind not in {DECLARATION, VALUE} for block in blocks)
    found.drops["too_many"] += max(0, len(numbers) - SERIES_MAX)
    seen: set[tuple[object, ...]] = set()
    for block in numbers[:SERIES_MAX]:
        fixed = dict(block.labels)
        name = fixed.pop(METRIC_LABEL, "")
        if name not in own:
            found.drops["undeclared"] += 1
            continue
        metric = _member(own[name], fixed)
        if metric is None or len(block.values) != 1 or (key := (name, *sorted(fixed.items()))) in seen:
            found.drops["malformed"] += 1
            continue
        seen.add(key)
        common = found.metrics.setdefault(name, metric)
        if _shape(common) != _shape(metric):
            found.drops["conflict"] += 1
            continue
        value = block.values[0] / metric.per_unit if metric.per_unit != 1 else block.values[0]
        found.samples.setdefault(name, []).append(({"guest": guest, **fixed}, value))


def _declarations(found: Programs, blocks: Sequence[BlockSnapshot]) -> dict[str, Declaration]:
    found.drops["too_many"] += max(0, len(blocks) - METRICS_MAX)
    own: dict[str, Declaration] = {}
    for block in blocks[:METRICS_MAX]:
        labels = block.labels
        try:
            said = Declaration(labels["name"], labels["type"], labels["unit"], labels["help"], block.values[0])
            said.member({})
        except (KeyError, IndexError, UsageError):
            found.drops["malformed"] += 1
            continue
        if said.name in own:
            found.drops["malformed"] += 1
            continue
        own[said.name] = said
    return own


def _member(said: Declaration, fixed: dict[str, str]) -> Metric | None:
    try:
        return said.member(fixed)
    except UsageError:
        return None


def _shape(metric: Metric) -> tuple[MetricKind, str]:
    # The sentence may differ: every guest's own words are as good, and the first guest's are shown.
    return metric.kind, metric.unit

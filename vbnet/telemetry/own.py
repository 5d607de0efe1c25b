"""What an exporter says beside the counters of a node: whether it is there, how its process does, how full files are.

These few families are made at each read, not declared beside a writer: nobody in the node writes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as PrometheusFamily
from prometheus_client.process_collector import ProcessCollector

from vbnet.metric import Metric, MetricKind
from vbnet.telemetry.node import FILE_ERRORS, FileFacts, NodeFacts
from vbnet.telemetry.programs import PROGRAM_DROPS

__all__ = ["CHANGE_RESULTS", "DROP_REASONS", "OWN", "ServerCounts", "own_families"]

DROP_REASONS: Final = {
    "too_many": "as many as may be were being served",
    "too_slow": "the time of one exchange was over",
    "unauthorized": "the name or the password was wrong, or missing",
}
"""Why a client is not served, by the word it is counted under."""
CHANGE_RESULTS: Final = {
    "taken": "it is used for connections made since",
    "refused": "it is not usable, and what was used before still is",
}
"""What became of a changed web configuration, by the word it is counted under."""

_GAUGE: Final = MetricKind.GAUGE
UP: Final = Metric("vbnet_node_up", "nodes", "1 while the host node's process is there, hung or not; else 0.", _GAUGE)
BUILD: Final = Metric(
    "vbnet_build_info", "nodes", "What the host node is made of.", MetricKind.INFO, shown_as="version"
)
FILE_BYTES: Final = Metric("vbnet_counters_file_bytes", "bytes", "Size of a counters file.", _GAUGE)
FILE_USED: Final = Metric("vbnet_counters_file_used_bytes", "bytes", "Of a counters file, how much has blocks.", _GAUGE)
ERRORS: Final = Metric(
    "vbnet_exporter_file_errors_total", "files", "Counters files that this exporter skipped, at each read."
)
DROPS: Final = Metric(
    "vbnet_exporter_connections_drop_total", "connections", "Clients of this exporter that were not served."
)
CHANGES: Final = Metric(
    "vbnet_exporter_web_config_changes_total",
    "changes",
    "Changes of this exporter's web configuration, or of a file that it names.",
)
PROGRAMS: Final = Metric(
    "vbnet_exporter_program_drop_total",
    "parts",
    "Parts of what guests' own programs count that this exporter left out, at each read.",
)
DECLARATIONS: Final = Metric(
    "vbnet_exporter_declaration_errors", "kinds", "Kinds of device whose metrics could not be loaded.", _GAUGE
)
OWN: Final[dict[Metric, tuple[str, ...]]] = {
    UP: (),
    BUILD: ("version", "protocol", "abi", "libzmq"),
    FILE_BYTES: ("file",),
    FILE_USED: ("file",),
    ERRORS: ("reason",),
    DROPS: ("reason",),
    CHANGES: ("result",),
    PROGRAMS: ("reason",),
    DECLARATIONS: (),
}
"""Every family made here, with its labels; and ``process_*`` as every Prometheus client has them."""


@dataclass(frozen=True, slots=True)
class ServerCounts:
    """What a server counts about itself.

    Attributes:
        drops: clients not served so far, by reason.
        changes: of its web configuration so far, by what became of them.
    """

    drops: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)


def own_families(  # noqa: PLR0917 - one for each thing that is told
    facts: NodeFacts,
    files: Sequence[FileFacts],
    errors: Counter[str],
    problems: Iterable[str] = (),
    server: ServerCounts | None = None,
    programs: Counter[str] | None = None,
) -> Iterator[PrometheusFamily]:
    """Make them.

    Args:
        facts: of the node.
        files: its counters files as they were just read.
        errors: files skipped so far, by reason; this read's are in it.
        problems: what is wrong with declarations.
        server: what the server that tells it counts; None: there is none.
        programs: of guests' programs, what was left out so far, by reason.
    """
    yield _gauge(UP, [((), int(facts.is_up))])
    record = facts.record
    if record is not None:
        yield _gauge(BUILD, [((record.vbnet, str(record.protocol), str(record.abi), record.libzmq), 1)])
    read = [file for file in files if not file.skipped]
    yield _gauge(FILE_BYTES, [((file.name,), file.bytes) for file in read])
    yield _gauge(FILE_USED, [((file.name,), file.used_bytes) for file in read])
    yield _counter(ERRORS, FILE_ERRORS, errors)
    yield _counter(PROGRAMS, PROGRAM_DROPS, programs or Counter())
    if server is not None:
        yield _counter(DROPS, DROP_REASONS, server.drops)
        yield _counter(CHANGES, CHANGE_RESULTS, server.changes)
    yield _gauge(DECLARATIONS, [((), len(list(problems)))])
    if facts.is_up and record is not None:
        pid = record.pid
        yield from ProcessCollector(pid=lambda: pid, registry=None).collect()


def _counter(metric: Metric, words: Iterable[str], counts: Counter[str]) -> CounterMetricFamily:
    family = CounterMetricFamily(metric.name, metric.help, labels=OWN[metric])
    for word in words:
        family.add_metric([word], counts[word])
    return family


def _gauge(metric: Metric, rows: Iterable[tuple[Sequence[str], float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(metric.name, metric.help, labels=OWN[metric])
    for labels, value in rows:
        family.add_metric(labels, value)
    return family

"""The text that Prometheus reads: rendered natively from counters files, so that thousands of devices cost little.

What ``Collector`` says of a node, ``Exposition`` says as bytes, in the text format or in OpenMetrics. There are no
``_created`` samples: a block knows its generation, not its moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client import exposition as text_format
from prometheus_client.metrics_core import Metric as PrometheusFamily
from prometheus_client.openmetrics import exposition as openmetrics_format
from prometheus_client.registry import Collector as PrometheusCollector

from vbnet import _native
from vbnet.bus.rundir import RunDir
from vbnet.metric import Metric, MetricCatalogue, MetricKind
from vbnet.telemetry.catalogue import Known, installed
from vbnet.telemetry.families import bucket_edges
from vbnet.telemetry.node import FileFacts, counters_files, read_facts
from vbnet.telemetry.own import own_families

__all__ = ["OPENMETRICS_TYPE", "TEXT_TYPE", "Exposition", "compile_catalogue"]

TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_TEXT_KINDS: Final = {MetricKind.INFO: "gauge", MetricKind.STATE: "gauge"}
_OPENMETRICS_KINDS: Final = {MetricKind.STATE: "gauge"}


class Exposition:
    """One node as text.

    Args:
        run_dir: of the node.
        known: what blocks mean; None takes what this project and the installed packages declare.
        drops: clients that a server did not serve, by reason; None: there is no server.
    """

    def __init__(self, run_dir: RunDir, known: Known | None = None, drops: Counter[str] | None = None) -> None:
        self._run_dir = run_dir
        self._known = known or installed()
        self._native = compile_catalogue(self._known.metrics)
        self._errors: Counter[str] = Counter()
        self._drops = drops

    def render(self, *, openmetrics: bool = False) -> bytes:
        """Read the node.

        Args:
            openmetrics: in OpenMetrics instead of the text format.

        Raises:
            NotFoundError: no node ran there, or it was cleaned. ResourceError: its folder cannot be read.
        """
        facts = read_facts(self._run_dir)
        paths = counters_files(self._run_dir)
        text, read = self._native.render(list(paths), openmetrics)
        files = [FileFacts(path.name, *found) for path, found in zip(paths, read, strict=True)]
        self._errors.update(file.skipped for file in files if file.skipped)
        own = _Own(list(own_families(facts, files, self._errors, self._known.problems, self._drops)))
        if openmetrics:
            made: bytes = openmetrics_format.generate_latest(own)  # type: ignore[no-untyped-call]
            head = made.removesuffix(b"# EOF\n")
            return b"".join((head, text, b"# EOF\n"))
        return b"".join((text_format.generate_latest(own), text))


class _Own(PrometheusCollector):
    """A registry, as far as ``generate_latest`` looks."""

    def __init__(self, families: Sequence[PrometheusFamily]) -> None:
        self._families = families

    def collect(self) -> Iterator[PrometheusFamily]:
        """Give them."""
        yield from self._families


def compile_catalogue(catalogue: MetricCatalogue) -> _native.Exposition:
    """Make the native renderer of what ``catalogue`` declares."""
    places = {name: place for place, name in enumerate(catalogue.families)}
    families = [_family(members[0][1]) for members in catalogue.families.values()]
    blocks = [
        (block.kind, list(block.labels), [_value(places[metric.name], metric) for metric in block.values.values()])
        for block in catalogue.blocks.values()
    ]
    return _native.Exposition(families, blocks)


def _family(metric: Metric) -> tuple[str, str, str]:
    plain = metric.help.replace("\\", "\\\\").replace("\n", "\\n")
    kind = _TEXT_KINDS.get(metric.kind, metric.kind)
    text = f"# HELP {metric.name} {plain}\n# TYPE {metric.name} {kind}\n"
    name = metric.name.removesuffix("_total").removesuffix("_info")
    kind = _OPENMETRICS_KINDS.get(metric.kind, metric.kind)
    unit = f"# UNIT {name} {metric.unit}\n" if name.endswith(f"_{metric.unit}") else ""
    quoted = plain.replace('"', '\\"')
    return metric.name, text, f"# HELP {name} {quoted}\n# TYPE {name} {kind}\n{unit}"


def _value(
    family: int, metric: Metric
) -> tuple[int, list[tuple[str, str]], str, int, str, list[str], list[tuple[str, int]]]:
    buckets = []
    if metric.kind is MetricKind.HISTOGRAM:
        buckets = [(repr(float(edge) / float(metric.per_unit)), below) for edge, below in bucket_edges()]
    kind = str(metric.kind)
    return family, list(metric.fixed.items()), kind, metric.per_unit, metric.shown_as, list(metric.states), buckets

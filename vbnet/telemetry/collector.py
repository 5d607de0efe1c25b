"""A ``prometheus_client`` collector of one host node, for programs that have a registry of their own.

    registry.register(Collector(RunDir.for_node("lab")))

The node is not asked: its counters files are read at each collection. Series of a device, a guest or a node that is
gone vanish by themselves. ``Exposition`` gives the same as text, natively, for nodes with thousands of devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric as PrometheusFamily
from prometheus_client.registry import Collector as PrometheusCollector

from vbnet.bus.rundir import RunDir
from vbnet.metric import MetricKind
from vbnet.telemetry.catalogue import Known, installed
from vbnet.telemetry.families import Family, HistogramSample, Sample, families
from vbnet.telemetry.node import counters_files, read_facts, read_files
from vbnet.telemetry.own import own_families
from vbnet.telemetry.programs import program_families, read_programs

__all__ = ["Collector", "read_families"]


class Collector(PrometheusCollector):
    """Collects one node.

    Args:
        run_dir: of the node.
        known: what blocks mean; None takes what this project and the installed packages declare.
    """

    def __init__(self, run_dir: RunDir, known: Known | None = None) -> None:
        self._run_dir = run_dir
        self._known = known
        self._errors: Counter[str] = Counter()
        self._program_drops: Counter[str] = Counter()

    def describe(self) -> list[PrometheusFamily]:
        """Nothing: a registry need not read the node to let the collector in."""
        return []

    def collect(self) -> Iterator[PrometheusFamily]:
        """Read the node.

        Raises:
            NotFoundError: no node ran there, or it was cleaned. ResourceError: its folder cannot be read.
        """
        known = self._known or installed()
        facts = read_facts(self._run_dir)
        blocks, files = read_files(counters_files(self._run_dir))
        self._errors.update(file.skipped for file in files if file.skipped)
        programs = read_programs(self._run_dir)
        self._program_drops.update(programs.drops)
        yield from own_families(facts, files, self._errors, known.problems, programs=self._program_drops)
        yield from program_families(programs)
        yield from map(_prometheus, families(blocks, known.metrics))


def read_families(run_dir: RunDir, known: Known | None = None) -> list[PrometheusFamily]:
    """Everything that is known of a node now."""
    return list(Collector(run_dir, known).collect())


def _prometheus(family: Family) -> PrometheusFamily:
    unit = family.unit if family.name.removesuffix("_total").endswith(f"_{family.unit}") else ""
    made: PrometheusFamily
    match family.kind:
        case MetricKind.COUNTER:
            made = CounterMetricFamily(family.name, family.help, unit=unit)
        case MetricKind.INFO:
            made = InfoMetricFamily(family.name.removesuffix("_info"), family.help)
        case MetricKind.HISTOGRAM:
            made = HistogramMetricFamily(family.name, family.help, unit=unit)
        case _:
            made = GaugeMetricFamily(family.name, family.help, unit=unit)
    for sample in family.samples:
        if isinstance(sample, HistogramSample):
            _add_histogram(made, sample)
        else:
            _add(made, family.name, sample)
    return made


def _add(made: PrometheusFamily, name: str, sample: Sample) -> None:
    made.add_sample(name, dict(sample.labels), sample.value)


def _add_histogram(made: PrometheusFamily, sample: HistogramSample) -> None:
    for edge, count in sample.buckets:
        made.add_sample(f"{made.name}_bucket", {**sample.labels, "le": edge}, count)
    made.add_sample(f"{made.name}_count", dict(sample.labels), sample.buckets[-1][1])
    made.add_sample(f"{made.name}_sum", dict(sample.labels), sample.sum)

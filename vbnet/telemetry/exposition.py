"""What Prometheus reads: rendered natively from counters files, so that thousands of devices cost little.

What ``Collector`` says of a node, ``Exposition`` says as bytes, in the text format, in OpenMetrics, or as protocol
buffers, which alone carry native histograms. There are no ``_created`` samples: a block knows its generation, not its
moment.
"""

from __future__ import annotations

import enum
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
from vbnet.telemetry.own import ServerCounts, own_families
from vbnet.telemetry.programs import program_families, read_programs

__all__ = ["Exposition", "Format", "compile_catalogue"]


class Format(enum.StrEnum):
    """A form in which metrics are told; its value is the content type of HTTP."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"


_NATIVE_FORMS: Final = {Format.TEXT: "text", Format.OPENMETRICS: "openmetrics", Format.PROTOBUF: "protobuf"}
_END: Final = b"# EOF\n"
_TEXT_KINDS: Final = {MetricKind.INFO: "gauge", MetricKind.STATE: "gauge"}
_OPENMETRICS_KINDS: Final = {MetricKind.STATE: "gauge"}


class Exposition:
    """One node as text.

    Args:
        run_dir: of the node.
        known: what blocks mean; None takes what this project and the installed packages declare.
        server: what the server that tells it counts; None: there is none.
    """

    def __init__(self, run_dir: RunDir, known: Known | None = None, server: ServerCounts | None = None) -> None:
        self._run_dir = run_dir
        self._known = known or installed()
        self._native = compile_catalogue(self._known.metrics)
        self._errors: Counter[str] = Counter()
        self._program_drops: Counter[str] = Counter()
        self._server = server

    def render(self, wanted: Format = Format.TEXT) -> bytes:
        """Read the node, as :meth:`pieces` does, and give all of it in one."""
        return b"".join(self.pieces(wanted))

    def pieces(self, wanted: Format) -> list[bytes | _native.ExpositionPiece]:
        """Read the node, for somebody who sends what it gives piece by piece.

        Args:
            wanted: how to tell it.

        Raises:
            NotFoundError: no node ran there, or it was cleaned. ResourceError: its folder cannot be read.
        """
        facts = read_facts(self._run_dir)
        paths = counters_files(self._run_dir)
        pieces, found = self._native.render(paths, _NATIVE_FORMS[wanted])
        files = [FileFacts(path.name, *facts) for path, facts in zip(paths, found, strict=True)]
        self._errors.update(file.skipped for file in files if file.skipped)
        programs = read_programs(self._run_dir)
        self._program_drops.update(programs.drops)
        said = own_families(facts, files, self._errors, self._known.problems, self._server, self._program_drops)
        own = [*said, *program_families(programs)]
        match wanted:
            case Format.PROTOBUF:
                return [_native.protobuf_families([_plain(family) for family in own]), *pieces]
            case Format.OPENMETRICS:
                made: bytes = openmetrics_format.generate_latest(_Own(own))  # type: ignore[no-untyped-call]
                return [made.removesuffix(_END), *pieces, _END]
            case Format.TEXT:
                return [text_format.generate_latest(_Own(own)), *pieces]


def _plain(family: PrometheusFamily) -> tuple[str, str, str, str, list[tuple[list[tuple[str, str]], float]]]:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    samples = [(list(sample.labels.items()), sample.value) for sample in family.samples]
    return name, family.documentation, family.unit, family.type, samples


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


def _family(metric: Metric) -> tuple[str, str, str, str, str, str]:
    plain = metric.help.replace("\\", "\\\\").replace("\n", "\\n")
    kind = _TEXT_KINDS.get(metric.kind, metric.kind)
    text = f"# HELP {metric.name} {plain}\n# TYPE {metric.name} {kind}\n"
    name = metric.name.removesuffix("_total").removesuffix("_info")
    kind = _OPENMETRICS_KINDS.get(metric.kind, metric.kind)
    unit = metric.unit if name.endswith(f"_{metric.unit}") else ""
    quoted = plain.replace('"', '\\"')
    head = f"# HELP {name} {quoted}\n# TYPE {name} {kind}\n"
    open_text = f"{head}# UNIT {name} {unit}\n" if unit else head
    return metric.name, metric.help, unit, str(metric.kind), text, open_text


def _value(
    family: int, metric: Metric
) -> tuple[int, list[tuple[str, str]], str, int, str, list[str], list[tuple[str, int]]]:
    buckets = []
    if metric.kind is MetricKind.HISTOGRAM:
        buckets = [(repr(float(edge) / float(metric.per_unit)), below) for edge, below in bucket_edges()]
    kind = str(metric.kind)
    return family, list(metric.fixed.items()), kind, metric.per_unit, metric.shown_as, list(metric.states), buckets

"""What a scrape costs: an exporter process, its client, and as many devices as are asked for.

The counters file is made here, with the blocks that a host node has for so many network cards of as many guests. The
exporter is the real one: what is measured is reading, rendering and HTTP, with no host node needed and none disturbed.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

from vbnet._native import CounterFile, counter_labels
from vbnet.bus.rundir import HostRecord, RunDir, start_ticks
from vbnet.devices.intc.metrics import SIGNAL
from vbnet.devices.venet.metrics import LATENCY, PORT
from vbnet.hostnode.metrics import BUS, DEVICE, GUEST, HOST, SWITCH, WORKER
from vbnet.load.bench.context import Context
from vbnet.load.bench.machine import process_ticks
from vbnet.load.bench.row import Row
from vbnet.load.bench.summary import AtMost, Summary
from vbnet.metric import MetricBlock, MetricKind

__all__ = ["scrape"]

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_NOT_PLACED: Final = "-"
_FILE_BYTES: Final = 48 << 20
_HISTOGRAM_HEAD: Final = 4
_FIRST_BUCKET: Final = 100
_FILLED_BUCKETS: Final = 32
"""A latency's histogram has its values in two powers of two or so."""
_DEADLINE_SECONDS: Final = 30.0
_WALL_SECONDS, _PROCESSOR_SECONDS = 0.1, 0.05
"""What a scrape of the most devices may take."""
_TEXT: Final = "text"
_FORMS: Final = {
    _TEXT: "text/plain",
    "protocol buffers": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
}
"""What a scraper asks for."""
_GROWTH: Final = 1.5
"""What one device may cost among ten times as many, against before: cost is to follow the number of devices."""


def scrape(context: Context) -> Iterator[Row]:
    """Seconds of one scrape over HTTP, on the clock and of the exporter's processor time, by the number of devices."""
    sizes = (10, 100) if context.is_quick else (10, 100, 1000)
    turns, scrapes = (1, 5) if context.is_quick else (5, 20)
    by_size: dict[int, Summary] = {}
    for devices in sizes:
        with tempfile.TemporaryDirectory(prefix="vbnet-bench-") as root:
            cost = _measure(Path(root), devices, turns, scrapes)
        params: dict[str, str | int | float] = {"devices": devices}
        is_judged = devices == 1000  # noqa: PLR2004 - what the target is for
        for form, told in cost.forms.items():
            params["as"] = form
            costs = (("wall", told.wall, _WALL_SECONDS), ("processor", told.processor, _PROCESSOR_SECONDS))
            for of, summary, most in costs:
                wanted = AtMost(most) if is_judged else None
                note = f"{told.bytes} bytes" if of == "wall" else ""
                yield Row.of(
                    "metrics.scrape", {**params, "of": of}, "s", summary, _NOT_PLACED, wanted=wanted, note=note
                )
        wall = cost.forms[_TEXT].wall
        params["as"] = _TEXT
        beside = ("generate_latest of prometheus_client, in one process", cost.plain)
        yield Row.of("metrics.scrape", {**params, "of": "wall, beside"}, "s", wall, _NOT_PLACED, baseline=beside)
        by_size[devices] = _per_device(wall, devices)
    fewer, more = sizes[-2:]
    yield Row.of(
        "metrics.scrape",
        {"devices": more, "of": "wall a device"},
        "s",
        by_size[more],
        _NOT_PLACED,
        baseline=(f"the same with {fewer} devices", by_size[fewer]),
        wanted=None if context.is_quick else AtMost(_GROWTH),
    )


def _per_device(wall: Summary, devices: int) -> Summary:
    return Summary(wall.minimum / devices, wall.median / devices, wall.maximum / devices, wall.count)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a scrape in one form costs."""

    wall: Summary
    processor: Summary
    bytes: int


@dataclass(frozen=True, slots=True)
class _Cost:
    """What it costs in each form, and the text in one process without HTTP."""

    forms: dict[str, _Told]
    plain: Summary


def _measure(root: Path, devices: int, turns: int, scrapes: int) -> _Cost:
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - the baseline's only

    from vbnet.telemetry import Collector  # noqa: PLC0415 - same

    wall, processor, lengths = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list), {}
    plain = []
    with _node(root, devices) as run_dir, _exporter(run_dir) as (pid, address):
        registry = CollectorRegistry()
        registry.register(Collector(run_dir))
        for _ in range(turns):
            for form, accept in _FORMS.items():
                lengths[form] = _fetch(address, accept)
                ticks = process_ticks(pid)
                for _ in range(scrapes):
                    begun = time.perf_counter()
                    _fetch(address, accept)
                    wall[form].append(time.perf_counter() - begun)
                processor[form].append((process_ticks(pid) - ticks) / _TICKS_A_SECOND / scrapes)
            begun = time.perf_counter()
            generate_latest(registry)
            plain.append(time.perf_counter() - begun)
    forms = {form: _Told(Summary.of(wall[form]), Summary.of(processor[form]), lengths[form]) for form in _FORMS}
    return _Cost(forms, Summary.of(plain))


@contextmanager
def _node(root: Path, devices: int) -> Iterator[RunDir]:
    """A run directory with the counters of so many network cards; the node is this process."""
    run_dir = RunDir.for_node("bench", root)
    run_dir.create()
    file = CounterFile.create(run_dir.counters / "host.counters", _FILE_BYTES)
    blocks = []

    def count(block: MetricBlock, **labels: str) -> None:
        blocks.append(file.allocate(block.kind, counter_labels(list(labels.items())), block.words))
        for place, _, metric in block.places():
            if metric.kind is MetricKind.HISTOGRAM:
                blocks[-1].set(place, _FILLED_BUCKETS)
                for bucket in range(_FILLED_BUCKETS):
                    blocks[-1].set(place + _HISTOGRAM_HEAD + _FIRST_BUCKET + bucket, 1)
            else:
                blocks[-1].set(place, 0 if metric.states else 1_000_000_007 * (place + 1))

    count(HOST)
    count(WORKER, worker="0")
    count(SWITCH, switch="lan")
    for number in range(devices):
        guest, device = f"guest-{number}", f"guest-{number}.eth0"
        count(GUEST, guest=guest)
        count(BUS, bus=guest)
        count(DEVICE, device=device, type="venet")
        count(PORT, guest=guest, device=device, switch="lan")
        count(LATENCY, guest=guest, device=device, switch="lan")
        for signal in ("eth0/1", "eth0/2"):
            count(SIGNAL, guest=guest, device=device, signal=signal)
    pid = os.getpid()
    run_dir.write_host(HostRecord(pid, "now", "bench", 1, 1, "-", start_ticks(pid)))
    yield run_dir
    for block in blocks:
        block.close()


@contextmanager
def _exporter(run_dir: RunDir) -> Iterator[tuple[int, str]]:
    """An exporter of that node: its process and address."""
    from vbnet.telemetry.serve import EXPORTER_LOG, ExporterProcess  # noqa: PLC0415 - with TLS and HTTP, for this only

    with ExporterProcess(
        "127.0.0.1:0",
        web_config=None,
        node=run_dir.path.name,
        root=run_dir.path.parent,
        log=run_dir.logs / EXPORTER_LOG,
    ) as exporter:
        exporter.wait_ready()
        assert exporter.pid is not None  # noqa: S101 - it is ready
        yield exporter.pid, exporter.address


def _fetch(address: str, accept: str) -> int:
    """Scrape once; the length of what it gives."""
    connection = HTTPConnection(address, timeout=_DEADLINE_SECONDS)
    try:
        connection.request("GET", "/metrics", headers={"Accept": accept})
        return len(connection.getresponse().read())
    finally:
        connection.close()

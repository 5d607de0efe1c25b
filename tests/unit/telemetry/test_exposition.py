"""A node's counters as Prometheus reads them: by the collector and as text, also of files that are none."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from vbnet._native import CounterBlock, CounterFile, counter_labels
from vbnet.bus.kinds import discover
from vbnet.bus.rundir import HostRecord, RunDir, start_ticks
from vbnet.devices.intc.metrics import SIGNAL
from vbnet.devices.timer.metrics import TIMEKEEPER
from vbnet.devices.venet.metrics import PORT
from vbnet.errors import NotFoundError, ResourceError
from vbnet.hostnode.metrics import GUEST, HOST, WORKER
from vbnet.metric import MetricBlock
from vbnet.telemetry import Collector, Exposition
from vbnet.telemetry.catalogue import known
from vbnet.telemetry.exposition import Format

parse_openmetrics: Any = openmetrics_parser.text_string_to_metric_families


class Node:
    """A run directory with one counters file, whose node is this process."""

    def __init__(self, root: Path) -> None:
        self.run_dir = RunDir.for_node("lab", root)
        self.run_dir.create()
        self.file = CounterFile.create(self.run_dir.counters / "host.counters")
        self.blocks: list[CounterBlock] = []
        self.write_host(os.getpid())

    def write_host(self, pid: int) -> None:
        """Say that the node is the process ``pid``."""
        self.run_dir.write_host(HostRecord(pid, "now", "9.8", 1, 2, "4.3.5", start_ticks(pid)))

    def count(self, block: MetricBlock, labels: dict[str, str], **values: int) -> CounterBlock:
        """Have somebody count."""
        found = self.file.allocate(block.kind, counter_labels(list(labels.items())), block.words)
        for name, value in values.items():
            found.set(block.index(name), value)
        self.blocks.append(found)
        return found

    def lines(self, beginning: str) -> list[str]:
        """Lines of the text that begin so."""
        text = Exposition(self.run_dir).render().decode()
        return [line for line in text.splitlines() if line.startswith(beginning)]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """One node."""
    return Node(tmp_path)


def plain(families: Iterable[Family]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every series; ``process_*`` changes from one read to the next."""
    found = {}
    for family in families:
        for sample in family.samples:
            if not sample.name.startswith("process_"):
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in found, f"{key} comes twice"
                found[key] = sample.value
    return found


def fill(node: Node) -> None:
    """Something of each kind of metric, and labels that need care."""
    for guest in ("web", 'a"b\\c\nd,e=f'):
        for device in ("eth0", "ü~"):
            node.count(
                PORT,
                {"guest": guest, "device": device, "switch": "lan", "id": "7"},
                receive_bytes=2**53,
                receive_drop_no_room=3,
                transmit_slots=256,
            )
        node.count(GUEST, {"guest": guest}, state=2)
    node.count(SIGNAL, {"guest": "web", "device": "eth0", "signal": "rx"}, raises=5, priority=6)
    node.count(WORKER, {"worker": "0"}, asleep_nanoseconds=1_234_567_891)
    late = node.count(TIMEKEEPER, {})
    for word, value in ((0, 3), (1, 5_000_700), (4, 1), (4 + 100, 1), (4 + 591, 1)):
        late.set(word, value)
    node.file.allocate("novelty", "", 3)


@pytest.mark.parametrize("is_open", [False, True], ids=["text", "openmetrics"])
def test_text_says_what_the_collector_says(node: Node, is_open: bool) -> None:
    """The native text, read by the parser of Prometheus' own client, is the collector's families."""
    fill(node)

    text = Exposition(node.run_dir).render(Format.OPENMETRICS if is_open else Format.TEXT).decode()
    parsed = plain((parse_openmetrics if is_open else parse_text)(text))

    assert plain(Collector(node.run_dir).collect()) == parsed
    assert 200 < len(parsed)


def test_checker_of_prometheus_has_nothing_to_say(node: Node) -> None:
    """Names, units and types keep to its rules; where it is installed, on every kind of block."""
    fill(node)
    for block in known(discover(with_entry_points=False)).metrics.blocks.values():
        node.count(block, dict.fromkeys(block.labels, "x"))
    text = Exposition(node.run_dir).render()

    checker = shutil.which("promtool")
    said = (
        subprocess.run([checker, "check", "metrics"], input=text, capture_output=True, check=False) if checker else None
    )

    assert said is None or (0, b"") == (said.returncode, said.stderr)
    assert b"\n# TYPE vbnet_echo_calls_total counter\n" in text


def test_types_and_units_are_those_of_the_declarations(node: Node) -> None:
    """A parser knows what is a counter, a gauge and a histogram."""
    fill(node)

    text = Exposition(node.run_dir).render(Format.OPENMETRICS).decode()
    found = {family.name: (family.type, family.unit) for family in parse_openmetrics(text)}

    assert ("counter", "bytes") == found["vbnet_device_receive_bytes"]
    assert ("gauge", "") == found["vbnet_guest_state"]
    assert ("info", "") == found["vbnet_signal"]
    assert ("histogram", "seconds") == found["vbnet_timer_lateness_seconds"]


def test_drops_are_one_family_with_a_reason(node: Node) -> None:
    """The sum over the family is the sum of drops."""
    node.count(
        PORT, {"guest": "web", "device": "eth0", "switch": "lan"}, receive_drop_no_room=3, receive_drop_oversize=4
    )

    found = node.lines("vbnet_device_receive_drop_total{")

    assert 'vbnet_device_receive_drop_total{guest="web",device="eth0",switch="lan",reason="no_room"} 3' in found
    assert 7 == sum(int(line.rpartition(" ")[2]) for line in found)
    assert 8 == len(found)


def test_state_is_one_of_its_states(node: Node) -> None:
    """One hot."""
    node.count(GUEST, {"guest": "web"}, state=3)

    assert {"starting": 0, "joined": 0, "ready": 0, "wedged": 1, "stuck": 0, "ended": 0} == {
        line.split('state="')[1].split('"')[0]: int(line.rpartition(" ")[2])
        for line in node.lines("vbnet_guest_state{")
    }


def test_series_of_what_is_freed_vanish_and_a_new_owner_begins_at_zero(node: Node) -> None:
    """A device that is gone is not shown, and its memory's next owner does not inherit its counts."""
    port = node.count(PORT, {"guest": "web", "device": "eth0", "switch": "lan"}, kicks=9)

    before = node.lines("vbnet_device_kicks_total{")
    port.close()
    between = node.lines("vbnet_device_kicks_total{")
    node.count(PORT, {"guest": "web", "device": "eth1", "switch": "lan"})
    after = node.lines("vbnet_device_kicks_total{")

    assert ['vbnet_device_kicks_total{guest="web",device="eth0",switch="lan"} 9'] == before
    assert [] == between
    assert ['vbnet_device_kicks_total{guest="web",device="eth1",switch="lan"} 0'] == after


def test_histogram_counts_up_to_each_edge_in_seconds(node: Node) -> None:
    """Cumulative, and its count is what the last bucket has."""
    late = node.count(TIMEKEEPER, {})
    for word, value in ((0, 2), (1, 3000), (4 + 15, 1), (4 + 16 * 8, 1)):  # 15 ns, and 2048 to 2175 ns
        late.set(word, value)

    found = dict(line.rsplit(" ", 1) for line in node.lines("vbnet_timer_lateness_seconds"))

    assert "1" == found['vbnet_timer_lateness_seconds_bucket{le="2.56e-07"}']
    assert "1" == found['vbnet_timer_lateness_seconds_bucket{le="2.048e-06"}']
    assert "2" == found['vbnet_timer_lateness_seconds_bucket{le="4.096e-06"}']
    assert ("2", "2", "0.000003") == tuple(
        found[f"vbnet_timer_lateness_seconds{name}"] for name in ('_bucket{le="+Inf"}', "_count", "_sum")
    )


def test_node_that_is_gone_is_told_and_its_counts_remain(node: Node) -> None:
    """``vbnet_node_up`` is 0, its process is not shown, what it counted is."""
    node.count(HOST, {}, guest_sessions=4)
    node.run_dir.write_host(HostRecord(os.getpid(), "then", "9.8", 1, 2, "4.3.5", 1))

    assert ["vbnet_node_up 0.0"] == node.lines("vbnet_node_up")
    assert ["vbnet_guest_sessions_total 4"] == node.lines("vbnet_guest_sessions_total")
    assert [] == node.lines("process_")


def test_process_of_the_node_is_shown(node: Node) -> None:
    """Under the names that every Prometheus client uses."""
    found = " ".join(node.lines("process_"))

    assert ["vbnet_node_up 1.0"] == node.lines("vbnet_node_up")
    for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds"):
        assert f"process_{name} " in found


def test_files_that_are_none_are_skipped_and_counted(node: Node) -> None:
    """The good file's counts are there beside them."""
    node.count(HOST, {}, guest_sessions=4)
    good = (node.run_dir.counters / "host.counters").read_bytes()
    bad = {
        "foreign": b"nonsense" * 100,
        "empty-header": bytes(4096),
        "version": good[:8] + b"\x09" + good[9:],
        "size": good[:4096],
        "short": good[:24],
    }
    for name, content in bad.items():
        (node.run_dir.counters / f"{name}.counters").write_bytes(content)
    (node.run_dir.counters / "dangling.counters").symlink_to("nowhere")
    (node.run_dir.counters / "folder.counters").mkdir()
    (node.run_dir.counters / "notes.txt").write_text("no counters")
    os.mkfifo(node.run_dir.counters / "pipe.counters")
    exposition = Exposition(node.run_dir)

    texts = [exposition.render().decode() for _ in range(2)]

    assert all("vbnet_guest_sessions_total 4" in text for text in texts)
    errors = [line for line in texts[1].splitlines() if line.startswith("vbnet_exporter_file_errors_total{")]
    counts = {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in errors}
    assert 2 * 8 == sum(counts.values())
    assert (4, 2, 4, 6) == tuple(counts[reason] for reason in ("foreign", "version", "unreadable", "size"))


def test_folder_without_a_node_is_told(tmp_path: Path) -> None:
    """One clear message."""
    with pytest.raises(NotFoundError, match="no host node ran in"):
        Exposition(RunDir.for_node("nobody", tmp_path)).render()


def test_folder_that_cannot_be_read_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the machine, with the path."""

    def refuse(_self: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)

    with pytest.raises(ResourceError, match=r"cannot read .*counters: Permission denied"):
        Exposition(node.run_dir).render()


def test_owners_of_one_name_are_added_up(node: Node) -> None:
    """No series comes twice."""
    for number in ("1", "2"):
        node.count(
            SIGNAL, {"guest": "web", "device": "eth0", "signal": "rx", "id": number}, raises=5, priority=int(number)
        )

    assert ['vbnet_signal_raises_total{guest="web",device="eth0",signal="rx"} 10'] == node.lines("vbnet_signal_raises")
    assert ['vbnet_signal_info{guest="web",device="eth0",signal="rx",priority="2"} 1'] == node.lines(
        "vbnet_signal_info{"
    )

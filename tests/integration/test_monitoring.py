"""Dashboards, rules and alerts asked of a real Prometheus, which scrapes a lab at work and a host node in trouble.

Two host nodes are below one folder: ``t``, a lab whose guests use one of everything while frames flow and are lost; and
``host``, whose guests and whose own process are hurt. One exporter serves both, one Prometheus asks it.
"""

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from dashboards import rules
from dashboards.every import DASHBOARDS
from dashboards.panels import Dashboard
from dashboards.promql import Scope, any_of
from tests.support.lab import Lab, Net
from tests.support.prometheus import WINDOW, Prometheus, exporter, filled
from tests.support.real_lab import RealLab, real_lab
from tests.support.waiting import PATIENCE, eventually
from vbnet.bus.limits import Limits
from vbnet.bus.rundir import RunDir
from vbnet.devices.venet.metrics import LATENCY
from vbnet.errors import PeerGone
from vbnet.load.told import RunFigures
from vbnet.telemetry.shipped import DEPLOY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HERE = Path(__file__).parent / "prometheus"
LAB = """
name: t
switches: {lan: }
guests:
  gen: {kind: traffic, nics: [{switch: lan}], send: {to: sink, size: 128, rate: 5k}}
  sink: {kind: traffic, nics: [{switch: lan}]}
  storm: {kind: traffic, nics: [{switch: lan}], send: {to: deaf, size: 64, rate: 2k}}
  deaf: {kind: python, run: "busy.py:deaf", nics: [{switch: lan}]}
  alice: {kind: python, run: "busy.py:alice", disks: [{image: disk.img}]}
  bob: {kind: python, run: "busy.py:bob"}
  small: {kind: stack, nics: [{switch: lan, ip: 10.9.0.10/24}]}
  slow: {kind: stack, nics: [{switch: lan, ip: 10.9.0.11/24, model: e1000}]}
vhost-user:
  machine: {switch: lan}
devices:
  irq: {type: intc, guests: [alice, bob]}
  fast: {type: fastcall, guests: [alice, bob]}
  echo0: {type: echo, guests: [bob]}
  timer0: {type: timer, guests: [alice]}
  sched0: {type: sched, guests: [alice]}
  console0: {type: virtio-console, guests: [alice]}
  rng0: {type: virtio-rng, guests: [alice]}
  page: {type: state, attributes: {schema: "step:u64"}, guests: [alice]}
"""
TAIL = 0x80
"""Of a ring, as docs/wire/ring.md has it."""
QUICK = Limits(heartbeat_s=0.5, heartbeat_misses=3)
SETTLED_S = 40.0


@dataclass
class Watched:
    """What is scraped, and by whom."""

    lab: RealLab
    node: Lab
    net: Net
    prometheus: Prometheus
    native: Prometheus
    """Another, which takes native histograms."""


@pytest.fixture(scope="module")
def watched(program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Both host nodes with the exporter and Prometheus, and a capture, for as long as the module takes."""
    folder = tmp_path_factory.mktemp("prometheus")
    files = {"busy.py": (HERE / "busy.py").read_text(), "disk.img": "disk" * 1024}
    with ExitStack() as stack:
        lab = stack.enter_context(real_lab(LAB, files=files))
        stack.callback(shutil.rmtree, lab.root / "host", ignore_errors=True)
        node = stack.enter_context(Lab(lab.root, QUICK))
        stack.enter_context(suppress(PeerGone))  # the last test kills the node, which nobody can take down after that
        net = stack.enter_context(node.net())
        net.station()
        capture = lab.start("capture", "gen", "-n", "t", "-w", str(folder / "gen.pcapng"), stderr=subprocess.DEVNULL)
        stack.callback(capture.communicate)
        stack.callback(capture.kill)
        stack.callback(soaked(lab).close)
        binary, address = program("prometheus"), stack.enter_context(exporter(lab.root))
        prometheus = Prometheus(binary, folder, address)
        (folder / "native").mkdir()
        native = Prometheus(binary, folder / "native", address, ["native-histograms"])
        yield Watched(lab, node, net, *(stack.enter_context(each.running()) for each in (prometheus, native)))


def soaked(lab: RealLab) -> RunFigures:
    """Figures of a soak of the lab that did a fault, found something, and ended."""
    figures = RunFigures(RunDir.for_node("t", lab.root), "soak", "short", 60.0, planned_faults=3)
    figures.fault("kill")
    figures.found("lost")
    figures.went_on(30.0)
    figures.ended()
    return figures


def promtool(program: Callable[[str], str], *arguments: str, text: str = "") -> str:
    """Run promtool; what it finds wrong fails the test."""
    finished = subprocess.run(
        [program("promtool"), *arguments], input=text, capture_output=True, text=True, timeout=4 * PATIENCE, check=False
    )
    assert 0 == finished.returncode, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


def test_promtool_finds_nothing_wrong(watched: Watched, program: Callable[[str], str]) -> None:
    """Neither in what is exported, nor in rules and configuration, shipped or as the tests run them."""
    folder = DEPLOY / "prometheus"
    texts = [watched.lab.vbnet("metrics", "--node", node) for node in ("t", "host")]

    assert ["", ""] == [promtool(program, "check", "metrics", text=text) for text in texts]
    assert "SUCCESS" in promtool(program, "check", "rules", str(folder / "rules.yml"), str(folder / "alerts.yml"))
    for configuration in (folder / "prometheus.yml", watched.prometheus.configuration):
        assert "SUCCESS" in promtool(program, "check", "config", str(configuration))


def test_alerts_fire_when_they_should_and_not_before(program: Callable[[str], str]) -> None:
    """The unit tests of the shipped rules, in promtool's own form."""
    assert "SUCCESS" in promtool(program, "test", "rules", str(HERE / "alerts_test.yml"))


def test_every_lab_is_found_by_itself(watched: Watched) -> None:
    """Service discovery names both nodes; they differ in the label ``lab``, and both are scraped."""

    def up() -> dict[str, str]:
        return {series["metric"]["lab"]: series["value"][1] for series in watched.prometheus.query("vbnet_node_up")}

    eventually(lambda: set(up()) == {"t", "host"}, "both are scraped", SETTLED_S)

    assert {"t": "1", "host": "1"} == up()


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_every_panel_has_data(watched: Watched, dashboard: Dashboard) -> None:
    """Each query, as Grafana asks it with everything chosen, gives series; each choice has something to choose.

    What shows nothing in a quiet lab says until when (``empty_until``): all of that happens here. Only quarantined
    queues are shown elsewhere, as a guest has to be hurt for them.
    """
    prometheus = watched.prometheus
    hurt = {"Queues ended, by reason"}
    open_queries = {
        f"{panel.title}: {query.legend}": filled(query.expr.text)
        for panel in dashboard.panels()
        if panel.title not in hurt
        for query in panel.queries
    }

    def without_data() -> list[str]:
        for title in [title for title, query in open_queries.items() if prometheus.query(query)]:
            del open_queries[title]
        return list(open_queries)

    eventually(lambda: not without_data(), f"{dashboard.uid} has data", SETTLED_S)

    assert [] == [each.name for each in dashboard.variables if not prometheus.label_values(filled(each.query))]
    for mark in dashboard.marks:
        prometheus.query(filled(mark.expr.text))


def test_native_histograms_are_taken_by_who_takes_them_and_say_the_same(watched: Watched) -> None:
    """In place of classic ones; every panel and rule of a histogram asks for either, and quantiles agree."""
    residence = LATENCY.values["transmit_residence"]
    median = Scope(WINDOW, {"guest": any_of("gen")}).quantile(0.5, residence, "guest").text
    classic, native = watched.prometheus, watched.native
    histograms = [
        filled(query.expr.text)
        for dashboard in DASHBOARDS
        for panel in dashboard.panels()
        for query in panel.queries
        if "_bucket" in query.expr.text
    ]

    eventually(lambda: all(map(native.query, histograms)), "all native histograms are shown", SETTLED_S)
    eventually(lambda: all(each.query(median) for each in (classic, native)), "both have the median", SETTLED_S)
    [told], [natively] = classic.query(median), native.query(median)

    assert [] == native.query(f"{residence.name}_bucket")
    assert [] == classic.query(residence.name)
    assert 0.5 < float(natively["value"][1]) / float(told["value"][1]) < 2.0


def test_every_rule_is_recorded_and_every_alert_can_be_asked(watched: Watched) -> None:
    """Prometheus evaluates all of them without an error, and what is recorded has values."""
    prometheus = watched.prometheus
    recorded = [record.name for record in rules.records(WINDOW)]

    eventually(lambda: all(map(prometheus.query, recorded)), "all are recorded", SETTLED_S)

    evaluated = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert [] == [(rule["name"], rule["lastError"]) for rule in evaluated if rule["health"] == "err"]
    assert {*recorded, *(alert.name for alert in rules.alerts())} == {rule["name"] for rule in evaluated}


def test_storm_of_drops_fires_its_alert(watched: Watched) -> None:
    """A guest that takes no frames loses most of what is sent to it: told with port and reason, and no other port."""
    alert = watched.prometheus.wait_firing("VbnetReceiveDrops", SETTLED_S, lab="t", reason="no_room")

    assert ("deaf", "deaf.eth0", "lan") == tuple(alert["labels"][name] for name in ("guest", "device", "switch"))
    assert "deaf.eth0 on lan" in alert["annotations"]["description"]
    assert [] == watched.prometheus.firing("VbnetReceiveDrops", guest="sink")


def test_ring_that_breaks_a_rule_fires_its_alert(watched: Watched) -> None:
    """The host ends the queue; the alert and the panel name guest, device and rule."""
    prometheus, station = watched.prometheus, watched.net.station()
    eventually(lambda: prometheus.query(f'vbnet_queue_slots{{device="{station.port}"}}'), "it is scraped")

    with memoryview(station.guest.session.ram.view(station.nic.layout.tx_offset + TAIL, 4)) as tail:
        tail[:] = struct.pack("<I", 0xFFFF_FFF0)
    os.eventfd_write(station.nic._opened._signals[0].kick_fd, 1)
    alert = prometheus.wait_firing("VbnetQueueQuarantined", device=station.port)

    [panel] = [each for board in DASHBOARDS for each in board.panels() if each.title == "Queues ended, by reason"]
    [series] = prometheus.query(filled(panel.queries[0].expr.text))
    assert ("tail_out_of_range", station.guest.name) == (alert["labels"]["reason"], alert["labels"]["guest"])
    assert (station.port, "1") == (series["metric"]["device"], series["value"][1])


def test_guest_that_stands_still_fires_its_alert_and_clears_it(watched: Watched) -> None:
    """SIGSTOP: it answers nobody. Going on, it is well again."""
    guest = watched.net.process()
    name = next(each.name for each in watched.node.operator.guest_list() if each.pid == guest.pid)

    guest.pause()
    alert = watched.prometheus.wait_firing("VbnetGuestWedged", SETTLED_S, guest=name)
    guest.resume()

    assert ("stuck", "warning") == (alert["labels"]["state"], alert["labels"]["severity"])
    eventually(lambda: not watched.prometheus.firing("VbnetGuestWedged", guest=name), "it is well again", SETTLED_S)


def test_guest_that_is_killed_fires_its_alert_and_one_that_leaves_does_not(watched: Watched) -> None:
    """A goodbye is none, however close behind it the process ends; SIGKILL is told with its cause."""
    prometheus = watched.prometheus
    leaving, dying = watched.net.station(), watched.net.process()
    ended = 'increase(vbnet_guest_ended_total{lab="host",cause="bye"}[1m])'

    leaving.guest.close()
    eventually(
        lambda: any(float(row["value"][1]) > 0 for row in prometheus.query(ended)), "the goodbye is scraped", SETTLED_S
    )
    before = prometheus.firing("VbnetGuestLost", lab="host")
    dying.kill()
    alert = prometheus.wait_firing("VbnetGuestLost", SETTLED_S, lab="host")

    assert [] == before
    assert alert["labels"]["cause"] in {"exited", "hung-up"}


def test_node_that_hangs_and_is_killed_fires_one_alert_after_the_other(watched: Watched) -> None:
    """Hung is not down, and down is not hung; cleaned away it is gone; the lab beside it is none of these."""
    prometheus, host = watched.prometheus, watched.node.host

    host.pause()
    hung = prometheus.wait_firing("VbnetNodeHung", SETTLED_S)
    down_meanwhile = prometheus.firing("VbnetNodeDown")
    host.kill()
    down = prometheus.wait_firing("VbnetNodeDown", SETTLED_S)
    eventually(lambda: not prometheus.firing("VbnetNodeHung"), "it does not hang as well", SETTLED_S)
    shutil.rmtree(watched.node.run_dir.path)
    gone = prometheus.wait_firing("VbnetNodeGone", SETTLED_S)

    assert ["host", "host", "host"] == [alert["labels"]["lab"] for alert in (hung, down, gone)]
    assert [] == down_meanwhile
    eventually(lambda: not prometheus.firing("VbnetNodeDown"), "what is gone is not down", SETTLED_S)

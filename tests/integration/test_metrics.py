"""What a host node counts, read while it works, hangs and dies."""

from contextlib import suppress

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import vbnet_program
from tests.support.lab import Lab, Net
from tests.support.waiting import eventually
from vbnet.bus.rundir import RunDir
from vbnet.errors import PeerGone
from vbnet.telemetry import Exposition, read_counted
from vbnet.telemetry.collector import read_families

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(run_dir: RunDir) -> Series:
    """Every series of a node now."""
    families = list(text_string_to_metric_families(Exposition(run_dir).render().decode()))
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(samples) == len(found)
    return found


def value(series: Series, name: str, **labels: str) -> float | None:
    """Sum of the series of a name that have these labels; None: there are none."""
    found = [value for (known, all_), value in series.items() if known == name and labels.items() <= dict(all_).items()]
    return sum(found) if found else None


def counters(series: Series) -> Series:
    """Those that never go down."""
    return {key: value for key, value in series.items() if key[0].endswith(("_total", "_bucket", "_count"))}


def test_frames_are_seen_while_they_flow_and_no_counter_runs_backwards(net: Net) -> None:
    """Each look at a node at work is at least the one before, and ends with what was sent."""
    one, two = net.station(), net.station()
    looks = [scrape(net.lab.run_dir)]
    for _ in range(20):
        one.nic.send([one.to(two)] * 10, 10)
        looks.append(scrape(net.lab.run_dir))
    two.wait_given(200)
    looks.append(scrape(net.lab.run_dir))

    for before, after in zip(map(counters, looks), looks[1:], strict=False):
        assert [] == [key for key, count in before.items() if key in after and after[key] < count]
    labels = {"guest": two.guest.name, "device": two.port, "switch": net.switch}
    assert 200 == value(looks[-1], "vbnet_device_receive_packets_total", **labels)
    assert 200 * 64 == value(looks[-1], "vbnet_device_receive_bytes_total", **labels)
    slots = value(looks[-1], "vbnet_queue_slots", **labels, queue="receive")
    used = value(looks[-1], "vbnet_queue_used_slots", **labels, queue="receive")
    assert slots is not None
    assert used is not None
    assert 0 < used <= slots


def test_worker_is_seen_to_sleep_while_it_does(net: Net) -> None:
    """Without waking up: for the exporter, the collector and whoever reads counters by name, it sleeps on."""
    net.station()
    run_dir = net.lab.run_dir

    def looks() -> tuple[list[float], tuple[float | None, ...]]:
        """How long workers have slept, as each reader says in turn; how often, and how many ports are polled."""
        (collected,) = [family for family in read_families(run_dir) if family.name == "vbnet_worker_asleep_seconds"]
        named = read_counted(run_dir.counters, "worker")
        series = scrape(run_dir)
        exported = value(series, "vbnet_worker_asleep_seconds_total")
        assert exported is not None
        asleep = [
            sum(sample.value for sample in collected.samples),
            sum(worker.values["asleep_nanoseconds"] for worker in named) / 1e9,
            exported,
        ]
        return asleep, tuple(value(series, f"vbnet_worker_{name}") for name in ("sleeps_total", "active_ports"))

    def grown() -> list[float]:
        """What two looks show between which no worker went to sleep anew; nothing when one did."""
        (before, first), (after, second) = looks(), looks()
        return [*before, *after] if first == second == (first[0], 0) else []

    seen = eventually(grown, "workers sleep on")

    assert sorted(seen) == seen
    assert 6 == len(set(seen))


def test_everything_that_a_guest_has_is_counted_under_its_name(net: Net) -> None:
    """Its state, its device, its signals with their priority, its bus."""
    station = net.station(priority=6)
    name = station.guest.name

    series = scrape(net.lab.run_dir)

    assert (1, 0) == tuple(value(series, "vbnet_guest_state", guest=name, state=state) for state in ("ready", "ended"))
    assert 1 == value(series, "vbnet_device_openers", device=station.port, type="venet")
    assert 1 == value(series, "vbnet_bus_guests", bus=name)
    assert 2 == value(series, "vbnet_signal_info", guest=name, device=station.port, priority="6")
    requests = value(series, "vbnet_guest_requests_total", guest=name)
    assert requests is not None
    assert requests > 3
    assert 8 << 20 == value(series, "vbnet_guest_memory_bytes", guest=name)


def test_node_that_stands_still_is_read_and_its_heartbeat_shows_it(own_lab: Lab) -> None:
    """Nothing is asked of the node, so nothing hangs with it."""
    with own_lab.net() as net:
        station = net.station("venet-loopback")
        station.nic.send([station.to(station)] * 5, 10)
        station.wait_given(5)

        own_lab.host.pause()
        first, second = scrape(own_lab.run_dir), scrape(own_lab.run_dir)
        own_lab.host.resume()

    for series in (first, second):
        assert 1 == value(series, "vbnet_node_up")
        assert 5 == value(series, "vbnet_device_receive_packets_total", device=station.port)
    beats = [value(series, "vbnet_node_heartbeat_timestamp_seconds") for series in (first, second)]
    assert beats[0] == beats[1]
    assert 1.7e9 < (beats[0] or 0)


def test_node_that_was_killed_is_read_and_said_to_be_down(own_lab: Lab) -> None:
    """What it counted remains until its folder is cleaned; its process is not shown any more."""
    with suppress(PeerGone), own_lab.net() as net:  # taking the net down asks a host that is gone
        station = net.station("venet-loopback")
        station.nic.send([station.to(station)] * 5, 10)
        station.wait_given(5)
        before = scrape(own_lab.run_dir)
        own_lab.host.kill()

    after = scrape(own_lab.run_dir)
    assert (1, 0) == (value(before, "vbnet_node_up"), value(after, "vbnet_node_up"))
    assert 5 == value(after, "vbnet_device_receive_packets_total", device=station.port)
    assert value(before, "process_open_fds") is not None
    assert value(after, "process_open_fds") is None


def test_device_that_is_unplugged_vanishes(net: Net) -> None:
    """No series of its port, its signals or the device itself is left."""
    station = net.station()
    here = scrape(net.lab.run_dir)

    net.operator.device_unplug(station.port, station.guest.name)
    unplugged = scrape(net.lab.run_dir)
    net.operator.device_delete(station.port)
    deleted = scrape(net.lab.run_dir)

    assert value(here, "vbnet_device_transmit_packets_total", device=station.port) is not None
    assert value(unplugged, "vbnet_device_transmit_packets_total", device=station.port) is None
    assert value(unplugged, "vbnet_signal_raises_total", device=station.port) is None
    assert [] == [key for key in deleted if ("device", station.port) in key[1]]


def test_guest_that_comes_again_goes_on_counting(net: Net) -> None:
    """It is shown as ended meanwhile; coming again is a reconnect, and its requests go on from where they were."""
    name = net.plug_nic()

    def look(series_name: str, **labels: str) -> float | None:
        return value(scrape(net.lab.run_dir), series_name, guest=name, **labels)

    net.guest(name).close()
    eventually(lambda: look("vbnet_guest_state", state="ended") == 1, "it is shown as ended")
    requests = look("vbnet_guest_requests_total")
    net.guest(name)

    assert requests is not None
    assert (look("vbnet_guest_requests_total") or 0) > requests
    assert (1, 1) == (look("vbnet_guest_reconnects_total"), look("vbnet_guest_state", state="ready"))


def test_command_prints_what_prometheus_reads_and_json(own_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text for Prometheus, JSON for programs; a node that is not there is told with those that are."""
    monkeypatch.setenv("VBNET_RUN_DIR", str(own_lab.run_dir.path.parent))

    text = vbnet_program.run("metrics").stdout
    document = vbnet_program.rows("metrics")
    missing = vbnet_program.run("metrics", "--node", "nobody", code=3)

    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"vbnet_node_up", "vbnet_bus_requests"} <= names
    assert len(names) == len(document)
    assert "there are: host" in missing.stderr

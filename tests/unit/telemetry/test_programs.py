"""What guests' own programs count: declared in the guest, exported with its name, and survived when it is nonsense."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from vbnet._native import CounterFile, counter_labels
from vbnet.bus.kinds import discover
from vbnet.bus.rundir import RunDir
from vbnet.errors import ClosedError, ResourceError, UsageError
from vbnet.metric import Metric, MetricBlock, MetricCatalogue
from vbnet.sharedmem.programs import FILE_BYTES, METRICS_MAX, SERIES_MAX, ProgramCounters
from vbnet.telemetry import Collector, Exposition
from vbnet.telemetry.catalogue import known
from vbnet.telemetry.exposition import Format
from vbnet.telemetry.programs import program_families, read_programs

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """A node's run directory."""
    made = RunDir.for_node("lab", tmp_path)
    made.create()
    return made


def found(run_dir: RunDir) -> tuple[Series, Counter[str]]:
    """Every number, and what was left out and why."""
    programs = read_programs(run_dir)
    series = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in program_families(programs)
        for sample in family.samples
    }
    return series, +programs.drops


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """A series of a program."""
    return f"vbnet_guest_program_{name}", frozenset(labels.items())


def forged(run_dir: RunDir, guest: str, *blocks: tuple[str, dict[str, str], int], size: int = FILE_BYTES) -> None:
    """Write a guest's file as a guest can that does not keep to the rules."""
    file = CounterFile.create(run_dir.program_counters(guest), size)
    held = []
    for kind, labels, value in blocks:
        block = file.allocate(kind, counter_labels(list(labels.items())), 1)
        block.set(0, value)
        held.append(block)
    path = run_dir.program_counters(guest)
    content = path.read_bytes()
    path.unlink()  # whose blocks are freed when they are let go
    path.write_bytes(content)


def declaration(name: str, kind: str = "counter", unit: str = "", text: str = "A thing.") -> dict[str, str]:
    """Labels of a block that declares."""
    return {"name": name, "type": kind, "unit": unit or name, "help": text}


def test_numbers_are_exported_with_the_guests_name(run_dir: RunDir) -> None:
    """Counters, gauges, members told apart by labels, and units other than those counted in."""
    with ProgramCounters(run_dir.program_counters("shop")) as counters:
        counters.counter("orders", help="Orders taken.").add(3)
        counters.counter("lost", help="Orders lost.", unit="orders", fixed={"reason": 'say "no"\n'}).add()
        counters.gauge("stock", help="Pieces.", unit="pieces").set(40)
        counters.counter("busy_seconds", help="Time.", unit="seconds", per_unit=1000).add(2500)

        series, drops = found(run_dir)

    assert {
        key("orders_total", guest="shop"): 3,
        key("lost_total", guest="shop", reason='say "no"\n'): 1,
        key("stock", guest="shop"): 40,
        key("busy_seconds_total", guest="shop"): 2.5,
    } == series
    assert Counter() == drops


def test_file_goes_with_its_guest_and_counting_ends(run_dir: RunDir) -> None:
    """Closed, nothing is exported, and a counter that is still held says so."""
    counters = ProgramCounters(run_dir.program_counters("shop"))
    orders = counters.counter("orders", help="Orders taken.")

    counters.close()
    counters.close()

    assert ({}, Counter()) == found(run_dir)
    assert [] == list(run_dir.programs.iterdir())
    with pytest.raises(ClosedError):
        orders.add()
    with pytest.raises(ClosedError):
        counters.counter("more", help="More.")


def test_same_counter_is_given_again_and_another_of_its_name_is_refused(run_dir: RunDir) -> None:
    """Asked for twice it counts on; declared otherwise it is the program's mistake."""
    with ProgramCounters(run_dir.program_counters("shop")) as counters:
        counters.counter("orders", help="Orders.").add()
        counters.counter("orders", help="Orders.").add()

        with pytest.raises(UsageError, match="declared otherwise"):
            counters.gauge("orders", help="Orders.")

        assert {key("orders_total", guest="shop"): 2} == found(run_dir)[0]


@pytest.mark.parametrize(
    ("declare", "why"),
    [
        (lambda counters: counters.counter("Orders", help="A."), "named like"),
        (lambda counters: counters.counter("orders_total", help="A."), "ending"),
        (lambda counters: counters.counter("o" * 65, help="A."), "64 characters"),
        (lambda counters: counters.counter("orders", help="A.", fixed={"guest": "other"}), "not a program's"),
        (lambda counters: counters.counter("orders", help="A.", fixed={"le": "1"}), "not a program's"),
        (lambda counters: counters.counter("orders", help="A.", fixed={"0": "1"}), "malformed label"),
        (lambda counters: counters.counter("orders", help="A.", fixed={"user": "u" * 200}), "too long"),
        (lambda counters: counters.counter("orders", help="A" * 200), "too long"),
        (lambda counters: counters.counter("orders", help="A.", per_unit=0), "make a unit"),
        (lambda counters: counters.counter("orders", help="A.").add(-1), "lies between"),
        (lambda counters: counters.gauge("orders", help="A.").set(1 << 64), "lies between"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_declared(
    run_dir: RunDir, declare: Callable[[ProgramCounters], object], why: str
) -> None:
    """The program hears of it, not the operator."""
    with ProgramCounters(run_dir.program_counters("shop")) as counters, pytest.raises(UsageError, match=why):
        declare(counters)


def test_labels_that_grow_are_stopped_and_what_there_is_stays(run_dir: RunDir) -> None:
    """A number and a metric too many are refused; all before them are exported."""
    with ProgramCounters(run_dir.program_counters("shop")) as counters:
        for number in range(SERIES_MAX):
            counters.counter("orders", help="Orders.", fixed={"user": str(number)}).add()
        with pytest.raises(ResourceError, match="does not grow"):
            counters.counter("orders", help="Orders.", fixed={"user": "another"})

        assert (SERIES_MAX, Counter()) == (len(found(run_dir)[0]), found(run_dir)[1])
    with ProgramCounters(run_dir.program_counters("many")) as counters:
        for number in range(METRICS_MAX):
            counters.counter(f"metric_{number}", help="One.")
        with pytest.raises(ResourceError):
            counters.counter("another", help="One.")


def test_guest_on_another_machine_counts_for_itself() -> None:
    """There is no file that the exporter could read."""
    with ProgramCounters(None) as counters:
        orders = counters.counter("orders", help="Orders.")
        orders.add(2)

        assert (2, False) == (orders.value, counters.is_exported)


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ([("program", {"metric": "orders"}, 1)], "undeclared"),
        ([("program_metric", declaration("orders", "histogram"), 1)], "malformed"),
        ([("program_metric", declaration("up{"), 1)], "malformed"),
        ([("program_metric", declaration("orders"), 0)], "malformed"),
        ([("program_metric", {"name": "orders"}, 1)], "malformed"),
        ([("program_metric", declaration("a"), 1), ("program", {"metric": "a", "guest": "other"}, 1)], "malformed"),
        ([("program_metric", declaration("a"), 1), ("program_metric", declaration("a"), 1)], "malformed"),
        ([("port", {"guest": "other", "device": "eth0", "switch": "lan"}, 1)], "unknown"),
    ],
)
def test_forged_block_is_left_out_and_counted(
    run_dir: RunDir, blocks: list[tuple[str, dict[str, str], int]], reason: str
) -> None:
    """It names no other guest, no metric of vbnet's own, and nothing that Prometheus cannot have."""
    forged(run_dir, "liar", *blocks)

    series, drops = found(run_dir)

    assert ({}, {reason: 1}) == (series, dict(drops))


def test_number_that_is_there_twice_is_told_once(run_dir: RunDir) -> None:
    """Prometheus refuses a whole scrape for a series that comes twice."""
    forged(
        run_dir,
        "liar",
        ("program_metric", declaration("a"), 1),
        ("program", {"metric": "a", "x": "1"}, 5),
        ("program", {"metric": "a", "x": "1"}, 6),
    )

    assert ({key("a_total", guest="liar", x="1"): 5}, Counter(malformed=1)) == found(run_dir)


def test_guests_that_disagree_are_told_apart_by_the_alphabet(run_dir: RunDir) -> None:
    """The first is believed; the other's number has no place in a family of another kind."""
    with (
        ProgramCounters(run_dir.program_counters("bob")) as bobs,
        ProgramCounters(run_dir.program_counters("alice")) as alices,
    ):
        bobs.counter("jobs", help="Jobs done.").add(7)
        alices.gauge("jobs", help="Jobs to do.").set(2)

        assert ({key("jobs", guest="alice"): 2}, Counter(conflict=1)) == found(run_dir)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "size"),
        (lambda path: path.write_bytes(b"\0" * FILE_BYTES), "foreign"),
        (lambda path: path.write_bytes(os.urandom(FILE_BYTES)), "foreign"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 40), "size"),
        (os.mkfifo, "size"),
        (os.mkdir, "size"),
    ],
)
def test_file_that_is_none_is_skipped_and_others_are_read(
    run_dir: RunDir, write: Callable[[Path], object], reason: str
) -> None:
    """Half-written, huge or no file at all: one reason, and the neighbour's numbers."""
    write(run_dir.program_counters("broken"))
    with ProgramCounters(run_dir.program_counters("shop")) as counters:
        counters.counter("orders", help="Orders.").add()

        assert ({key("orders_total", guest="shop"): 1}, Counter({reason: 1})) == found(run_dir)


@given(data=st.data())
def test_whatever_is_in_a_file_the_scrape_can_be_parsed(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes of a true file, changed anywhere: text and OpenMetrics stay what a parser takes, with every family once."""
    run_dir = RunDir.for_node("lab", tmp_path_factory.mktemp("node"))
    run_dir.create()
    with ProgramCounters(run_dir.program_counters('a"\n')) as counters:
        counters.counter("orders", help='Orders "taken"\n\\', fixed={"reason": 'x"\n\\'}).add()
        counters.gauge("stock", help="Pieces.").set(3)
        path = run_dir.program_counters('a"\n')
        content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 12))):
        content[data.draw(st.integers(64, 1500))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    exposition = Exposition(run_dir, known(discover(with_entry_points=False)))

    names = [family.name for family in parse_text(exposition.render().decode())]
    opened = list(openmetrics_parser.text_string_to_metric_families(exposition.render(Format.OPENMETRICS).decode()))  # type: ignore[no-untyped-call]

    assert len(names) == len(set(names))
    assert opened
    assert exposition.render(Format.PROTOBUF)


def test_collector_says_the_same_and_what_was_left_out(run_dir: RunDir) -> None:
    """Both ways of reading a node have programs' numbers; drops are counted at each read."""
    forged(run_dir, "liar", ("program", {"metric": "nothing"}, 1))
    with ProgramCounters(run_dir.program_counters("shop")) as counters:
        counters.counter("orders", help="Orders.").add(4)
        catalogue = known(discover(with_entry_points=False))
        exposition, collector = Exposition(run_dir, catalogue), Collector(run_dir, catalogue)

        text = [exposition.render().decode() for _ in range(2)][-1]
        collected = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in [*collector.collect()]
            for sample in family.samples
        }

    assert 'vbnet_guest_program_orders_total{guest="shop"} 4.0' in text
    assert 'vbnet_exporter_program_drop_total{reason="undeclared"} 2.0' in text
    assert 4 == collected[("vbnet_guest_program_orders_total", ("guest", "shop"))]
    assert 1 == collected[("vbnet_exporter_program_drop_total", ("reason", "undeclared"))]


def test_nothing_of_vbnets_own_is_named_like_a_program() -> None:
    """The prefix is guests' alone."""
    block = MetricBlock("x", (), {"a": Metric("vbnet_guest_program_orders_total", "orders", "Orders.")})

    with pytest.raises(UsageError, match="theirs alone"):
        MetricCatalogue([block])

"""Declarations: every native counter has one, families hold together, other people's mistakes hurt only them."""

import sys
from types import MappingProxyType, ModuleType

import pytest

from vbnet import _native
from vbnet.bus.kinds import Catalogue, Kind, discover
from vbnet.devices.card.metrics import CARD
from vbnet.devices.fastcall.metrics import SERVICE, SLOT
from vbnet.devices.intc.metrics import LATENCY as SIGNAL_LATENCY
from vbnet.devices.intc.metrics import OUTBOX, OUTBOX_LATENCY, SIGNAL
from vbnet.devices.sched.metrics import SCHED
from vbnet.devices.timer.metrics import TIMER
from vbnet.devices.venet.metrics import LATENCY, PORT, SINK, SOURCE, STACK
from vbnet.errors import UsageError
from vbnet.hostnode.metrics import CAPTURE, SWITCH, VHOST_USER, WORKER
from vbnet.metric import HISTOGRAM_WORDS, Metric, MetricBlock, MetricCatalogue, MetricKind
from vbnet.telemetry.catalogue import installed, known


@pytest.mark.parametrize(
    ("names", "block"),
    [
        (_native.PORT_COUNTERS, PORT),
        (_native.CARD_COUNTERS, CARD),
        (_native.PORT_LATENCIES, LATENCY),
        (_native.SIGNAL_LATENCIES, SIGNAL_LATENCY),
        (_native.STACK_COUNTERS, STACK),
        (_native.TRAFFIC_SOURCE_COUNTERS, SOURCE),
        ([*_native.TRAFFIC_SINK_COUNTERS, "latency"], SINK),
        (_native.SWITCH_COUNTERS, SWITCH),
        (_native.WORKER_COUNTERS, WORKER),
        (_native.CAPTURE_COUNTERS, CAPTURE),
        (_native.VHOST_USER_COUNTERS, VHOST_USER),
        (_native.LINE_COUNTERS, SIGNAL),
        (_native.OUTBOX_COUNTERS, OUTBOX),
        (_native.OUTBOX_LATENCIES, OUTBOX_LATENCY),
        (_native.TIMER_COUNTERS, TIMER),
        (_native.SCHED_COUNTERS, SCHED),
        (_native.FASTCALL_COUNTERS, SLOT),
        (_native.FASTCALL_SERVICE_COUNTERS, SERVICE),
    ],
    ids=lambda value: value.kind if isinstance(value, MetricBlock) else "",
)
def test_native_counters_are_declared_in_their_order(names: list[str], block: MetricBlock) -> None:
    """Value n of a native block is the n-th of its declaration, under the same name."""
    assert names == list(block.values)


def test_histogram_has_as_many_words_as_the_native_one() -> None:
    """The words in front of the buckets, and the buckets."""
    assert 4 + len(_native.histogram_bounds()) == HISTOGRAM_WORDS


def test_everything_of_this_project_is_declared_without_a_problem() -> None:
    """All own kinds are in the catalogue."""
    found = known(discover(with_entry_points=False))

    assert () == found.problems
    assert {"host", "guest", "bus", "device", "port", "switch", "worker", "signal", "timekeeper"} <= set(
        found.metrics.blocks
    )


def test_no_label_is_a_number_of_a_session() -> None:
    """What grows with each start of something is no label."""
    labels = {label for block in installed().metrics.blocks.values() for label in block.labels}

    assert set() == labels & {"id", "pid", "sid", "session", "port"}


def metric(name: str = "vbnet_x_total", **more: object) -> Metric:
    """A counter, with whatever a test changes."""
    return Metric(name, "things", "Things.", **more)  # type: ignore[arg-type]


OTHER_UNIT = Metric("vbnet_x_total", "bytes", "Things.", fixed={"r": "b"})


@pytest.mark.parametrize(
    "blocks",
    [
        [MetricBlock("x", (), {}), MetricBlock("x", (), {})],
        [MetricBlock("x", (), {"a": metric()}), MetricBlock("y", (), {"a": metric()})],
        [MetricBlock("x", (), {"a": metric(), "b": metric(fixed={"reason": "b"})})],
        [MetricBlock("x", (), {"a": metric(fixed={"r": "a"}), "b": OTHER_UNIT})],
    ],
    ids=["kind twice", "family of two kinds", "labels differ", "unit differs"],
)
def test_declarations_that_do_not_fit_together_are_refused(blocks: list[MetricBlock]) -> None:
    """A family is one thing: one kind of block, one unit, one help, one set of labels."""
    with pytest.raises(UsageError):
        MetricCatalogue(blocks)


@pytest.mark.parametrize(
    ("kind", "labels", "values"),
    [
        ("X", (), {}),
        ("x" * 33, (), {}),
        ("x", ("No",), {}),
        ("x", (), {"a": metric(), "b": metric()}),
        ("x", ("reason",), {"a": metric(fixed={"reason": "a"})}),
    ],
    ids=["kind", "long kind", "label", "value twice", "label twice"],
)
def test_block_that_breaks_the_rules_is_refused(kind: str, labels: tuple[str, ...], values: dict[str, Metric]) -> None:
    """The mistake shows when the module loads."""
    with pytest.raises(UsageError):
        MetricBlock(kind, labels, values)


def test_place_of_a_value_counts_the_words_of_histograms_before_it() -> None:
    """A histogram takes as many words as it has."""
    late = Metric("vbnet_late_seconds", "seconds", "Late.", MetricKind.HISTOGRAM)
    block = MetricBlock("x", (), {"late": late, "after": metric()})

    assert (0, HISTOGRAM_WORDS, HISTOGRAM_WORDS + 1) == (block.index("late"), block.index("after"), block.words)
    with pytest.raises(KeyError):
        block.index("nothing")


def test_package_with_a_broken_declaration_is_named_and_the_rest_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's mistake costs only what is theirs."""
    module = ModuleType("foreign_kinds")
    module.FINE = (MetricBlock("fine", (), {"a": metric("vbnet_fine_total")}),)  # type: ignore[attr-defined]
    module.CLASH = (MetricBlock("port", (), {}),)  # type: ignore[attr-defined]
    module.OLD = (metric("vbnet_old_total"),)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "foreign_kinds", module)
    nothing: MappingProxyType[str, str] = MappingProxyType({})
    kinds = [Kind(name, nothing, nothing, f"foreign_kinds:{name.upper()}") for name in ("fine", "clash", "old", "gone")]
    own = discover(with_entry_points=False).kinds.values()

    found = known(Catalogue.of([*own, *kinds]))

    assert {"fine", "port"} <= set(found.metrics.blocks)
    assert PORT == found.metrics.blocks["port"]
    assert ["clash", "old", "gone"] == [
        problem.removeprefix("device kind ").split(":")[0] for problem in found.problems
    ]

"""The leaf modules: metrics, time moved by hand, versions of libzmq."""

from typing import Any

import pytest

from vbnet.bus.transport import require_libzmq
from vbnet.errors import ResourceError, UsageError
from vbnet.metric import Metric, MetricKind
from vbnet.testing import ManualClock
from vbnet.units import seconds_to_ns


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("bus_calls_total", MetricKind.COUNTER, {}),
        ("vbnet_Calls_total", MetricKind.COUNTER, {}),
        ("vbnet_calls", MetricKind.COUNTER, {}),
        ("vbnet_guests_total", MetricKind.GAUGE, {}),
        ("vbnet_guests_info", MetricKind.GAUGE, {}),
        ("vbnet_calls_total", MetricKind.COUNTER, {"fixed": {"No": "x"}}),
        ("vbnet_calls_total", MetricKind.COUNTER, {"per_unit": 0}),
        ("vbnet_calls_total", MetricKind.COUNTER, {"shown_as": "x"}),
        ("vbnet_state", MetricKind.STATE, {"shown_as": "state"}),
        ("vbnet_calls_info", MetricKind.INFO, {}),
    ],
)
def test_a_metric_that_breaks_the_rules_is_refused(name: str, kind: MetricKind, more: dict[str, Any]) -> None:
    """The mistake shows when the module loads, not on a dashboard."""
    with pytest.raises(UsageError):
        Metric(name, "calls", "Calls.", kind, **more)


def test_timers_run_in_order_each_at_its_own_moment() -> None:
    """Moving far runs everything on the way, including timers that timers set."""
    clock = ManualClock()
    seen: list[tuple[str, int]] = []
    clock.call_later(seconds_to_ns(2), lambda: seen.append(("late", clock.now_ns())))
    clock.call_later(
        seconds_to_ns(1), lambda: clock.call_later(seconds_to_ns(0.5), lambda: seen.append(("set", clock.now_ns())))
    )
    clock.call_later(seconds_to_ns(1), lambda: seen.append(("never", 0))).cancel()

    clock.advance(5)

    assert [("set", seconds_to_ns(1.5)), ("late", seconds_to_ns(2))] == seen
    assert (seconds_to_ns(5), 0) == (clock.now_ns(), clock.pending)


def test_an_old_libzmq_is_refused_with_what_to_do() -> None:
    """Known holes are not a warning."""
    with pytest.raises(ResourceError, match=r"4\.3\.5"):
        require_libzmq((4, 3, 4))

    require_libzmq((4, 3, 5))
    require_libzmq()

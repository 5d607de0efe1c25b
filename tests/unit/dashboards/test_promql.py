"""Queries made of metrics: what they look like, and what cannot be written."""

from collections.abc import Callable

import pytest

from dashboards.promql import UP, Scope, any_of, families, none_of, whole
from vbnet.devices.timer.metrics import TIMEKEEPER
from vbnet.devices.venet.metrics import PORT
from vbnet.errors import UsageError
from vbnet.hostnode.metrics import GUEST, HEARTBEAT, REFUSED, SWITCH, WORKER
from vbnet.metric import Metric

BARE = Scope("1m")
NARROWED = Scope("5m", {"lab": '=~"$lab"', "guest": '=~"$guest"'}, keep=("job",))
LOST = PORT.values["receive_drop_no_room"]


def test_rate_of_a_family_sums_over_what_is_not_named() -> None:
    """The labels asked for remain; the unit is by the second."""
    expr = BARE.rate(whole(LOST), "device", "reason")

    assert "sum by (device, reason) (rate(vbnet_device_receive_drop_total[1m]))" == expr.text
    assert ("pps", ["vbnet_device_receive_drop_total"]) == (expr.unit, list(expr.metrics))


def test_metric_with_fixed_labels_means_that_member() -> None:
    """A member is matched by what tells it from its siblings."""
    assert 'sum(rate(vbnet_device_receive_drop_total{reason="no_room"}[1m]))' == BARE.rate(LOST).text


def test_scope_matches_where_a_metric_has_the_label_and_keeps_labels_of_targets() -> None:
    """A switch has no guest, so only the lab is matched."""
    assert (
        'sum by (job, switch) (vbnet_switch_ports{lab=~"$lab"})'
        == NARROWED.total(SWITCH.values["ports"], "switch").text
    )
    assert 'vbnet_guest_handles{lab=~"$lab", guest=~"$guest"}' == NARROWED.now(GUEST.values["handles"]).text


def test_share_is_nothing_where_there_is_nothing_to_share() -> None:
    """No division by zero: there is no value, and no line is drawn."""
    values = GUEST.values

    expr = BARE.total(values["memory"], "guest") / BARE.total(values["memory_limit"], "guest")

    assert "percentunit" == expr.unit
    assert (
        "(sum by (guest) (vbnet_guest_memory_bytes) / (sum by (guest) (vbnet_guest_memory_limit_bytes) > 0))"
        == expr.text
    )


def test_quantile_asks_the_buckets_of_a_histogram() -> None:
    """The label of buckets is kept for the quantile, which takes it away."""
    assert (
        "(histogram_quantile(0.99, sum by (le, lab) (rate(vbnet_timer_lateness_seconds_bucket[1m])))"
        " or histogram_quantile(0.99, sum by (lab) (rate(vbnet_timer_lateness_seconds[1m]))))"
        == BARE.quantile(0.99, TIMEKEEPER.values["late"], "lab").text
    )


def test_buckets_are_those_of_the_histogram_that_there_is() -> None:
    """Classic ones, or else one native series with all of them."""
    assert (
        "sum by (le) (rate(vbnet_timer_lateness_seconds_bucket[1m]))"
        " or ignoring (le) sum(rate(vbnet_timer_lateness_seconds[1m]))" == BARE.buckets(TIMEKEEPER.values["late"]).text
    )


def test_age_is_taken_at_the_scrape_not_when_it_is_asked() -> None:
    """Otherwise a slow scrape would look like a node that hangs."""
    name = "vbnet_node_heartbeat_timestamp_seconds"

    assert f"(timestamp({name}) - {name})" == BARE.age(HEARTBEAT).text


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (lambda: BARE.rate(whole(LOST), "worker"), "has no label 'worker'"),
        (lambda: BARE.now(UP, device=any_of("x")), "has no label 'device'"),
        (lambda: BARE.rate(whole(LOST), reason=any_of("no_rom")), "never has reason='no_rom'"),
        (lambda: BARE.now(GUEST.values["state"], state=none_of("redy", "ended")), "never has state='redy'"),
        (lambda: BARE.rate(WORKER.values["ports"]), "is no counter"),
        (lambda: BARE.quantile(0.5, WORKER.values["ports"]), "is no histogram"),
        (lambda: whole(Metric("vbnet_nothing_total", "things", "Nothing.")), "nothing exports vbnet_nothing_total"),
        (lambda: BARE.label_values(WORKER.values["ports"], "guest"), "has no label 'guest'"),
    ],
)
def test_what_is_not_exported_cannot_be_asked_for(write: Callable[[], object], named: str) -> None:
    """Names, labels, and values of labels that are known; and what a kind of metric has not."""
    with pytest.raises(UsageError, match=named):
        write()


def test_choices_of_grafana_ask_one_series_or_several() -> None:
    """Several families share only the matchers that all have."""
    one = NARROWED.label_values(GUEST.values["handles"], "guest")
    several = NARROWED.label_values((GUEST.values["handles"], SWITCH.values["ports"]), "lab")

    assert 'label_values(vbnet_guest_handles{lab=~"$lab", guest=~"$guest"}, guest)' == one
    assert 'label_values({__name__=~"vbnet_guest_handles|vbnet_switch_ports", lab=~"$lab"}, lab)' == several


def test_families_know_the_values_of_their_labels() -> None:
    """Those that are declared; names that people choose are not known beforehand."""
    refused = whole(REFUSED)

    assert refused == families()["vbnet_bus_refused_total"]
    assert "ENOENT" in refused.values["code"]
    assert "guest" not in families()["vbnet_guest_handles"].values

"""Recording and alert rules for Prometheus.

``recording()`` and ``alerting()`` give the documents of ``deploy/prometheus/rules.yml`` and ``alerts.yml``. Both take
the window of rates, and ``alerting`` how long a state must last, so that tests can ask a real Prometheus the same rules
within seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from dashboards.promql import PROCESS, TARGET_LABELS, UP, Expr, Scope, any_of, none_of, whole
from dashboards.threads import awake, busy
from vbnet.devices.intc.metrics import OUTBOX, SIGNAL
from vbnet.devices.sched.metrics import SCHED
from vbnet.devices.timer.metrics import TIMEKEEPER, TIMER
from vbnet.devices.venet.metrics import LATENCY, PORT
from vbnet.hostnode import metrics as host
from vbnet.telemetry import own

__all__ = ["RUNBOOKS", "Alert", "Record", "alerting", "alerts", "recording", "records"]

RUNBOOKS: Final = "https://vbnet.dev/docs/runbooks"
"""Where ``docs/runbooks`` is published."""
_WINDOW: Final = "1m"
_PORT: Final = ("guest", "device", "switch")
_LONG: Final = "10m"


@dataclass(frozen=True, slots=True)
class Record:
    """A query whose answer Prometheus keeps under a name of its own: ``level:metric:operations``."""

    name: str
    expr: Expr


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Args:
        name: ``Vbnet…``; the runbook has the same in lower case with hyphens.
        expr: fires while it has a value. lasting: for how long it must, first.
        severity: ``critical`` wants somebody now, ``warning`` today, ``info`` is there to explain others.
        summary: one line. description: with values, in Prometheus' templates.
    """

    name: str
    expr: Expr
    lasting: str
    severity: str
    summary: str
    description: str

    @property
    def runbook(self) -> str:
        """File name of its runbook, without ``.md``."""
        return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in self.name).lstrip("-")


def _scope(window: str) -> Scope:
    return Scope(window, keep=TARGET_LABELS)


def _given(here: Scope, direction: str, *by: str) -> Expr:
    return here.rate(PORT.values[f"{direction}_frames"], *by)


def _lost(here: Scope, direction: str, *by: str) -> Expr:
    return here.rate(whole(PORT.values[f"{direction}_drop_oversize"]), *by)


def _handled(here: Scope, direction: str) -> Expr:
    return _given(here, direction, *_PORT) + _lost(here, direction, *_PORT)


def records(window: str = _WINDOW) -> list[Record]:
    """Return what is recorded: what overviews over long times and other people's dashboards ask again and again."""
    here = _scope(window)
    late = TIMEKEEPER.values["late"]
    return [
        Record(f"lab:vbnet_device_receive_packets:rate{window}", _given(here, "receive")),
        Record(f"lab:vbnet_device_receive_bytes:rate{window}", here.rate(PORT.values["receive_bytes"])),
        Record(f"lab:vbnet_device_transmit_packets:rate{window}", _given(here, "transmit")),
        Record(f"lab_reason:vbnet_device_receive_drop:rate{window}", _lost(here, "receive", "reason")),
        Record(f"lab_reason:vbnet_device_transmit_drop:rate{window}", _lost(here, "transmit", "reason")),
        Record(
            f"lab_device:vbnet_device_receive_drop:ratio{window}",
            _lost(here, "receive", *_PORT) / _handled(here, "receive"),
        ),
        Record(f"lab_worker:vbnet_worker_awake:ratio{window}", awake(here)),
        Record(f"lab_worker:vbnet_worker_busy_rounds:ratio{window}", busy(here)),
        Record(f"lab:vbnet_timer_lateness_seconds:p99_{window}", here.quantile(0.99, late)),
        Record("lab:vbnet_node_heartbeat_age_seconds:max", here.age(host.HEARTBEAT).largest(*TARGET_LABELS)),
    ]


def _drop_alerts(here: Scope) -> list[Alert]:
    made = []
    for direction, words in (("receive", "for"), ("transmit", "from")):
        lost = _lost(here, direction, *_PORT, "reason") > 10
        share = lost.share_of(_handled(here, direction), *TARGET_LABELS, *_PORT) > 0.01
        made.append(
            Alert(
                f"Vbnet{direction.title()}Drops",
                share,
                "1m",
                "warning",
                f"Frames {words} {{{{ $labels.device }}}} are lost: {{{{ $labels.reason }}}}",
                f"Lab {{{{ $labels.lab }}}}: {{{{ $value | humanizePercentage }}}} of the frames {words} "
                "{{ $labels.guest }} ({{ $labels.device }} on {{ $labels.switch }}) are lost, reason "
                "{{ $labels.reason }}.",
            )
        )
    return made


def _node_alerts(here: Scope) -> list[Alert]:
    heartbeat = here.age(host.HEARTBEAT) > here.now(host.HEARTBEAT_INTERVAL).times(3)
    files = here.total(own.FILE_USED, "file") / here.total(own.FILE_BYTES, "file")
    unread = here.increase(own.ERRORS, "reason", window=_LONG) > 0
    open_fds = here.total(PROCESS["open_fds"]) / here.total(PROCESS["max_fds"])
    return [
        Alert(
            "VbnetScrapeFailing",
            here.now(UP, job=any_of("vbnet")).is_value(0),
            "1m",
            "critical",
            "Metrics of lab {{ $labels.lab }} cannot be read",
            "Prometheus does not reach the exporter at {{ $labels.instance }}: nothing else is known of the lab.",
        ),
        Alert(
            "VbnetNothingScraped",
            here.now(own.UP).absent(),
            "5m",
            "info",
            "No host node is scraped",
            "Service discovery lists no host node, or cannot be reached. Harmless while no lab is up.",
        ),
        Alert(
            "VbnetNodeDown",
            here.now(own.UP).is_value(0),
            "15s",
            "critical",
            "The host node of lab {{ $labels.lab }} died",
            "Its process is gone and its run directory is still there: it was killed or crashed. Its guests have no "
            "network.",
        ),
        Alert(
            "VbnetNodeGone",
            here.gone(own.UP, "5m"),
            "0s",
            "info",
            "Lab {{ $labels.lab }} is no more",
            "Its host node was there within five minutes, and nothing is left of it: it was taken down, or it died, "
            "which ends a lab of `vbnet up` at once.",
        ),
        Alert(
            "VbnetNodeHung",
            heartbeat.while_(here.now(own.UP).is_value(1), *TARGET_LABELS),
            "15s",
            "critical",
            "The host node of lab {{ $labels.lab }} hangs",
            "Its event loop last ran {{ $value | humanizeDuration }} before it was looked at: no guest can come, "
            "open, or be told anything. Its workers may go on moving frames.",
        ),
        Alert(
            "VbnetDescriptorsShort",
            open_fds > 0.8,
            "1m",
            "warning",
            "The host node of lab {{ $labels.lab }} runs out of descriptors",
            "{{ $value | humanizePercentage }} of the descriptors that it may open are open.",
        ),
        Alert(
            "VbnetCountersFileFull",
            files > 0.9,
            "1m",
            "warning",
            "Counters file {{ $labels.file }} of lab {{ $labels.lab }} is nearly full",
            "{{ $value | humanizePercentage }} of it has blocks. When it is full, new devices work uncounted.",
        ),
        Alert(
            "VbnetCountersUnread",
            unread,
            "0s",
            "warning",
            "A counters file of lab {{ $labels.lab }} cannot be read",
            "The exporter skipped it: {{ $labels.reason }}. What is counted there is missing.",
        ),
        Alert(
            "VbnetDeviceFailure",
            here.increase(host.DEVICE_FAILURES, window=_LONG) > 0,
            "0s",
            "warning",
            "A bug in device code of lab {{ $labels.lab }} was contained",
            "{{ $value | humanize }} failures within ten minutes. The device's users were told; the host goes on.",
        ),
        Alert(
            "VbnetWorkerSaturated",
            (awake(here).wrapped() > 0.95).while_(busy(here) > 0.9, *TARGET_LABELS, "worker"),
            "2m",
            "warning",
            "Worker {{ $labels.worker }} of lab {{ $labels.lab }} is at its limit",
            "It is awake {{ $value | humanizePercentage }} of the time, and nearly every round moves frames.",
        ),
    ]


def _guest_alerts(here: Scope) -> list[Alert]:
    state = host.GUEST.values["state"]
    expected = ("bye", "bus-deleted", "host-stopped")
    ended = here.increase(whole(host.ENDED), "cause", window="5m", cause=none_of(*expected)) > 0
    return [
        Alert(
            "VbnetGuestWedged",
            here.now(state, state=any_of("wedged", "stuck")).is_value(1),
            "30s",
            "warning",
            "Guest {{ $labels.guest }} of lab {{ $labels.lab }} is {{ $labels.state }}",
            "wedged: a handler of the guest hangs. stuck: it has not answered for too long.",
        ),
        Alert(
            "VbnetGuestLost",
            ended,
            "0s",
            "info",
            "A guest of lab {{ $labels.lab }} ended without a goodbye",
            "{{ $value | humanize }} sessions within five minutes, cause {{ $labels.cause }}.",
        ),
        Alert(
            "VbnetGuestRestarting",
            here.increase(host.GUEST.values["reconnects"], "guest", window=_LONG) > 3,
            "0s",
            "warning",
            "Guest {{ $labels.guest }} of lab {{ $labels.lab }} comes again and again",
            "It came again {{ $value | humanize }} times within ten minutes.",
        ),
        Alert(
            "VbnetRequestsRefused",
            here.rate(whole(host.REFUSED), "code") > 10,
            "1m",
            "info",
            "Guests of lab {{ $labels.lab }} are refused: {{ $labels.code }}",
            "{{ $value | humanize }} requests a second are refused with {{ $labels.code }}.",
        ),
        Alert(
            "VbnetThreadNotPutBack",
            here.increase(SCHED.values["put_back_failed"], "device", window=_LONG) > 0,
            "0s",
            "warning",
            "A thread kept what coordinator {{ $labels.device }} of lab {{ $labels.lab }} had given it",
            "{{ $value | humanize }} threads could not get back their scheduling.",
        ),
    ]


def _data_alerts(here: Scope) -> list[Alert]:
    rejected = whole(PORT.values["fault_tail_out_of_range"])
    blocked = here.increase(whole(SIGNAL.values["blocked"]), "guest", window="5m") > 0
    return [
        Alert(
            "VbnetQueueQuarantined",
            here.total(rejected, "guest", "device", "reason") > 0,
            "0s",
            "warning",
            "A queue of {{ $labels.device }} in lab {{ $labels.lab }} is quarantined",
            "Guest {{ $labels.guest }} broke a rule: {{ $labels.reason }}. The queue stays ended until the guest "
            "opens the device again.",
        ),
        Alert(
            "VbnetDoorbellBlocked",
            blocked,
            "0s",
            "warning",
            "Guest {{ $labels.guest }} of lab {{ $labels.lab }} made its doorbell block",
            "{{ $value | humanize }} signals for it were lost within five minutes.",
        ),
        Alert(
            "VbnetOutboxDrops",
            here.increase(whole(OUTBOX.values["refused"]), "guest", "reason", window="5m") > 0,
            "0s",
            "info",
            "Signals that guest {{ $labels.guest }} of lab {{ $labels.lab }} raises reach nobody",
            "{{ $value | humanize }} within five minutes: {{ $labels.reason }}.",
        ),
        Alert(
            "VbnetSwitchTableFull",
            here.increase(whole(host.SWITCH.values["table_full"]), "switch", window="5m") > 0,
            "0s",
            "warning",
            "Switch {{ $labels.switch }} of lab {{ $labels.lab }} cannot learn",
            "{{ $value | humanize }} stations were not learned within five minutes: frames for them go to every port.",
        ),
        Alert(
            "VbnetForgedSources",
            here.increase(host.SWITCH.values["forged_sources"], "switch", window="5m") > 0,
            "0s",
            "warning",
            "Somebody on switch {{ $labels.switch }} of lab {{ $labels.lab }} sends under another's address",
            "{{ $value | humanize }} frames within five minutes. They went nowhere.",
        ),
        Alert(
            "VbnetFramesSlow",
            here.quantile(0.99, whole(LATENCY.values["transmit_residence"]), "guest", "device", "queue") > 0.01,
            "2m",
            "warning",
            "Frames lie in the {{ $labels.queue }} ring of {{ $labels.device }} in lab {{ $labels.lab }}",
            "One frame in a hundred lies there for {{ $value | humanizeDuration }} or longer until it is taken.",
        ),
        Alert(
            "VbnetTimersLate",
            here.quantile(0.99, TIMEKEEPER.values["late"]) > 0.01,
            "2m",
            "warning",
            "Timers of lab {{ $labels.lab }} are late",
            "One expiry in a hundred is told {{ $value | humanizeDuration }} after its deadline, or later.",
        ),
        Alert(
            "VbnetTimersRejected",
            here.increase(whole(TIMER.values["forged_slots"]), "guest", "reason", window="5m") > 0,
            "0s",
            "info",
            "Guest {{ $labels.guest }} of lab {{ $labels.lab }} asks for timers that cannot be",
            "{{ $value | humanize }} were not followed within five minutes: {{ $labels.reason }}.",
        ),
    ]


def alerts(window: str = _WINDOW) -> list[Alert]:
    """Return every alert."""
    here = _scope(window)
    return [*_node_alerts(here), *_guest_alerts(here), *_drop_alerts(here), *_data_alerts(here)]


def recording(window: str = _WINDOW) -> dict[str, Any]:
    """Return the document of recording rules."""
    rules = [{"record": record.name, "expr": record.expr.text} for record in records(window)]
    return {"groups": [{"name": "vbnet-recorded", "rules": rules}]}


def alerting(window: str = _WINDOW, *, lasting: str = "") -> dict[str, Any]:
    """Return the document of alert rules; ``lasting`` is for tests, which cannot wait."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expr.text,
            "for": lasting or alert.lasting,
            "labels": {"severity": alert.severity},
            "annotations": {
                "summary": alert.summary,
                "description": alert.description,
                "runbook_url": f"{RUNBOOKS}/{alert.runbook}.md",
            },
        }
        for alert in alerts(window)
    ]
    return {"groups": [{"name": "vbnet", "rules": rules}]}

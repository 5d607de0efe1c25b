"""What the host node counts about itself, and the tally that holds it."""

from __future__ import annotations

from typing import Final

from vbnet.errors import UsageError
from vbnet.metric import Metric, MetricKind

__all__ = ["METRICS", "Tally"]

REQUESTS: Final = Metric("vbnet_bus_requests_total", "requests", "Requests of guests, by verb.", ("verb",))
REFUSED: Final = Metric(
    "vbnet_bus_refused_total", "requests", "Requests and packets that were refused, by errno name.", ("code",)
)
SILENCED: Final = Metric(
    "vbnet_bus_refusal_drop_total", "messages", "Refusals not sent because that peer earned too many."
)
EVENTS: Final = Metric("vbnet_bus_events_total", "events", "Events sent to guests, by event.", ("event",))
SESSIONS: Final = Metric("vbnet_guest_sessions_total", "sessions", "Sessions that were opened.")
ENDED: Final = Metric("vbnet_guest_ended_total", "sessions", "Sessions that ended, by cause.", ("cause",))
SURPLUS_FDS: Final = Metric("vbnet_attach_fd_drop_total", "descriptors", "Descriptors that came uninvited; closed.")
LENDS: Final = Metric("vbnet_attach_lends_total", "descriptors", "Descriptors of devices lent to guests.")
LENDS_REFUSED: Final = Metric(
    "vbnet_attach_lend_drop_total", "descriptors", "Descriptors not lent, as the guest does not read or none was left."
)
DRIVES: Final = Metric(
    "vbnet_attach_drives", "descriptors", "Eventfds of operators that raise signals now.", (), MetricKind.GAUGE
)
FAULTS: Final = Metric("vbnet_guest_faults_total", "faults", "Rules broken by guests, as their devices reported.")
DEVICE_FAILURES: Final = Metric("vbnet_device_failures_total", "failures", "Bugs in device code that were contained.")
LOST_RINGS: Final = Metric(
    "vbnet_doorbell_drop_total", "rings", "Rings of guests' doorbells that were lost because too many waited."
)
GUESTS: Final = Metric("vbnet_guests", "guests", "Guests on this host now.", (), MetricKind.GAUGE)

METRICS: Final = (
    REQUESTS,
    REFUSED,
    SILENCED,
    EVENTS,
    SESSIONS,
    ENDED,
    SURPLUS_FDS,
    LENDS,
    LENDS_REFUSED,
    DRIVES,
    FAULTS,
    DEVICE_FAILURES,
    LOST_RINGS,
    GUESTS,
)


class Tally:
    """Values of this node's metrics; one writer, the host's event loop."""

    def __init__(self) -> None:
        self._values: dict[tuple[Metric, str], int] = {(metric, ""): 0 for metric in METRICS if not metric.labels}

    def add(self, metric: Metric, label: str = "", count: int = 1) -> None:
        """Count ``count`` more of ``metric`` under its one label's value."""
        if bool(metric.labels) is not bool(label):
            raise UsageError(f"{metric.name} has labels {metric.labels}, got {label!r}", metric=metric.name)
        key = (metric, label)
        self._values[key] = self._values.get(key, 0) + count

    def set(self, metric: Metric, value: int) -> None:
        """Let a gauge show ``value``."""
        self._values[metric, ""] = value

    def value(self, metric: Metric, label: str = "") -> int:
        """What was counted so far, 0 if nothing."""
        return self._values.get((metric, label), 0)

    def snapshot(self) -> dict[str, int]:
        """Every value by its Prometheus name."""
        return {
            f'{metric.name}{{{metric.labels[0]}="{label}"}}' if label else metric.name: value
            for (metric, label), value in self._values.items()
        }

"""What the host node counts about itself, its buses, its devices and its guests, and what its fabric counts.

The event loop writes the blocks ``host``, ``bus``, ``device`` and ``guest``; worker threads write ``worker`` and
``switch``. Every value of a label like ``verb`` is listed here, so nobody outside can make more series: what is in no
list is counted under ``other``.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from vbnet.errors import REFUSALS
from vbnet.hostnode.rows import Row, open_row
from vbnet.metric import Metric, MetricBlock, MetricKind

__all__ = [
    "BLOCKS",
    "BUS",
    "DEVICE",
    "GUEST",
    "GUEST_STATES",
    "HOST",
    "SWITCH",
    "VHOST_USER",
    "WORKER",
    "GuestRows",
    "Tally",
]

_OTHER: Final = "other"
_VERBS: Final = ("Hello", "Ready", "Open", "Close", "Call", "Shm", "Signal", "Negotiate", "Alive", "Bye", "List")
_EVENTS: Final = ("DevAdd", "DevDrop", "ShmClose", "LinkState")
_CAUSES: Final = {
    "bye": "it said goodbye",
    "exited": "its process ended",
    "hung-up": "it closed its attach socket without a goodbye",
    "sent-away": "it was cut off because its sessions had ended",
    "does-not-read": "it did not read its messages",
    "not-reading": "it did not read its attach socket",
    "too-many-faults": "it sent too many bad packets",
    "attach-late": "it did not attach in time",
    "bus-deleted": "its bus was deleted",
    "host-stopped": "the host ended",
    _OTHER: "anything else",
}
GUEST_STATES: Final = ("starting", "joined", "ready", "wedged", "stuck", "ended")
"""A guest said hello; brought its memory; hears of devices; has a handler that hangs; is silent too long; is gone."""
_ENDED_GUESTS_MAX: Final = 64


class Labelled:
    """Members of one family that differ in one label whose values are known.

    Args:
        metric: without ``fixed``.
        label: its name.
        values: all there are but ``other``, which is added; with what they mean.
    """

    def __init__(self, metric: Metric, label: str, values: Iterable[str] | Mapping[str, str]) -> None:
        details = dict(values) if isinstance(values, Mapping) else dict.fromkeys(values, "")
        details.setdefault(_OTHER, "anything else")
        self.key = metric.name.removeprefix("vbnet_").removesuffix("_total")
        self.label = label
        self.members = {
            f"{self.key}_{value}": Metric(metric.name, metric.unit, metric.help, fixed={label: value}, detail=detail)
            for value, detail in details.items()
        }

    def member(self, value: str) -> str:
        """Name of the member that counts ``value``."""
        name = f"{self.key}_{value}"
        return name if name in self.members else f"{self.key}_{_OTHER}"


def _one(name: str, unit: str, explanation: str, kind: MetricKind = MetricKind.COUNTER) -> Metric:
    return Metric(name, unit, explanation, kind)


REQUESTS: Final = Labelled(_one("vbnet_bus_requests_total", "requests", "Requests of guests, by verb."), "verb", _VERBS)
REFUSED: Final = Labelled(
    _one("vbnet_bus_refused_total", "requests", "Requests and packets that were refused, by errno name."),
    "code",
    sorted(REFUSALS),
)
EVENTS: Final = Labelled(_one("vbnet_bus_events_total", "events", "Events sent to guests, by event."), "event", _EVENTS)
ENDED: Final = Labelled(_one("vbnet_guest_ended_total", "sessions", "Sessions that ended, by cause."), "cause", _CAUSES)
SILENCED: Final = _one(
    "vbnet_bus_refusal_drop_total",
    "messages",
    "Refusals that no request waited for, not sent as that peer earned too many.",
)
SESSIONS: Final = _one("vbnet_guest_sessions_total", "sessions", "Sessions that were opened.")
SURPLUS_FDS: Final = _one("vbnet_attach_fd_drop_total", "descriptors", "Descriptors that came uninvited; closed.")
LENDS: Final = _one("vbnet_attach_lends_total", "descriptors", "Descriptors of devices lent to guests.")
LENDS_REFUSED: Final = _one(
    "vbnet_attach_lend_drop_total", "descriptors", "Descriptors not lent, as the guest does not read or none was left."
)
DRIVES: Final = _one(
    "vbnet_attach_drives", "descriptors", "Eventfds of operators that raise signals now.", MetricKind.GAUGE
)
FAULTS: Final = _one("vbnet_guest_faults_total", "faults", "Rules broken by guests, as their devices reported.")
DEVICE_FAILURES: Final = _one("vbnet_device_failures_total", "failures", "Bugs in device code that were contained.")
LOST_RINGS: Final = _one(
    "vbnet_doorbell_drop_total", "rings", "Rings of guests' doorbells that were lost because too many waited."
)
GUESTS: Final = _one("vbnet_guests", "guests", "Guests on this host now.", MetricKind.GAUGE)
BUSES: Final = _one("vbnet_buses", "buses", "Buses of this host now, private ones included.", MetricKind.GAUGE)
DEVICES: Final = _one("vbnet_devices", "devices", "Devices of this host now.", MetricKind.GAUGE)
HEARTBEAT: Final = Metric(
    "vbnet_node_heartbeat_timestamp_seconds",
    "seconds",
    "When the host's event loop last ran its heartbeat: a node that hangs falls behind.",
    MetricKind.GAUGE,
    per_unit=1000,
)
HEARTBEAT_INTERVAL: Final = Metric(
    "vbnet_node_heartbeat_interval_seconds",
    "seconds",
    "How often the host's event loop runs its heartbeat.",
    MetricKind.GAUGE,
    per_unit=1000,
)


def _key(metric: Metric) -> str:
    return metric.name.removeprefix("vbnet_").removesuffix("_total")


HOST: Final = MetricBlock(
    "host",
    (),
    {
        **REQUESTS.members,
        **REFUSED.members,
        **EVENTS.members,
        **ENDED.members,
        **{
            _key(metric): metric
            for metric in (
                SILENCED,
                SESSIONS,
                SURPLUS_FDS,
                LENDS,
                LENDS_REFUSED,
                DRIVES,
                FAULTS,
                DEVICE_FAILURES,
                LOST_RINGS,
                GUESTS,
                BUSES,
                DEVICES,
                HEARTBEAT,
                HEARTBEAT_INTERVAL,
            )
        },
    },
)
"""The host node."""

GUEST: Final = MetricBlock(
    "guest",
    ("guest",),
    {
        "state": Metric(
            "vbnet_guest_state",
            "guests",
            "How a guest is: 1 for the state it is in. The last 64 that ended are shown as such.",
            MetricKind.STATE,
            shown_as="state",
            states=GUEST_STATES,
        ),
        "reconnects": _one("vbnet_guest_reconnects_total", "sessions", "Times a guest of this name came again."),
        "requests": _one("vbnet_guest_requests_total", "requests", "Requests of a guest."),
        "faults": _one("vbnet_guest_rule_breaks_total", "faults", "Rules a guest broke, as devices reported."),
        "handles": _one("vbnet_guest_handles", "handles", "Devices that a guest has open.", MetricKind.GAUGE),
        "handles_limit": _one(
            "vbnet_guest_handles_limit", "handles", "Devices that a guest may have open.", MetricKind.GAUGE
        ),
        "memory": _one("vbnet_guest_memory_bytes", "bytes", "Memory a guest shares.", MetricKind.GAUGE),
        "memory_limit": _one("vbnet_guest_memory_limit_bytes", "bytes", "Memory a guest may share.", MetricKind.GAUGE),
    },
)
"""One guest, by name: coming again it goes on counting where it was."""

BUS: Final = MetricBlock(
    "bus",
    ("bus",),
    {
        "guests": _one("vbnet_bus_guests", "guests", "Guests on a bus now.", MetricKind.GAUGE),
        "interfaces": _one("vbnet_bus_interfaces", "interfaces", "Interfaces shown on a bus now.", MetricKind.GAUGE),
    },
)
"""One bus that has a name of its own; private buses are counted by ``vbnet_buses`` only."""

DEVICE: Final = MetricBlock(
    "device",
    ("device", "type"),
    {
        "opens": _one("vbnet_device_opens_total", "opens", "Times guests opened a device."),
        "openers": _one("vbnet_device_openers", "handles", "Handles that guests have on a device.", MetricKind.GAUGE),
        "calls": _one("vbnet_device_bus_calls_total", "calls", "Calls of a device over the bus, refused ones too."),
    },
)
"""One device of any type."""

WORKER: Final = MetricBlock(
    "worker",
    ("worker",),
    {
        **{
            f"{result}_rounds": Metric(
                "vbnet_worker_rounds_total",
                "rounds",
                "Rounds over the active ports.",
                fixed={"result": result},
                detail=detail,
            )
            for result, detail in (("busy", "moved frames"), ("idle", "found nothing to do: polling"))
        },
        "sleeps": _one("vbnet_worker_sleeps_total", "sleeps", "Times a worker went to sleep."),
        "asleep_nanoseconds": Metric(
            "vbnet_worker_asleep_seconds_total", "seconds", "How long a worker slept.", per_unit=1_000_000_000
        ),
        "commands": _one("vbnet_worker_commands_total", "commands", "Commands that a worker did."),
        "ports": _one("vbnet_worker_ports", "ports", "Ports of a worker now.", MetricKind.GAUGE),
        "active_ports": _one("vbnet_worker_active_ports", "ports", "Ports that a worker polls now.", MetricKind.GAUGE),
    },
)
"""One thread that moves frames."""

SWITCH: Final = MetricBlock(
    "switch",
    ("switch",),
    {
        "flooded_frames": _one("vbnet_switch_flooded_packets_total", "packets", "Frames sent to every port."),
        "learned_stations": _one("vbnet_switch_learned_stations_total", "stations", "Stations that were learned."),
        "moved_stations": _one("vbnet_switch_moved_stations_total", "stations", "Stations heard on another port."),
        "table_full": Metric(
            "vbnet_switch_learn_drop_total",
            "stations",
            "Stations that were not learned.",
            fixed={"reason": "table_full"},
            detail="the table, or the port's share of it, was full",
        ),
        "forged_sources": _one(
            "vbnet_switch_forged_sources_total", "packets", "Frames whose source is another port's own address."
        ),
        "stations": _one("vbnet_switch_stations", "stations", "Stations in a switch's table now.", MetricKind.GAUGE),
        "ports": _one("vbnet_switch_ports", "ports", "Ports of a switch now.", MetricKind.GAUGE),
    },
)
"""One switch."""

CAPTURE: Final = MetricBlock(
    "capture",
    ("device", "purpose"),
    {
        "captured_frames": _one("vbnet_capture_packets_total", "packets", "Frames given to a capture or trace."),
        "captured_bytes": _one("vbnet_capture_bytes_total", "bytes", "Bytes of these frames, as far as they are kept."),
        "filtered_frames": _one("vbnet_capture_filtered_packets_total", "packets", "Frames a filter did not want."),
        "drop_no_room": Metric(
            "vbnet_capture_drop_total",
            "packets",
            "Frames that a capture wanted and lost.",
            fixed={"reason": "no_room"},
            detail="its reader had left no room in the ring",
        ),
        "calls_rung": _one("vbnet_capture_signals_sent_total", "signals", "Times a capture's reader was woken."),
        "is_blocked": _one(
            "vbnet_capture_blocked", "captures", "1: its reader made the doorbell block, so it ended.", MetricKind.GAUGE
        ),
    },
)
"""All captures, or all traces, of a port: blocks of the same labels are added up."""

_REFUSED_FRONT_ENDS: Final = {
    "message": "a message is none of the protocol, or of what was not agreed on",
    "content": "a message asked for what cannot be",
    "machine": "this machine had no memory or descriptor for what was asked",
    "partial": "it went in the middle of a message",
}

VHOST_USER: Final = MetricBlock(
    "vhost_user",
    ("device", "switch"),
    {
        "connections": _one(
            "vbnet_vhost_user_connections_total", "connections", "Ends that connected to a port, or it to them."
        ),
        "is_connected": _one(
            "vbnet_vhost_user_connected", "connections", "1: the other end is connected now.", MetricKind.GAUGE
        ),
        "messages": _one(
            "vbnet_vhost_user_messages_total",
            "messages",
            "Messages of front ends that were done; of a front end, how often it was set up.",
        ),
        **{
            f"refused_{reason}": Metric(
                "vbnet_vhost_user_refused_total",
                "connections",
                "Connections that were ended.",
                fixed={"reason": reason},
                detail=detail,
            )
            for reason, detail in _REFUSED_FRONT_ENDS.items()
        },
    },
)
"""The socket of a port that virtual machines and DPDK applications connect to, or that is their front end."""

BLOCKS: Final = (HOST, GUEST, BUS, DEVICE, WORKER, SWITCH, CAPTURE, VHOST_USER)


class Tally:
    """Values of the host node's own metrics; one writer, the event loop.

    Args:
        counters: the host's counter file; None counts in memory.
    """

    def __init__(self, counters: Any = None) -> None:  # noqa: ANN401 - the native counter file
        self._row = open_row(HOST, {}, counters)
        self.guests = GuestRows(counters)

    def add(self, metric: Metric | Labelled, label: str = "", count: int = 1) -> None:
        """Count ``count`` more of ``metric``, under its one label's value if it has one."""
        self._row.add(_name(metric, label), count)

    def set(self, metric: Metric, value: int) -> None:
        """Let a gauge show ``value``."""
        self._row.set(_name(metric, ""), value)

    def shift(self, metric: Metric, change: int) -> None:
        """Let a gauge show ``change`` more, or less."""
        self._row.shift(_name(metric, ""), change)

    def value(self, metric: Metric | Labelled, label: str = "") -> int:
        """What was counted so far, 0 if nothing."""
        return self._row.value(_name(metric, label))

    def beat(self, interval_ns: int) -> None:
        """Say that the event loop runs, and when it will say so again."""
        self._row.set(_name(HEARTBEAT, ""), time.time_ns() // 1_000_000)
        self._row.set(_name(HEARTBEAT_INTERVAL, ""), interval_ns // 1_000_000)

    def snapshot(self) -> dict[str, int]:
        """Every value by its Prometheus name; of those with a label, the ones that are not 0."""
        shown = {}
        for name, metric in HOST.values.items():
            value = self._row.value(name)
            labels = ",".join(f'{label}="{text}"' for label, text in metric.fixed.items())
            if value or not labels:
                shown[f"{metric.name}{{{labels}}}" if labels else metric.name] = value
        return shown

    def close(self) -> None:
        """Give the blocks back."""
        self._row.close()
        self.guests.close()


class GuestRows:
    """A row for each guest, by name: those on this host, and the last 64 that ended."""

    def __init__(self, counters: Any = None) -> None:  # noqa: ANN401 - the native counter file
        self._counters = counters
        self._here: dict[str, Row] = {}
        self._ended: OrderedDict[str, Row] = OrderedDict()

    def enter(self, guest: str, *, handles_limit: int, memory_limit: int) -> Row:
        """The row of a guest that said hello."""
        row = self._ended.pop(guest, None)
        if row is None:
            row = open_row(GUEST, {"guest": guest}, self._counters)
        else:
            row.add("reconnects")
        self._here[guest] = row
        row.set("state", GUEST_STATES.index("starting"))
        row.set("handles_limit", handles_limit)
        row.set("memory_limit", memory_limit)
        return row

    def leave(self, guest: str) -> None:
        """A guest ended; its row is kept until 64 others ended after it."""
        row = self._here.pop(guest)
        row.set("state", GUEST_STATES.index("ended"))
        row.set("handles", 0)
        row.set("memory", 0)
        self._ended[guest] = row
        if len(self._ended) > _ENDED_GUESTS_MAX:
            self._ended.popitem(last=False)[1].close()

    def close(self) -> None:
        """Give the blocks back."""
        for row in (*self._here.values(), *self._ended.values()):
            row.close()
        self._here.clear()
        self._ended.clear()


def _name(metric: Metric | Labelled, label: str) -> str:
    return metric.member(label) if isinstance(metric, Labelled) else _key(metric)

"""What ports count: one block of kind ``port`` each, its words in the order in which the workers keep them.

Receive and transmit are the guest's: received is what the host put into its buffers. Names follow the conventions of
network cards in Prometheus, so panels made for those fit.
"""

from __future__ import annotations

from typing import Final

from vbnet._native import FAULT_REASONS
from vbnet.metric import Metric, MetricBlock, MetricKind
from vbnet.units import SECOND_NS

__all__ = ["BLOCKS", "LATENCY", "PORT", "SINK", "SOURCE", "STACK"]

_NOT_GIVEN: Final = {
    "no_room": "the guest had posted no buffer, or the TAP's queue was full",
    "buffer_too_small": "the posted buffer was smaller than the frame",
    "oversize": "longer than the port's MTU allows",
    "link_down": "the port's link was down",
    "quarantined": "the guest's receive ring is quarantined",
    "refused": "the kernel refused to take it",
    "disabled": "the emulated card's receiver was switched off",
    "filtered": "by the emulated card's filters it was for another station",
}
_NOT_TAKEN: Final = {
    "oversize": "longer than the port's MTU allows",
    "link_down": "the port's link was down",
    "same_port": "its station is on the same port",
    "forged_source": "its source is another port's address",
    "runt": "shorter than an Ethernet header",
    "offload_flag": "asks for an offload by a flag that nobody offered",
    "offload_kind": "asks for a kind of segmentation that there is not",
    "offload_checksum": "asks for a checksum at a place where none can be",
    "offload_size": "asks for segments of no bytes, or for too many",
    "offload_headers": "asks for segments, and its headers are not of that kind, or disagree with its length",
}


def _port(name: str, unit: str, explanation: str) -> Metric:
    return Metric(f"vbnet_device_{name}_total", unit, explanation)


def _drops(direction: str, explanation: str, reasons: dict[str, str]) -> dict[str, Metric]:
    name = f"vbnet_device_{direction}_drop_total"
    return {
        f"{direction}_drop_{reason}": Metric(name, "packets", explanation, fixed={"reason": reason}, detail=detail)
        for reason, detail in reasons.items()
    }


def _offloads() -> dict[str, Metric]:
    name, explanation = "vbnet_device_receive_offload_total", "Such frames that were given to the guest."
    ways = {
        "receive_offloads": ("whole", "the guest does the rest"),
        "segmented_frames": ("segmented", "the guest cannot: it got segments that the switch cut"),
        "completed_checksums": ("completed", "the guest cannot: the switch completed the checksum"),
    }
    return {
        counter: Metric(name, "packets", explanation, fixed={"how": how}, detail=detail)
        for counter, (how, detail) in ways.items()
    }


def _slots(queue: str) -> dict[str, Metric]:
    fixed = {"queue": queue}
    limit, used = "Slots of a ring.", "Slots of a ring that hold frames (transmit) or buffers (receive), as last seen."
    return {
        f"{queue}_slots": Metric("vbnet_queue_slots", "slots", limit, MetricKind.GAUGE, fixed),
        f"{queue}_slots_used": Metric("vbnet_queue_used_slots", "slots", used, MetricKind.GAUGE, fixed),
    }


PORT: Final = MetricBlock(
    "port",
    ("guest", "device", "switch"),
    {
        "receive_frames": _port("receive_packets", "packets", "Frames given to the guest."),
        "receive_bytes": _port("receive_bytes", "bytes", "Bytes of frames given to the guest."),
        "transmit_frames": _port("transmit_packets", "packets", "Frames taken from the guest."),
        "transmit_bytes": _port("transmit_bytes", "bytes", "Bytes of frames taken from the guest."),
        **_drops("receive", "Frames not given to the guest.", _NOT_GIVEN),
        **_drops("transmit", "Frames of the guest not taken on.", _NOT_TAKEN),
        "transmit_offloads": _port(
            "transmit_offload", "packets", "Frames taken from the guest with a checksum to complete or segments to cut."
        ),
        **_offloads(),
        "gathered_frames": _port(
            "transmit_scattered", "packets", "Frames taken from the guest in several pieces, and put together."
        ),
        "merged_frames": _port("receive_merged", "packets", "Frames given to the guest in several of its buffers."),
        "merged_buffers": _port("receive_merged_buffers", "buffers", "Those buffers."),
        "receive_holds": _port("receive_holds", "holds", "Times senders had to wait, because the guest had no room."),
        "receive_held_nanoseconds": Metric(
            "vbnet_device_receive_held_seconds_total", "seconds", "How long they waited.", per_unit=SECOND_NS
        ),
        "kicks": _port("kicks", "signals", "Doorbells heard from the guest."),
        "calls_rung": _port("signals_sent", "signals", "Doorbells rung for the guest."),
        "calls_suppressed": _port("signals_suppressed", "signals", "Doorbells spared because the guest was awake."),
        "parks": _port("parks", "transitions", "Times the port fell asleep."),
        "wakeups": _port("wakeups", "transitions", "Times the port woke."),
        "budget_exhausted": _port("budget_exhausted", "turns", "Turns that ended with more frames waiting."),
        **{
            f"fault_{reason}": Metric(
                "vbnet_descriptor_rejected_total",
                "faults",
                "Queues ended because what the guest wrote there broke a rule.",
                fixed={"reason": reason},
            )
            for reason in FAULT_REASONS
        },
        **_slots("transmit"),
        **_slots("receive"),
    },
)
"""One port of a switch, or a loopback; a TAP of the machine itself has no guest."""


def _residence(queue: str, detail: str) -> Metric:
    return Metric(
        "vbnet_ring_residence_seconds",
        "seconds",
        "How long a frame lay in a ring until the other side took it; samples.",
        MetricKind.HISTOGRAM,
        {"queue": queue},
        detail,
        per_unit=SECOND_NS,
    )


def _wakeup(side: str, detail: str) -> Metric:
    return Metric(
        "vbnet_wakeup_latency_seconds",
        "seconds",
        "From the ring of a doorbell to the first look of the side that slept.",
        MetricKind.HISTOGRAM,
        {"woken": side},
        detail,
        per_unit=SECOND_NS,
    )


LATENCY: Final = MetricBlock(
    "port_latency",
    ("guest", "device", "switch"),
    {
        "transmit_residence": _residence("transmit", "from the guest's publish to the worker's taking"),
        "receive_residence": _residence("receive", "from the worker's return of a buffer to the guest's taking"),
        "host_wakeup": _wakeup("host", "the worker's, by a guest that sends"),
        "guest_wakeup": _wakeup("guest", "the guest's, by frames for it or slots that came back"),
        "service": Metric(
            "vbnet_device_service_seconds",
            "seconds",
            "How long a worker's turn that found frames of this device took, until their receivers were told; samples.",
            MetricKind.HISTOGRAM,
            per_unit=SECOND_NS,
        ),
        "impossible": Metric(
            "vbnet_stamp_drop_total",
            "stamps",
            "Stamps and answers of a guest that were not believed.",
            fixed={"reason": "impossible"},
            detail="of the future, older than 10 s, or of a slot that is not there",
        ),
    },
)
"""One port, timed. Rings of venet: one slot in 1024, and every publish that wakes somebody. Turns of any port: one in
256 of its worker's, and the first after a sleep."""


def _sent(name: str, unit: str, explanation: str) -> Metric:
    return Metric(f"vbnet_traffic_transmit_{name}_total", unit, explanation)


def _received(name: str, unit: str, explanation: str) -> Metric:
    return Metric(f"vbnet_traffic_receive_{name}_total", unit, explanation)


def _odd(kind: str, detail: str) -> Metric:
    return Metric(
        "vbnet_traffic_receive_anomalies_total",
        "packets",
        "Frames that did not arrive as they were sent.",
        fixed={"kind": kind},
        detail=detail,
    )


SOURCE: Final = MetricBlock(
    "traffic_source",
    ("guest",),
    {
        "frames": _sent("packets", "packets", "Test frames sent."),
        "bytes": _sent("bytes", "bytes", "Their bytes."),
        "blocked": _sent("blocked", "stalls", "Times there was no room to send."),
        "late_sum_ns": Metric(
            "vbnet_traffic_transmit_late_seconds_total",
            "seconds",
            "How late frames left after they were due, summed up.",
            per_unit=SECOND_NS,
        ),
        "late_max_ns": Metric(
            "vbnet_traffic_transmit_late_max_seconds",
            "seconds",
            "The latest that a frame ever left after it was due.",
            MetricKind.GAUGE,
            per_unit=SECOND_NS,
        ),
    },
)
"""What a traffic guest sends; written by the guest's own process."""

SINK: Final = MetricBlock(
    "traffic_sink",
    ("guest",),
    {
        "frames": _received("packets", "packets", "Test frames received intact."),
        "bytes": _received("bytes", "bytes", "Their bytes."),
        "lost": Metric(
            "vbnet_traffic_missing_packets",
            "packets",
            "Frames missing now, of those before the last that arrived.",
            MetricKind.GAUGE,
        ),
        "reordered": _odd("reordered", "behind a later one"),
        "duplicates": _odd("duplicate", "for another time"),
        "corrupted": _odd("corrupted", "changed on their way"),
        "foreign": _odd("foreign", "no test frame of ours"),
        "stale": _odd("stale", "so late that nobody remembers whether it was missing"),
        "misdelivered": _odd("misdelivered", "to another guest's address"),
        "latency": Metric(
            "vbnet_traffic_latency_seconds",
            "seconds",
            "From when a test frame was due to when it was taken in, from end to end.",
            MetricKind.HISTOGRAM,
            per_unit=SECOND_NS,
        ),
    },
)
"""What a traffic guest receives; written by the guest's own process."""

STACK: Final = MetricBlock(
    "stack",
    ("guest",),
    {
        "rx_frames": Metric("vbnet_stack_receive_packets_total", "packets", "Frames that a small IP host took."),
        "rx_bytes": Metric("vbnet_stack_receive_bytes_total", "bytes", "Their bytes."),
        "tx_frames": Metric("vbnet_stack_transmit_packets_total", "packets", "Frames that a small IP host sent."),
        "tx_bytes": Metric("vbnet_stack_transmit_bytes_total", "bytes", "Their bytes."),
        "tx_drops_no_room": Metric(
            "vbnet_stack_transmit_drop_total",
            "packets",
            "Frames that a small IP host could not send.",
            fixed={"reason": "no_room"},
            detail="its ring was full",
        ),
        "pings_answered": Metric("vbnet_stack_pings_total", "pings", "Echo requests answered."),
        "udp_datagrams": Metric("vbnet_stack_udp_datagrams_total", "datagrams", "UDP datagrams echoed or discarded."),
        "tcp_connections": Metric("vbnet_stack_tcp_connections_total", "connections", "TCP connections accepted."),
        "tcp_open": Metric(
            "vbnet_stack_tcp_open_connections", "connections", "TCP connections there are now.", MetricKind.GAUGE
        ),
        "tcp_refused": Metric(
            "vbnet_stack_tcp_drop_total",
            "connections",
            "TCP connections refused.",
            fixed={"reason": "too_many"},
            detail="as many as may be were open",
        ),
        "tcp_bytes": Metric("vbnet_stack_tcp_bytes_total", "bytes", "Bytes echoed, discarded or sunk by TCP services."),
        "http_requests": Metric(
            "vbnet_stack_http_requests_total", "requests", "HTTP requests answered, whatever the status."
        ),
    },
)
"""What a small IP host does; written by its own process."""

BLOCKS: Final = (PORT, LATENCY, SOURCE, SINK, STACK)

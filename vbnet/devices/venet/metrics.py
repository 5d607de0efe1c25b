"""What ports count: one block of kind ``port`` each, its words in the order in which the workers keep them.

Receive and transmit are the guest's: received is what the host put into its buffers. Names follow the conventions of
network cards in Prometheus, so panels made for those fit.
"""

from __future__ import annotations

from typing import Final

from vbnet._native import FAULT_REASONS
from vbnet.metric import Metric, MetricBlock, MetricKind

__all__ = ["BLOCKS", "PORT"]

_NOT_GIVEN: Final = {
    "no_room": "the guest had posted no buffer, or the TAP's queue was full",
    "buffer_too_small": "the posted buffer was smaller than the frame",
    "oversize": "longer than the port's MTU allows",
    "link_down": "the port's link was down",
    "quarantined": "the guest's receive ring is quarantined",
    "refused": "the kernel refused to take it",
}
_NOT_TAKEN: Final = {
    "oversize": "longer than the port's MTU allows",
    "link_down": "the port's link was down",
    "same_port": "its station is on the same port",
    "forged_source": "its source is another port's address",
    "runt": "shorter than an Ethernet header",
}


def _port(name: str, unit: str, explanation: str) -> Metric:
    return Metric(f"vbnet_device_{name}_total", unit, explanation)


def _drops(direction: str, explanation: str, reasons: dict[str, str]) -> dict[str, Metric]:
    name = f"vbnet_device_{direction}_drop_total"
    return {
        f"{direction}_drop_{reason}": Metric(name, "packets", explanation, fixed={"reason": reason}, detail=detail)
        for reason, detail in reasons.items()
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
"""One port of a switch, or a loopback; a TAP's has no guest."""

BLOCKS: Final = (PORT,)

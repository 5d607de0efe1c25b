"""What ports count, in the order in which the workers keep it: ``METRICS[n]`` is value ``n`` of a port's block.

Receive and transmit are the guest's: received is what the host put into its buffers. Names follow the conventions of
network cards in Prometheus, so panels made for those fit.
"""

from __future__ import annotations

from typing import Final

from vbnet._native import FAULT_REASONS
from vbnet.metric import Metric

__all__ = ["METRICS"]

_PORT: Final = ("port", "switch")


def _port(name: str, unit: str, explanation: str) -> Metric:
    return Metric(f"vbnet_device_{name}_total", unit, explanation, _PORT)


def _drop(direction: str, reason: str, explanation: str) -> Metric:
    return _port(f"{direction}_drop_{reason}", "packets", explanation)


METRICS: Final = (
    _port("receive_packets", "packets", "Frames given to the guest."),
    _port("receive_bytes", "bytes", "Bytes of frames given to the guest."),
    _port("transmit_packets", "packets", "Frames taken from the guest."),
    _port("transmit_bytes", "bytes", "Bytes of frames taken from the guest."),
    _drop("receive", "no_room", "Frames not given because the guest had posted no buffer."),
    _drop("receive", "buffer_too_small", "Frames not given because the posted buffer was smaller."),
    _drop("receive", "oversize", "Frames not given because they exceed the port's MTU."),
    _drop("receive", "link_down", "Frames not given because the port's link was down."),
    _drop("receive", "quarantined", "Frames not given because the guest's receive ring is quarantined."),
    _drop("receive", "refused", "Frames that the kernel refused to take."),
    _drop("transmit", "oversize", "Frames not taken on because they exceed the port's MTU."),
    _drop("transmit", "link_down", "Frames not taken on because the port's link was down."),
    _drop("transmit", "same_port", "Frames not taken on because their station is on the same port."),
    _drop("transmit", "forged_source", "Frames not taken on because their source is another port's address."),
    _drop("transmit", "runt", "Frames not taken on because they are shorter than an Ethernet header."),
    _port("kicks", "signals", "Doorbells heard from the guest."),
    _port("calls_rung", "signals", "Doorbells rung for the guest."),
    _port("calls_suppressed", "signals", "Doorbells spared because the guest was awake."),
    _port("parks", "transitions", "Times the port fell asleep."),
    _port("wakeups", "transitions", "Times the port woke."),
    _port("budget_exhausted", "turns", "Turns that ended with more frames waiting."),
    *(
        _port(f"fault_{reason}", "faults", f"Queues ended because the guest broke the rule {reason}.")
        for reason in FAULT_REASONS
    ),
)
"""One metric for each counter of a port."""

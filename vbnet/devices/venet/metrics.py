"""What venet devices count, in the order in which the workers keep it."""

from __future__ import annotations

from typing import Final

from vbnet.metric import Metric

__all__ = ["FRAMES_SENT", "METRICS", "OCTETS_SENT"]

_LABELS: Final = ("port", "switch")

FRAMES_SENT: Final = Metric(
    "vbnet_device_transmit_packets_total", "packets", "Frames taken from the guest's TX ring.", _LABELS
)
OCTETS_SENT: Final = Metric(
    "vbnet_device_transmit_bytes_total", "bytes", "Bytes of frames taken from the guest's TX ring.", _LABELS
)

METRICS: Final = (FRAMES_SENT, OCTETS_SENT)

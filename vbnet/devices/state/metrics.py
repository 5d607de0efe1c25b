"""What state devices count: what the host sees. What guests publish and sample in memory passes nobody who counts."""

from __future__ import annotations

from typing import Final

from vbnet.metric import Metric

__all__ = ["METRICS"]

_DEVICE: Final = ("device",)

METRICS: Final = (
    Metric("vbnet_state_claims_total", "claims", "Records that were claimed, in memory or by a call.", _DEVICE),
    Metric("vbnet_state_calls_total", "calls", "Values published or sampled by calls instead of memory.", _DEVICE),
    Metric("vbnet_state_busy_total", "samples", "Calls that found a record changing during every look at it.", _DEVICE),
    Metric(
        "vbnet_state_fault_total", "faults", "Claims ended because the guest kept its page from being frozen.", _DEVICE
    ),
)

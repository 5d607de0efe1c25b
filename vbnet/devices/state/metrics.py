"""What state devices count: what the host sees. What guests publish and sample in memory passes nobody who counts."""

from __future__ import annotations

from typing import Final

from vbnet.metric import Metric, MetricBlock, MetricKind

__all__ = ["BLOCKS", "STATE"]

STATE: Final = MetricBlock(
    "state",
    ("device",),
    {
        "claims": Metric("vbnet_state_claims_total", "claims", "Records that were claimed, in memory or by a call."),
        "calls": Metric("vbnet_state_calls_total", "calls", "Values published or sampled by calls."),
        "busy": Metric("vbnet_state_busy_total", "samples", "Calls that found a record changing at every look at it."),
        "faults": Metric(
            "vbnet_state_faults_total", "faults", "Claims ended because the guest kept its page from being frozen."
        ),
        "records": Metric("vbnet_state_records", "records", "Records of a state device.", MetricKind.GAUGE),
        "claimed": Metric(
            "vbnet_state_claimed_records", "records", "Records that somebody publishes now.", MetricKind.GAUGE
        ),
    },
)
"""One state device."""

BLOCKS: Final = (STATE,)

"""What echo devices count."""

from __future__ import annotations

from typing import Final

from vbnet.metric import Metric

__all__ = ["CALLS", "METRICS"]

CALLS: Final = Metric("vbnet_echo_calls_total", "calls", "Calls answered by echo devices, by device.", ("device",))

METRICS: Final = (CALLS,)

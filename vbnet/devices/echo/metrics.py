"""What echo devices count."""

from __future__ import annotations

from typing import Final

from vbnet.metric import Metric, MetricBlock

__all__ = ["BLOCKS", "ECHO"]

ECHO: Final = MetricBlock(
    "echo", ("device",), {"calls": Metric("vbnet_echo_calls_total", "calls", "Calls answered by echo devices.")}
)
"""One echo device."""

BLOCKS: Final = (ECHO,)

"""What cards count beside their ports: one block of kind ``nic`` each, in the order in which its words are kept."""

from __future__ import annotations

from typing import Final

from vbnet.metric import Metric, MetricBlock

__all__ = ["BLOCKS", "CARD"]


def _trap(what: str) -> Metric:
    return Metric(
        "vbnet_nic_traps_total",
        "traps",
        "Times a card's driver left its guest for a register, or for the interrupt controller.",
        fixed={"access": what},
    )


CARD: Final = MetricBlock(
    "nic",
    ("guest", "device", "model"),
    {
        "reads": _trap("read"),
        "writes": _trap("write"),
        "acknowledges": _trap("acknowledge"),
        "ends": _trap("end"),
        "refused": Metric(
            "vbnet_nic_refused_total", "calls", "Calls of a card's driver that are no access to a register."
        ),
        "interrupts": Metric("vbnet_nic_interrupts_total", "interrupts", "Interrupts that a card raised."),
        "throttled": Metric(
            "vbnet_nic_throttled_total", "interrupts", "Interrupts of a card that had to wait for its throttle."
        ),
        "resets": Metric("vbnet_nic_resets_total", "resets", "Resets of a card by its driver."),
    },
)
"""One emulated card, for as long as a guest has it open."""

BLOCKS: Final = (CARD,)

"""What every subject is put through. Each has a figure by which it is judged first.

Four guests stand on a subject's switch, in two pairs: ``sender`` sends to ``receiver``, ``asker`` asks ``replier``. The
second pair has the most urgent priority, the first the least.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["ROLES", "URGENT", "WORKLOADS", "Workload"]

ROLES: Final = ("sender", "receiver", "asker", "replier")
URGENT: Final[Mapping[str, int]] = {"sender": 0, "receiver": 0, "asker": 7, "replier": 7}
"""Priority of each role's card, where priorities are on."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One thing that is done with every subject.

    Attributes:
        name: in the file and in reports.
        says: one line.
        flood: what the sender sends as fast as there is room: bytes, or ``imix``; None: nothing.
        has_requests: whether the asker asks, one request after the other.
        has_idle: whether many more cards are attached that do nothing.
        judged_by: the figure that matters most.
    """

    name: str
    says: str
    flood: int | Literal["imix"] | None = None
    has_requests: bool = False
    has_idle: bool = False
    judged_by: str = "rate"

    @property
    def roles(self) -> tuple[str, ...]:
        """Who has something to do."""
        return ROLES[:2] * (self.flood is not None) + ROLES[2:] * self.has_requests

    @property
    def counted(self) -> str:
        """Whose frames and latencies are told: those of requests, where there are any."""
        return "asker" if self.has_requests else "receiver"


WORKLOADS: Final[Mapping[str, Workload]] = {
    workload.name: workload
    for workload in (
        Workload("flood", "64-byte frames, as many as get through", flood=64),
        Workload("imix", "frames of 64, 594 and 1518 bytes, as many as get through", flood="imix"),
        Workload("stream", "1500-byte frames, as many as get through", flood=1500),
        Workload("requests", "one 64-byte request after the other", has_requests=True, judged_by="p99"),
        Workload("priorities", "urgent requests beside a flood", flood=64, has_requests=True, judged_by="p99"),
        Workload("idle", "requests beside many cards that do nothing", has_requests=True, has_idle=True,
                 judged_by="p99"),
    )
}  # fmt: skip

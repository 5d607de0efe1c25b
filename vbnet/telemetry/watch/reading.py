"""Two looks as the tables read them: by the names that the writers of the counters use, added up by owner.

A name that is not declared is a mistake of the table that asks for it, and raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from vbnet.hostnode.metrics import GUEST_STATES
from vbnet.metric import Metric
from vbnet.telemetry.watch.look import Block
from vbnet.telemetry.watch.rates import Pair, Places
from vbnet.telemetry.watch.table import Column, Mark, Show

__all__ = [
    "DROPS", "LINE", "WRONG", "Reading", "Sum", "Traffic", "counted", "guest_state", "host_note", "marked",
    "traffic_by", "whose_block",
]  # fmt: skip

LINE: Final = Column("line", "HISTORY", Show.line, 5)
DROPS: Final = ("receive_drop_*", "transmit_drop_*")
WRONG: Final = (
    "_drop_total",
    "_errors_total",
    "_rejected_total",
    "_faults_total",
    "_failures_total",
    "_refused_total",
)
"""Ends of the names of metrics that count what is lost, refused or broken."""


class Reading:
    """Two looks, with the words of blocks by the names that their writers use."""

    def __init__(self, pair: Pair, places: Places) -> None:
        self.pair = pair
        self.places = places
        self._wrong: dict[str, list[tuple[int, Metric]]] = {}

    def blocks(self, kind: str) -> Sequence[Block]:
        """The blocks of a kind now."""
        return self.pair.now.layout.of_kind.get(kind, ())

    def total(self, block: Block, *names: str) -> int:
        """Sum of these values of a block now; ``*`` at the end of a name stands for all that begin so."""
        return self.pair.total(block, self.places.of(block.kind, *names))

    def rate(self, block: Block, *names: str) -> float | None:
        """What was counted for these values a second; None: not known."""
        return self.pair.rate(block, self.places.of(block.kind, *names))

    def wrong(self, kind: str) -> Sequence[tuple[int, Metric]]:
        """Place and metric of each value of a kind that counts what is lost, refused or broken."""
        if kind not in self._wrong:
            declared = self.places.metrics.blocks.get(kind)
            values = declared.places() if declared else ()
            self._wrong[kind] = [(place, metric) for place, _, metric in values if metric.name.endswith(WRONG)]
        return self._wrong[kind]


class Sum:
    """A sum of values of which some are not known; not known as long as all are."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, more: float | None) -> None:
        """Add a value; None adds nothing."""
        if more is not None:
            self.value = more if self.value is None else self.value + more


class Traffic:
    """What ports move and lose, added up for an owner of theirs."""

    __slots__ = ("bytes", "drops", "faults", "lost", "ports", "received", "transmitted")

    def __init__(self) -> None:
        self.ports = self.lost = self.faults = 0
        self.received, self.transmitted, self.bytes, self.drops = Sum(), Sum(), Sum(), Sum()

    def add(self, read: Reading, port: Block) -> None:
        """Add a port."""
        self.ports += 1
        self.received.add(read.rate(port, "receive_frames"))
        self.transmitted.add(read.rate(port, "transmit_frames"))
        self.bytes.add(read.rate(port, "receive_bytes", "transmit_bytes"))
        self.drops.add(read.rate(port, *DROPS))
        self.lost += read.total(port, *DROPS)
        self.faults += read.total(port, "fault_*")

    @property
    def mark(self) -> Mark:
        """How bad it is."""
        return marked(self.faults, self.drops.value)


def traffic_by(read: Reading, label: str) -> dict[str, Traffic]:
    """What the ports of each owner move, by the value of one label."""
    found: dict[str, Traffic] = {}
    for port in read.blocks("port"):
        found.setdefault(port.labels.get(label, ""), Traffic()).add(read, port)
    return found


def marked(faults: int, drops: float | None) -> Mark:
    """Bad where a rule was broken, noticed where something is lost just now."""
    return Mark.bad if faults else Mark.notice if drops else Mark.fine


def guest_state(read: Reading, guest: Block) -> str:
    """The state of a guest in a word; "?" for a number without one."""
    number = read.total(guest, "state")
    return GUEST_STATES[number] if number < len(GUEST_STATES) else "?"


def host_note(read: Reading) -> str:
    """How many there are on the host."""
    for host in read.blocks("host"):
        counts = {name: read.total(host, name) for name in ("guests", "devices", "buses")}
        return ", ".join(f"{count} {name}" for name, count in counts.items())
    return ""


def counted(kinds: Mapping[str, int]) -> str:
    """What there is how many times: ``1 port, 2 signals``."""
    return ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in kinds.items())


def whose_block(block: Block, labels: Iterable[str]) -> str:
    """What a block has for these labels, as one text."""
    return " ".join(filter(None, (block.labels.get(label) for label in labels))) or "host"

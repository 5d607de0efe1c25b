"""Who takes part: each model of network card as it is, and venet with one of its mechanisms switched off.

A mechanism is switched off where users can do so too: by an attribute of the card (``vbnet device set``), or by how the
guest uses it. The interrupt controller is no part of a frame's way here, so it has a measurement of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vbnet.cluster.topology import nic_models
from vbnet.load.orders import Manner

__all__ = ["BASE", "MECHANISMS", "SAYS", "Mechanism", "Subject", "models", "subjects"]

BASE: Final = "venet"
"""The model whose mechanisms are switched off, and which others are held against."""

SAYS: Final[Mapping[str, str]] = {
    "venet": "vbus' own network card: rings and signals in shared memory",
    "virtio-net": "virtio's network card over vbus: registers by calls, virtqueues in shared memory",
    "virtio-net-mmio": "the same behind trapping registers, as virtio-mmio has them",
    "virtio-net-pci": "the same behind trapping registers, as virtio-pci has them",
    "e1000": "Intel's 82540EM: descriptor rings, trapping registers, an emulated APIC",
    "rtl8139": "Realtek's 8139: four transmit slots, one receive buffer, trapping registers, an emulated APIC",
}
"""What is said of models; those of other packages take part as well, and speak for themselves."""


def models() -> list[str]:
    """Return every model of network card that is installed, venet first."""
    return sorted(
        nic_models(), key=lambda model: (model != BASE, list(SAYS).index(model) if model in SAYS else len(SAYS))
    )


@dataclass(frozen=True, slots=True)
class Mechanism:
    """Something that vbus has and others have not, and how it is switched off.

    Attributes:
        name: in the file and in reports.
        says: what it does.
        off: attributes of every card that took part, while it is off.
        manner: how guests handle frames while it is off.
        is_aside: it is measured on its own.
    """

    name: str
    says: str
    off: Mapping[str, str] = field(default_factory=dict)
    manner: Manner = field(default_factory=Manner)
    is_aside: bool = False


MECHANISMS: Final[Mapping[str, Mechanism]] = {
    mechanism.name: mechanism
    for mechanism in (
        Mechanism(
            "mitigation",
            "signals are held back while the other side is awake or about to be",
            off={"burstthresh": "0", "txmitigation": "0"},
        ),
        Mechanism("priorities", "urgent cards are served before others", off={"priority": "0"}),
        Mechanism("interrupt-controller", "raising and ending an interrupt are stores to shared memory", is_aside=True),
        Mechanism("zero-copy", "frames are made and read where they lie", manner=Manner(does_copy=True)),
        Mechanism("flow-control", "a full card holds its senders up, for a moment at most", off={"hold": "0"}),
        Mechanism("parking", "cards with nothing to do are not looked at", off={"parking": "0"}),
        Mechanism(
            "batching",
            "many frames a turn, a signal and a look at the other side",
            off={"budget": "1"},
            manner=Manner(batch=1),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Subject:
    """One that takes part.

    Attributes:
        model: its network card.
        without: the mechanism that is off; None: none is.
    """

    model: str
    without: Mechanism | None = None

    @property
    def name(self) -> str:
        """In reports."""
        return self.model if self.without is None else f"{self.model} without {self.without.name}"


def subjects(models: list[str], without: list[str]) -> list[Subject]:
    """Return everybody who takes part in the workloads, in the order in which they are told."""
    lesser = [MECHANISMS[name] for name in without if not MECHANISMS[name].is_aside]
    return [Subject(model) for model in models] + [Subject(BASE, mechanism) for mechanism in lesser]

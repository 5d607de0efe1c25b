"""The switch fabric as the rest of the host sees it.

The real one is native (``vbnet._native.Fabric``): worker threads that move frames between ports without the
interpreter. Admin verbs and the venet device speak to it through this protocol only; ``vbnet.testing.FakeFabric`` is
another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

__all__ = ["Fabric"]


class Fabric(Protocol):
    """Switches and their ports. Unknown names raise NotFoundError, taken ones ExistsError."""

    def switch_create(self, name: str, ageing_s: float = 300) -> None:
        """Make a learning switch that forgets an address after ``ageing_s`` seconds without a frame from it."""

    def switch_delete(self, name: str) -> None:
        """Remove a switch without ports; BusyError while it has some."""

    def switches(self) -> Sequence[str]:
        """Names of all switches."""

    def macs(self, switch: str) -> Sequence[Mapping[str, Any]]:
        """What a switch learned: ``mac``, ``port`` and ``age_s`` of each address."""

    def port_add_tap(self, switch: str, name: str, fd: int, mtu: int) -> int:
        """Join a TAP by its descriptor, which the fabric duplicates; gives the port's id."""

    def port_remove(self, port: int, /) -> None:
        """Take a port off its switch; when this returns no worker touches its memory or descriptors."""

    def port_set(self, port: int, key: str, value: str, /) -> None:
        """Change a port while it runs."""

    def ports(self) -> Sequence[Mapping[str, Any]]:
        """Every port: ``id``, ``name``, ``switch``, ``kind``, and its state and counts."""

    def fault_fd(self) -> int:
        """Readable while ``take_faults`` has something; the fabric's own."""

    def take_faults(self) -> Sequence[Mapping[str, Any]]:
        """Quarantines since the last call: ``port``, ``name``, ``rule`` and whatever values belong to it."""

    def close(self) -> None:
        """Stop the workers."""

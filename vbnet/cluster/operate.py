"""The lab's side of the host node's admin socket: the few requests a lab makes, and nothing else of the host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vbnet.cluster.plan import Request, UplinkPlan


class HostControl(Protocol):
    """What a lab needs from its host node."""

    async def apply(self, requests: Sequence[Request]) -> None:
        """Carry out ``requests`` in order.

        Raises:
            VbnetError: the first refusal, naming the request.
        """

    async def add_uplink(self, uplink: UplinkPlan) -> None:
        """Make the TAP a port of its switch."""

    async def close(self) -> None:
        """Let go of the admin socket; the host node goes on."""


async def connect_host(folder: Path) -> HostControl:
    """Connect to the host node of a lab's folder."""
    from vbnet.bus.operator import Operator  # noqa: PLC0415 -- ZeroMQ is loaded when a lab starts, not when it is checked

    return _Operated(await Operator.connect(folder))


class _Operated:
    """A :class:`HostControl` that speaks to a real host node."""

    def __init__(self, operator: object) -> None:
        self._operator = operator

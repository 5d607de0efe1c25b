"""The lab's side of the host node's admin socket: the few requests a lab makes, and nothing else of the host."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from vbnet.cluster.plan import DiskPlan, Request, UplinkPlan
from vbnet.errors import VbnetError

TOLD_MAX = 4096
"""Events that may wait for the host node; the oldest are let go of."""

TOLD_AT_ONCE = 48
"""Events a message: with the names in them they fit its length."""


class HostControl(Protocol):
    """What a lab needs from its host node."""

    async def apply(self, requests: Sequence[Request]) -> None:
        """Carry out ``requests`` in order.

        Raises:
            VbnetError: the first refusal, naming the request.
        """

    async def add_uplink(self, uplink: UplinkPlan) -> None:
        """Make the TAP a port of its switch; the TAP is there already."""

    async def insert(self, disk: DiskPlan) -> None:
        """Open a disk's file, and put it into its device.

        Raises:
            ResourceError: the file cannot be opened. UsageError: it is no disk.
        """

    def tell(self, topic: str, fields: Mapping[str, Any]) -> None:
        """Have an event published, soon and in order; a host node that is gone tells nobody."""

    async def close(self) -> None:
        """Let go of the admin socket, once what was told is published; the host node goes on."""


async def connect_host(folder: Path) -> HostControl:
    """Connect to the host node of a lab's folder.

    Raises:
        NotFoundError: no host node runs there.
    """
    from vbnet.bus.operator import Operator  # noqa: PLC0415 -- ZeroMQ is loaded when a lab starts, not when it is checked

    return _Connected(await Operator.connect(folder))


class _Connected:
    """A :class:`HostControl` that speaks to a real host node."""

    def __init__(self, operator: object) -> None:
        from vbnet.bus.operator import Operator  # noqa: PLC0415 -- same

        assert isinstance(operator, Operator)  # noqa: S101 -- made by connect_host only
        self._operator = operator
        self._untold: deque[msgspec.Struct] = deque(maxlen=TOLD_MAX)
        self._telling: asyncio.Task[None] | None = None

    async def apply(self, requests: Sequence[Request]) -> None:
        from vbnet.bus import admin  # noqa: PLC0415 -- same

        verbs: list[msgspec.Struct] = [
            msgspec.convert({"verb": request.verb, **request.args}, admin.Verb) for request in requests
        ]
        try:
            await self._operator.apply(verbs)
        except VbnetError as error:
            index = error.fields.get("index")
            if isinstance(index, int) and index < len(requests):
                error.message = f"{requests[index].describe()}: {error.message}"
            raise

    async def add_uplink(self, uplink: UplinkPlan) -> None:
        await self._operator.port_add(uplink.switch, uplink.tap, mtu=uplink.mtu, offloads=uplink.offloads)

    async def insert(self, disk: DiskPlan) -> None:
        from vbnet.bus.descriptors import opened_image  # noqa: PLC0415 -- same

        with opened_image(disk.image, is_read_only=disk.is_read_only) as fd:
            await self._operator.device_insert(disk.device, fd, disk.image, is_read_only=disk.is_read_only)

    def tell(self, topic: str, fields: Mapping[str, Any]) -> None:
        from vbnet.bus import admin  # noqa: PLC0415 -- same

        self._untold.append(admin.EventPublish(topic, dict(fields)))
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._publish())

    async def close(self) -> None:
        if self._telling is not None:
            await self._telling
        await self._operator.close()

    async def _publish(self) -> None:
        while self._untold:
            batch = [self._untold.popleft() for _ in range(min(len(self._untold), TOLD_AT_ONCE))]
            try:
                await self._operator.apply(batch)
            except VbnetError:  # what a lab does goes on unheard
                self._untold.clear()

"""A whole lab in one process: a real host node, an operator and guests on one event loop, over real sockets.

async with Lab.open(run_root) as lab:
    await lab.plugged("echo0", "lan", "echo")
    guest = await lab.guest("web", "lan")
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vbnet.bus.limits import Limits
from vbnet.bus.operator import Operator
from vbnet.bus.rundir import RunDir
from vbnet.clock import Clock
from vbnet.guestnode import GuestNode, GuestSession
from vbnet.hostnode.node import HostNode, HostOptions
from vbnet.testing.fabric import FakeFabric
from vbnet.testing.log import ListLog

__all__ = ["Lab", "eventually", "one_turn"]

_PATIENCE_S = 10.0


@dataclass(slots=True)
class Lab:
    """What a test holds; everything is closed when ``open`` ends."""

    host: HostNode
    operator: Operator
    run_dir: RunDir
    log: ListLog
    fabric: FakeFabric
    stack: AsyncExitStack
    nodes: list[GuestNode] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, run_root: Path, *, limits: Limits | None = None, clock: Clock | None = None
    ) -> AsyncIterator[Lab]:
        """Start a host node and an operator in a run directory under ``run_root``."""
        run_dir = RunDir.for_node("lab", run_root)
        log, fabric = ListLog(), FakeFabric()
        options = HostOptions(run_dir=run_dir, name="lab", limits=limits or Limits())
        async with AsyncExitStack() as stack:
            host = await stack.enter_async_context(HostNode(options, clock=clock, log=log, fabric=fabric))
            operator = await stack.enter_async_context(await Operator.connect(run_dir))
            yield cls(host, operator, run_dir, log, fabric, stack)

    async def node(self, name: str = "node") -> GuestNode:
        """Connect one more guest process (here: in this one)."""
        node = await self.stack.enter_async_context(await GuestNode.connect(self.run_dir, name))
        self.nodes.append(node)
        return node

    async def guest(self, name: str, bus: str | None = None, *, ram_bytes: int = 0) -> GuestSession:
        """A guest in a process of its own."""
        return await (await self.node(name)).join(name, bus, ram_bytes=ram_bytes)

    async def plugged(
        self, device: str, bus: str, device_class: str = "echo", attributes: Mapping[str, str] | None = None
    ) -> list[int]:
        """Make a device and plug it, making the bus if there is none; gives its dev-ids."""
        if bus not in self.host.plugboard.model.buses():
            await self.operator.bus_create(bus)
        await self.operator.device_create(device, device_class, attributes)
        return await self.operator.device_plug(device, bus)


async def eventually(is_so: Callable[[], object], patience_s: float = _PATIENCE_S) -> None:
    """Return as soon as ``is_so()`` is true, looking at every turn of the event loop.

    Raises:
        TimeoutError: it was not true for so long that something must be wrong.
    """
    async with asyncio.timeout(patience_s):
        while not is_so():  # noqa: ASYNC110 - what is waited for lives in many places
            await asyncio.sleep(0.001)


async def one_turn() -> None:
    """Let everything that is ready to run have its turn."""
    await asyncio.sleep(0)

"""A native generator (with ``send``) or sink (without), measuring latency and loss.

Ready means that its NIC is up; a generator begins when the whole lab is ready. When it has sent for as long as it should,
it prints one JSON line with what it counted and ends well. A sink stays.
"""

from __future__ import annotations

import asyncio
import json

from vbnet.cluster.launch import Job
from vbnet.cluster.plan import SendPlan

NIC_TIMEOUT_S = 30.0


def run(job: Job) -> int:
    """Run a ``traffic`` guest in this process."""
    return asyncio.run(_serve(job))


async def _serve(job: Job) -> int:
    from vbnet._native import TrafficGuest  # noqa: PLC0415 -- this process speaks to the bus only from here on
    from vbnet.guestnode import GuestNode  # noqa: PLC0415 -- same

    plan = job.process.guests[0]
    async with await GuestNode.connect(job.folder, job.process.name) as node:
        guest = await node.join(plan.name, bus=plan.bus, kind="traffic", ram_bytes=plan.ram_bytes)
        nic = await guest.nic(plan.nics[0].name, timeout=NIC_TIMEOUT_S)
        traffic = TrafficGuest(nic.driver, mac=plan.nics[0].mac)
        try:
            job.report(plan.name, "ready")
            await job.gone_ahead()
            if plan.send is None:
                await node.wait_closed()
                return 1
            return await _generate(traffic, plan.send)
        finally:
            traffic.close()


async def _generate(traffic: object, send: SendPlan) -> int:
    raise NotImplementedError((traffic, send, json))

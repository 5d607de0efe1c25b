"""A native generator (with ``send``) or sink (without), measuring latency and loss.

Ready means that its NIC is up; a generator begins when the whole lab is ready. When it has sent for as long as it
should, it prints one JSON line with what it counted and ends well. A sink stays. Both count into a counters file of
their own in the run directory, so latency and loss can be read from outside at any time; the supervisor removes it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from vbnet.bus.limits import DEFAULT_RAM_BYTES
from vbnet.bus.rundir import RunDir
from vbnet.cluster.guests.waiting import with_host
from vbnet.cluster.launch import Job
from vbnet.cluster.plan import SendPlan
from vbnet.guestnode import GuestNode

if TYPE_CHECKING:
    from vbnet import _native

NIC_TIMEOUT_S = 30.0
REPORT_EVERY_S = 1.0
COUNTER_BYTES = 16 << 10


def run(job: Job) -> int:
    """Run a ``traffic`` guest in this process."""
    return asyncio.run(_serve(job))


async def _serve(job: Job) -> int:
    from vbnet import _native  # noqa: PLC0415 -- native code only in the process that serves

    plan = job.process.guests[0]
    place = RunDir(job.folder).process_counters(job.process.name)
    counters = _native.CounterFile.create(place, COUNTER_BYTES)
    async with await GuestNode.connect(job.folder, job.process.name) as node:
        guest = await node.join(plan.name, plan.bus, kind="traffic", ram_bytes=plan.ram_bytes or DEFAULT_RAM_BYTES)
        nic = await guest.nic(plan.nics[0].name, NIC_TIMEOUT_S)
        traffic = _native.TrafficGuest(nic, mac=plan.nics[0].mac, counters=counters, name=plan.name)
        try:
            job.report(plan.name, "ready")
            await job.gone_ahead()
            return int(await with_host(guest, _report(traffic, plan.send)))
        finally:
            traffic.close()


async def _report(traffic: _native.TrafficGuest, send: SendPlan | None) -> int:
    """Send as asked, and print what was counted once a second and at the end, one JSON line each time."""
    from vbnet._native import Arrivals  # noqa: PLC0415 -- as above

    if send is not None:
        arrivals = None
        if send.rate_per_second is not None:
            arrivals = Arrivals.constant(max(1.0, send.rate_per_second))
        traffic.start(send.mac, size=send.size, arrivals=arrivals, duration=send.duration_s)
    last = None
    while send is None or traffic.is_sending:
        await asyncio.sleep(REPORT_EVERY_S)
        statistics = traffic.statistics()
        if statistics != last:
            print(msgspec.json.encode(statistics).decode(), flush=True)  # noqa: T201 -- this is the guest's log
            last = statistics
    return 0

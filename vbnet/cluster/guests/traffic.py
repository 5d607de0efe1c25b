"""A native generator (with ``send``) or sink (without), measuring latency and loss.

Ready means that its NIC is up; a generator begins when the whole lab is ready. When it has sent for as long as it
should, it prints one JSON line with what it counted and ends well. A sink stays. When the NIC leaves, both go on with
the next of its name; what was due meanwhile is not sent. Both count into a counters file of their own in the run
directory, so latency and loss can be read from outside at any time; the supervisor removes it.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import msgspec

from vbnet.bus.limits import DEFAULT_RAM_BYTES
from vbnet.bus.rundir import RunDir
from vbnet.cluster.guests.waiting import with_host
from vbnet.cluster.launch import Job
from vbnet.cluster.plan import GuestPlan, SendPlan, nic_model
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
    from vbnet.cluster.guests.card import Card  # noqa: PLC0415 -- same
    from vbnet.guestnode.driver import load_driver  # noqa: PLC0415 -- same

    plan = job.process.guests[0]
    place = RunDir(job.folder).process_counters(job.process.name)
    counters = _native.CounterFile.create(place, COUNTER_BYTES)
    async with await GuestNode.connect(job.folder, job.process.name) as node:
        guest = await node.join(plan.name, plan.bus, kind="traffic", ram_bytes=plan.ram_bytes or DEFAULT_RAM_BYTES)
        user = TrafficUser(plan, counters)
        guest.register(Card(load_driver(nic_model(plan.nics[0]).abi_type), plan.nics[0].name, user))
        await guest.nic(plan.nics[0].name, NIC_TIMEOUT_S)
        try:
            job.report(plan.name, "ready")
            await job.gone_ahead()
            return int(await with_host(guest, _report(user.traffic, plan.send)))
        finally:
            user.traffic.close()


class TrafficUser:
    """A traffic guest, with a card or without one."""

    def __init__(self, plan: GuestPlan, counters: _native.CounterFile) -> None:
        self._plan, self._counters = plan, counters
        self._traffic: _native.TrafficGuest | None = None

    @property
    def traffic(self) -> _native.TrafficGuest:
        """The guest, which is there once it had a card."""
        assert self._traffic is not None  # noqa: S101 - whoever asks has waited for the card
        return self._traffic

    def take(self, nic: _native.NicDriver) -> None:
        """Begin on this card, or go on."""
        from vbnet import _native  # noqa: PLC0415 -- as above

        if self._traffic is None:
            plan = self._plan
            self._traffic = _native.TrafficGuest(nic, mac=plan.nics[0].mac, counters=self._counters, name=plan.name)
        else:
            self._traffic.attach(nic)

    def let_go(self) -> None:
        """Wait for another card."""
        if self._traffic is not None:
            self._traffic.detach()


async def _report(traffic: _native.TrafficGuest, send: SendPlan | None) -> int:
    """Send as asked, and print what was counted once a second and at the end, one JSON line each time."""
    from vbnet._native import Arrivals  # noqa: PLC0415 -- as above

    loop = asyncio.get_running_loop()
    ends = math.inf
    if send is not None:
        arrivals = None
        if send.rate_per_second is not None:
            arrivals = Arrivals.constant(max(1.0, send.rate_per_second))
        if send.duration_s is not None:
            ends = loop.time() + send.duration_s
        traffic.start(send.mac, size=send.size, arrivals=arrivals, duration=send.duration_s)
    last = None
    while traffic.is_sending or loop.time() < ends:  # without a card it does not send, but may do so again
        await asyncio.sleep(REPORT_EVERY_S)
        statistics = traffic.statistics()
        if statistics != last:
            print(msgspec.json.encode(statistics).decode(), flush=True)  # noqa: T201 -- this is the guest's log
            last = statistics
    return 0

"""Guests that are small IP hosts: ping, echo and a web page, from one to a thousand in one process.

Their stacks run on a native thread; this process only joins them to the bus and then waits for the host node's end.
Each has little memory: short rings are enough for a small host, and a thousand of them must fit the machine. A host
whose card leaves goes on when it is there again, with its connections. What they do is counted in a file of this
process in the run directory, which the supervisor removes.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from vbnet.bus.descriptors import raise_descriptor_limit
from vbnet.bus.rundir import RunDir
from vbnet.cluster.guests.waiting import with_host
from vbnet.cluster.launch import Job
from vbnet.cluster.plan import GuestPlan, nic_model
from vbnet.errors import ClosedError
from vbnet.guestnode import GuestNode

if TYPE_CHECKING:
    from vbnet import _native
    from vbnet.guestnode.nic import NicDriverClass

NIC_TIMEOUT_S = 30.0
JOINS_AT_ONCE = 32
SLOTS = 64
"""Slots of each ring of a stack guest."""
COUNTER_BYTES = 512
"""A guest's share of the counters file, and more than enough for the file's head."""


def run(job: Job) -> int:
    """Run all ``stack`` guests of a process."""
    raise_descriptor_limit()
    return asyncio.run(_serve(job))


async def _serve(job: Job) -> int:
    from vbnet import _native  # noqa: PLC0415 -- native code only in the process that serves
    from vbnet.cluster.guests.card import Card  # noqa: PLC0415 -- same
    from vbnet.guestnode.driver import load_driver_class  # noqa: PLC0415 -- same

    place = RunDir(job.folder).process_counters(job.process.name)
    counters = _native.CounterFile.create(place, COUNTER_BYTES * (1 + len(job.process.guests)))
    stacks = _native.StackGuests()
    room = asyncio.Semaphore(JOINS_AT_ONCE)
    async with await GuestNode.connect(job.folder, job.process.name) as node:

        async def join(plan: GuestPlan) -> None:
            async with room:
                first = plan.nics[0]
                driver: NicDriverClass = load_driver_class(nic_model(first).abi_type)
                ram_bytes = plan.ram_bytes or driver.ram_bytes(first.mtu, SLOTS)
                guest = await node.join(plan.name, plan.bus, kind="stack", ram_bytes=ram_bytes)
                guest.register(Card(driver(slots=SLOTS), first.name, _Host(stacks, plan, counters)))
                await guest.nic(first.name, NIC_TIMEOUT_S)
                job.report(plan.name, "ready")

        await asyncio.gather(*(join(plan) for plan in job.process.guests))
        loop = asyncio.get_running_loop()
        loop.add_reader(stacks.fault_fd(), _print_faults, stacks)
        try:
            return int(await with_host(node.sessions[0]))
        finally:
            loop.remove_reader(stacks.fault_fd())
            stacks.close()


class _Host:
    """One of the hosts, with a card or without one."""

    def __init__(self, stacks: _native.StackGuests, plan: GuestPlan, counters: _native.CounterFile) -> None:
        self._stacks, self._plan, self._counters = stacks, plan, counters
        self._number: int | None = None

    def take(self, nic: _native.NicDriver) -> None:
        """Begin on this card, or go on."""
        if self._number is not None:
            self._stacks.attach(self._number, nic)
            return
        first = self._plan.nics[0]
        self._number = self._stacks.add(
            self._plan.name,
            nic,
            mac=first.mac,
            ip=first.ip,
            gateway=first.gateway,
            mtu=first.mtu,
            counters=self._counters,
        )

    def let_go(self) -> None:
        """Wait for another card."""
        if self._number is not None:
            with contextlib.suppress(ClosedError):  # all of them have ended
                self._stacks.detach(self._number)


def _print_faults(stacks: _native.StackGuests) -> None:
    for fault in stacks.take_faults():
        print(f"quarantined: {fault}", flush=True)  # noqa: T201 -- this is the guests' log

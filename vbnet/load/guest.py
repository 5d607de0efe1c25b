"""A traffic guest of a load run: does what it is told, one order after the other, until the lab ends.

When its interface is taken away it stops, and goes on counting on the same interface once it is there again; what it is
to do then is told anew. A traffic guest that the lab file gives something to send does that, as in any lab.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from vbnet.bus.limits import DEFAULT_RAM_BYTES
from vbnet.bus.rundir import RunDir
from vbnet.cluster.guests import traffic as plain
from vbnet.cluster.guests.waiting import with_host
from vbnet.cluster.launch import Job
from vbnet.cluster.plan import GuestPlan, nic_model
from vbnet.guestnode import GuestNode
from vbnet.load import orders

if TYPE_CHECKING:
    from vbnet import _native

__all__ = ["run"]

ORDERS_KEPT = 8
"""Orders that wait for an interface; older ones are let go of."""

_ETHERNET_BYTES = 18
"""Header and one VLAN tag, on top of an MTU."""


def run(job: Job) -> int:
    """Run a ``traffic`` guest of a load run in this process."""
    if job.process.guests[0].send is not None:
        return plain.run(job)
    return asyncio.run(_serve(job))


async def _serve(job: Job) -> int:
    from vbnet import _native  # noqa: PLC0415 -- native code only in the process that serves

    plan = job.process.guests[0]
    place = RunDir(job.folder).process_counters(job.process.name)
    counters = _native.CounterFile.create(place, plain.COUNTER_BYTES)
    async with await GuestNode.connect(job.folder, job.process.name) as node:
        guest = await node.join(plan.name, plan.bus, kind="traffic", ram_bytes=plan.ram_bytes or DEFAULT_RAM_BYTES)
        interface = _Interface(plan, counters)
        guest.register(interface.card)
        await guest.nic(plan.nics[0].name, plain.NIC_TIMEOUT_S)
        try:
            job.report(plan.name, "ready")
            await job.gone_ahead()
            return int(await with_host(guest, _obey(job, interface)))
        finally:
            interface.traffic.close()


class _Interface(plain.TrafficUser):
    """A guest and its interface, which may leave and come again."""

    def __init__(self, plan: GuestPlan, counters: _native.CounterFile) -> None:
        from vbnet.cluster.guests.card import Card  # noqa: PLC0415 -- only in the process that serves
        from vbnet.guestnode.driver import load_driver  # noqa: PLC0415 -- same

        super().__init__(plan, counters)
        first = plan.nics[0]
        self.card = Card(load_driver(nic_model(first).abi_type), first.name, self, self._catch_up)
        self._mtu = first.mtu
        self._kept: deque[orders.Order] = deque(maxlen=ORDERS_KEPT)

    def do(self, order: orders.Order) -> None:
        """Do what is ordered, or keep it until the interface is there again."""
        if self.card.is_here:
            _do(order, self.traffic, self._mtu)
        else:
            self._kept.append(order)

    def let_go(self) -> None:
        """Stop: what it is to do with the next is told anew."""
        if self._traffic is not None:
            self._traffic.close()

    def _catch_up(self) -> None:
        while self._kept:
            self.do(self._kept.popleft())


async def _obey(job: Job, interface: _Interface) -> int:
    while message := await job.order():
        interface.do(orders.decode_order(message))
    return 0


def _do(order: orders.Order, traffic: _native.TrafficGuest, mtu: int) -> None:
    match order:
        case orders.Listen():
            traffic.stop()
            traffic.listen(order.manner.batch, does_copy=order.manner.does_copy)
        case orders.Reflect():
            traffic.reflect()
        case orders.Stop():
            traffic.stop()
        case orders.Ask():
            traffic.ask(
                order.to,
                size=order.size,
                window=order.window,
                timeout=order.timeout_s,
                duration=order.for_s,
                stream=order.stream,
                at=order.at_s,
            )
        case orders.Send():
            _send(order, traffic, mtu)


def _send(order: orders.Send, traffic: _native.TrafficGuest, mtu: int) -> None:
    from vbnet._native import Arrivals  # noqa: PLC0415 -- as above

    traffic.stop()
    recorded = None
    if order.replay is None:
        arrivals = getattr(Arrivals, order.schedule.kind)(*_numbers(order.schedule))
    else:
        from vbnet.load.replay import load_recording  # noqa: PLC0415 -- only who replays needs it

        recording = load_recording(Path(order.replay.path), longest=mtu + _ETHERNET_BYTES).faster(order.replay.speed)
        arrivals, recorded = Arrivals.gaps(recording.gaps_ns), recording.frames
    traffic.start(
        list(order.to),
        size=order.size,
        arrivals=arrivals,
        duration=order.for_s,
        stream=order.stream,
        at=order.at_s,
        recorded=recorded,
        batch=order.manner.batch,
        does_copy=order.manner.does_copy,
    )


def _numbers(schedule: orders.Schedule) -> list[float | int]:
    """Numbers as native code takes them: those that count something are whole."""
    whole = {"poisson": 1, "burst": 0}.get(schedule.kind)
    return [int(number) if place == whole else number for place, number in enumerate(schedule.numbers)]

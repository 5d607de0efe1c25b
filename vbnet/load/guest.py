"""A traffic guest of a load run: does what it is told, one order after the other, until the lab ends.

A traffic guest that the lab file gives something to send does that, as in any lab.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from vbnet.bus.limits import DEFAULT_RAM_BYTES
from vbnet.bus.rundir import RunDir
from vbnet.cluster.guests import traffic as plain
from vbnet.cluster.guests.waiting import with_host
from vbnet.cluster.launch import Job
from vbnet.guestnode import GuestNode
from vbnet.load import orders

if TYPE_CHECKING:
    from vbnet import _native

__all__ = ["run"]

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
        nic = await guest.nic(plan.nics[0].name, plain.NIC_TIMEOUT_S)
        traffic = _native.TrafficGuest(nic, mac=plan.nics[0].mac, counters=counters, name=plan.name)
        try:
            job.report(plan.name, "ready")
            await job.gone_ahead()
            return int(await with_host(guest, _obey(job, traffic, plan.nics[0].mtu)))
        finally:
            traffic.close()


async def _obey(job: Job, traffic: _native.TrafficGuest, mtu: int) -> int:
    while message := await job.order():
        _do(orders.decode_order(message), traffic, mtu)
    return 0


def _do(order: orders.Order, traffic: _native.TrafficGuest, mtu: int) -> None:
    match order:
        case orders.Listen():
            traffic.stop()
            traffic.listen()
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
    )


def _numbers(schedule: orders.Schedule) -> list[float | int]:
    """Numbers as native code takes them: those that count something are whole."""
    whole = {"poisson": 1, "burst": 0}.get(schedule.kind)
    return [int(number) if place == whole else number for place, number in enumerate(schedule.numbers)]

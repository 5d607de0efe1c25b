"""A guest that is a real Linux network namespace.

This process enters a new namespace before it does anything else, makes a TAP for each NIC, and gives the TAP's
descriptor to the host node, whose workers read and write the frames. Then it holds the namespace: it waits, or runs
the lab file's command in it and ends with that. The namespace has no name and vanishes with its last process.

Host side of the TAP: device class ``tap`` (``vbnet/devices/tap``).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence

from vbnet.cluster import netns
from vbnet.cluster.guests.waiting import with_host
from vbnet.cluster.launch import Job
from vbnet.cluster.plan import NicPlan
from vbnet.devices.tap.driver import TapDriver
from vbnet.guestnode import GuestNode

NIC_TIMEOUT_S = 30.0


def run(job: Job) -> int:
    """Run a ``netns`` guest in this process."""
    netns.enter_new()
    netns.bring_up_loopback()
    taps = [(nic, netns.make_interface(nic)) for nic in job.process.guests[0].nics]
    return asyncio.run(_serve(job, taps))


async def _serve(job: Job, taps: list[tuple[NicPlan, int]]) -> int:
    plan = job.process.guests[0]
    async with await GuestNode.connect(job.folder, job.process.name) as node:
        guest = await node.join(plan.name, bus=plan.bus, kind="netns", ram_bytes=0)
        guest.register(TapDriver({nic.name: fd for nic, fd in taps}))
        for nic, _ in taps:
            await guest.bind(nic.name, NIC_TIMEOUT_S)
        job.report(plan.name, "ready")
        await job.gone_ahead()
        return int(await with_host(guest, _run_program(plan.run, plan.env) if plan.run else None))


async def _run_program(command: Sequence[str], env: dict[str, str]) -> int:
    """Run the lab file's command to its end; it is ended with this process."""
    program = netns.run_inside(command, env)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    pidfd = os.pidfd_open(program.pid)
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        if program.poll() is None:
            program.send_signal(signal.SIGTERM)
    code = program.wait()
    return code if code >= 0 else 128 - code

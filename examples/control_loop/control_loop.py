"""A control loop at a fixed rate: holds a heater's temperature, and prints how evenly it ran.

Usage: python control_loop.py [TICKS]
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from vbnet.bus.operator import SyncOperator
from vbnet.devices.timer.driver import Tick, Timers
from vbnet.guestnode import GuestNode
from vbnet.testing.processes import HostProcess

PERIOD_S = 0.001
WANTED = 60.0
LOSS_A_STEP = 0.002
GAIN = 0.5


class Heater:
    """What is controlled: it loses heat to a room of 20 degrees, and takes what it is given."""

    def __init__(self) -> None:
        self.temperature = 20.0
        self._integral = 0.0

    def step(self, steps: int) -> None:
        """Control once, for so many periods: some may have been missed."""
        error = WANTED - self.temperature
        self._integral += error * 0.01 * steps
        power = min(1.0, max(0.0, GAIN * error + self._integral))
        for _ in range(steps):
            self.temperature += power - LOSS_A_STEP * (self.temperature - 20.0)


async def run(timers: Timers, count: int) -> list[Tick]:
    """Control ``count`` times, on the grid of the period."""
    heater, ticks = Heater(), []
    async for tick in timers.every(PERIOD_S, priority=7):
        heater.step(1 + tick.missed)
        ticks.append(tick)
        if len(ticks) == count:
            break
    print(f"temperature {heater.temperature:.1f}, wanted {WANTED:.1f}")
    return ticks


def tell(ticks: list[Tick]) -> None:
    """Print how late the loop was woken."""
    late_us = sorted(tick.late_ns / 1000 for tick in ticks)
    missed = sum(tick.missed for tick in ticks)
    print(f"ticks {len(ticks)}, missed {missed}")
    print(f"late by, in µs: half {late_us[len(late_us) // 2]:.1f},")
    print(f"  99 of 100 {late_us[len(late_us) * 99 // 100]:.1f}, worst {late_us[-1]:.1f}")


async def main(host: HostProcess, count: int) -> None:
    """Be a guest of ``host`` with a timer device."""
    async with await GuestNode.connect(host.run_dir, "controller") as node:
        guest = await node.join("controller", "plant")
        timers = await guest.bind("timer0")
        tell(await run(timers, count))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="vbnet-") as folder, HostProcess(Path(folder)) as host_process:
        with SyncOperator(host_process.run_dir) as operator:
            operator.bus_create("plant")
            operator.device_create("timer0", "timer")
            operator.device_plug("timer0", "plant")
        asyncio.run(main(host_process, int(sys.argv[1]) if len(sys.argv) > 1 else 2000))

"""A chip with registers that guests access synchronously: fast handler in the host, ``fastcall`` in the guest.

Four threads of a guest, its processors, write and read registers of their own at the same time. Then fastcalls are
switched off and they do it again: the same program, slower.
"""

import argparse
import struct
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vbnet import Guest
from vbnet.bus.kinds import Catalogue, Kind, discover
from vbnet.bus.loopthread import LoopThread
from vbnet.bus.operator import SyncOperator
from vbnet.bus.rundir import RunDir
from vbnet.errors import UsageError
from vbnet.guestnode.sync import SyncOpenDevice
from vbnet.hostnode.device import AttributeTable, Connection, Device, DeviceClass, HostServices, Interface, Opener
from vbnet.hostnode.node import HostNode, HostOptions
from vbnet.testing import ListLog

READ, WRITE = 0, 1
REGISTERS = 64
ACCESS = struct.Struct("<HQ")
"""Register, value."""


class ChipConnection(Connection):
    """A guest's registers. Both ways to call come to the same function."""

    def __init__(self) -> None:
        self._registers = [0] * REGISTERS
        self.fast = self.call

    def call(self, function: int, data: bytes) -> bytes:
        """READ a register, or WRITE it; either gives its value. One list item is one store: threads need no lock."""
        if function not in (READ, WRITE) or len(data) != ACCESS.size:
            raise UsageError(f"no access {function} with {len(data)} bytes", function=function)
        register, value = ACCESS.unpack(data)
        if register >= REGISTERS:
            raise UsageError(f"register {register}, but there are {REGISTERS}", got=register, limit=REGISTERS)
        if function == WRITE:
            self._registers[register] = value
        return ACCESS.pack(register, self._registers[register])

    def close(self) -> None:
        """Nothing is held."""


class ChipInterface(Interface):
    """What a guest sees."""

    name, abi_type, exclusive = "chip0", "chip", False

    def connect(self, opener: Opener, version: int) -> Connection:
        """Give every guest registers of its own."""
        del opener, version
        return ChipConnection()


class Chip(Device):
    """The device."""

    attributes = AttributeTable()

    def plug(self, bus: str) -> list[Interface]:
        """Show it."""
        del bus
        return [ChipInterface()]


class ChipClass(DeviceClass):
    """Makes chips."""

    name, abi_types = "chip", ("chip",)

    def create(self, services: HostServices, name: str) -> Chip:
        """Make one."""
        del services, name
        return Chip()


def catalogue() -> Catalogue:
    """Everything there is, and chips."""
    chips = Kind("chip", classes={"chip": f"{__name__}:ChipClass"}, drivers={})
    return Catalogue.of([*discover().kinds.values(), chips])


def work(chip: SyncOpenDevice, processor: int, count: int) -> int:
    """Write and read back, as one processor; gives how many values were right."""
    right = 0
    for number in range(count):
        written = chip.fastcall(WRITE, ACCESS.pack(processor, number))
        right += chip.fastcall(READ, ACCESS.pack(processor, 0)) == written == ACCESS.pack(processor, number)
    return right


def measured(chip: SyncOpenDevice, processors: int, count: int) -> tuple[int, float]:
    """Let all processors work at once; gives how many values were right, and microseconds a call."""
    start = time.perf_counter()
    with ThreadPoolExecutor(processors) as pool:
        right = sum(pool.map(lambda processor: work(chip, processor, count), range(processors)))
    return right, (time.perf_counter() - start) / (2 * processors * count) * 1e6


def main() -> None:
    """Run host and guest, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", action="store_true", help="say how long a call took")
    with_time: bool = parser.parse_args().time

    with tempfile.TemporaryDirectory(prefix="vbnet-") as folder:
        run_dir = RunDir(Path(folder) / "node")
        loop = LoopThread("host")
        host = loop.run(start(run_dir))
        try:
            with SyncOperator(run_dir) as operator, prepared(operator, run_dir) as guest, guest.open("chip0") as chip:
                right, each_us = measured(chip, 4, 100)
                print(f"4 processors wrote and read 400 registers through memory: {right} right")
                operator.device_set("fast", "enabled", "0")
                slow, slowly_us = measured(chip, 4, 100)
                print(f"the same without fastcalls: {slow} right")
                if with_time:
                    print(f"{each_us:.0f} µs a call through memory, {slowly_us:.0f} µs the ordinary way")
        finally:
            loop.run(host.stop())
            loop.close()


async def start(run_dir: RunDir) -> HostNode:
    """Start the host."""
    host = HostNode(HostOptions(run_dir=run_dir, catalogue=catalogue()), log=ListLog())
    await host.start()
    return host


def prepared(operator: SyncOperator, run_dir: RunDir) -> Guest:
    """Plug a chip and a fastcall device, and have a guest join."""
    operator.bus_create("board")
    for name, device_class in (("chip", "chip"), ("fast", "fastcall")):
        operator.device_create(name, device_class)
        operator.device_plug(name, "board")
    return Guest("cpu", "board", address=run_dir.path)


if __name__ == "__main__":
    main()

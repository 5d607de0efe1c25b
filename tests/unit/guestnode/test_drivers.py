"""Drivers: matched early and late, removed with their device, loaded on demand."""

import asyncio
from pathlib import Path

import pytest

from vbnet.devices.echo.device import EchoClass
from vbnet.devices.echo.driver import Cell, CellDriver, Echo, EchoDriver
from vbnet.errors import DeadlineError, NotFoundError, PeerGone, UsageError
from vbnet.guestnode import ProxyDevice
from vbnet.guestnode.driver import load_driver
from vbnet.testing import GuestBench, HostBench, ManualClock
from vbnet.testing.lab import Lab, eventually, one_turn

RAM = 64 * 1024


class Diary:
    """A driver that writes down what happens to it."""

    abi_type = "echo"

    def __init__(self, *, fails: bool = False) -> None:
        self.lines: list[str] = []
        self._fails = fails
        self.gate = asyncio.Event()
        self.gate.set()

    async def probe(self, device: ProxyDevice) -> "DiaryInstance":
        """Write it down; fail or wait if so made."""
        self.lines.append(f"probe {device.dev_id}")
        await self.gate.wait()
        if self._fails:
            raise UsageError("not this one")
        return DiaryInstance(self, device)


class DiaryInstance:
    """What it gives for each device."""

    def __init__(self, diary: Diary, device: ProxyDevice) -> None:
        self._diary = diary
        self._device = device

    async def remove(self) -> None:
        """Write it down."""
        self._diary.lines.append(f"remove {self._device.dev_id}")


async def test_a_driver_registered_first_gets_each_device_as_it_comes(run_root: Path) -> None:
    """Hot-plug: probed on plug, removed on unplug."""
    async with Lab.open(run_root) as lab:
        await lab.operator.bus_create("lan")
        guest = await lab.guest("web", "lan")
        diary = Diary()
        guest.register(diary)

        await lab.plugged("e", "lan")
        await eventually(lambda: diary.lines == ["probe 1"])
        await lab.operator.device_unplug("e", "lan")
        await eventually(lambda: diary.lines == ["probe 1", "remove 1"])

        assert guest.devices == []


async def test_a_driver_registered_late_gets_what_is_there(run_root: Path) -> None:
    """Order does not matter."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        await lab.plugged("f", "lan")
        guest = await lab.guest("web", "lan")
        diary = Diary()

        guest.register(diary)
        await eventually(lambda: len(diary.lines) == 2)

        assert diary.lines == ["probe 1", "probe 3"]
        with pytest.raises(UsageError):
            guest.register(Diary())


async def test_a_failing_probe_leaves_the_device_unbound_and_says_why(run_root: Path) -> None:
    """The guest goes on, and the error is kept where it can be read."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan")

        guest.register(Diary(fails=True))
        await eventually(lambda: guest.devices[0].probe_error is not None)

        assert str(guest.devices[0].probe_error) == "not this one"
        with pytest.raises(UsageError):
            await guest.bind("echo0")


async def test_a_device_that_leaves_during_its_probe_is_let_go(run_root: Path) -> None:
    """The probe is cancelled; nothing was made, so nothing is removed."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan")
        diary = Diary()
        diary.gate.clear()
        guest.register(diary)
        await eventually(lambda: diary.lines)

        await lab.operator.device_unplug("e", "lan")
        await eventually(lambda: not guest.devices and not guest._tasks)

        assert diary.lines == ["probe 1"]


async def test_reset_removes_and_probes_again(run_root: Path) -> None:
    """A driver sees a reset as its devices leaving and coming back."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan")
        diary = Diary()
        guest.register(diary)
        await eventually(lambda: diary.lines)

        await guest.reset()
        await eventually(lambda: len(diary.lines) == 3)

        assert diary.lines == ["probe 1", "remove 1", "probe 1"]


async def test_bind_loads_the_driver_of_the_kind(run_root: Path) -> None:
    """A device can be used by name without knowing its driver."""
    async with Lab.open(run_root) as lab:
        await lab.plugged("e", "lan")
        guest = await lab.guest("web", "lan", ram_bytes=RAM)

        echo, cell = await guest.bind("echo0"), await guest.bind("cell0")
        cell.write(b"abc")
        await cell.reverse()

        assert (Echo, Cell) == (type(echo), type(cell))
        assert (await echo.shout(b"hi"), await echo.count() + 1) == (b"HI", 2)


async def test_memory_comes_back_with_every_replug(run_root: Path) -> None:
    """Hot-plugging forever needs no more memory than once."""
    async with Lab.open(run_root) as lab:
        await lab.operator.bus_create("lan")
        await lab.operator.device_create("e", "echo")
        guest = await lab.guest("web", "lan", ram_bytes=RAM)
        guest.register(CellDriver())
        free = guest.memory.free_bytes

        for _ in range(30):
            await lab.operator.device_plug("e", "lan")
            await guest.bind("cell0")
            await lab.operator.device_unplug("e", "lan")
            await eventually(lambda: not guest.devices)

        await eventually(lambda: guest.memory.free_bytes == free)


async def test_waiting_for_a_device_ends_when_it_comes_or_when_time_is_up(run_root: Path) -> None:
    """By name or by type, and never forever."""
    async with Lab.open(run_root) as lab:
        await lab.operator.bus_create("lan")
        node = await lab.node()
        clock = node._clock = ManualClock()
        guest = await node.join("web", "lan", ram_bytes=0)
        waiting = asyncio.ensure_future(guest.wait_device("echo-cell", 60))
        late = asyncio.ensure_future(guest.wait_device("nothing", 30))

        await lab.plugged("e", "lan")

        assert (await waiting).dev_id == 2
        clock.advance(31)
        with pytest.raises(DeadlineError, match="nothing"):
            await late


async def test_waiting_ends_with_the_host(run_root: Path) -> None:
    """Whoever waits learns that nothing will come."""
    async with Lab.open(run_root) as lab:
        guest = await lab.guest("web")
        waiting = asyncio.ensure_future(guest.wait_device("nothing", 60))
        stream = guest.events()
        await one_turn()

        await lab.host.stop()

        with pytest.raises(PeerGone):
            await waiting
        with pytest.raises(PeerGone):
            await anext(stream)
        with pytest.raises(PeerGone):
            await guest.list_devices()
        with pytest.raises(PeerGone):
            await guest._node.join("again")


def test_a_type_without_a_driver_is_named() -> None:
    """The reader learns what is missing."""
    with pytest.raises(NotFoundError, match="strange"):
        load_driver("strange")


async def test_both_halves_meet_on_a_bench() -> None:
    """A device and its driver are tested without a host."""
    guest = GuestBench(HostBench(EchoClass(), {"prefix": "> "}), ram_bytes=RAM)

    echo = await EchoDriver().probe(guest.device("echo0"))
    cell = await CellDriver().probe(guest.device("cell0"))
    cell.write(b"abc")
    turned = await cell.reverse()

    assert (await echo.echo(b"hi"), await echo.count(), turned) == (b"> hi", 1, 4096)
    assert guest.opener.links == [True]
    await cell.remove()
    guest.unplug()
    with pytest.raises(PeerGone):
        await echo.echo(b"hi")
    await echo.remove()
    guest.close()

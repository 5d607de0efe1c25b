"""The tap device: a given TAP becomes a port, everything else is refused, and nothing stays when the guest goes."""

import asyncio
import os
import struct
from collections.abc import Iterator

import pytest

from vbnet.cluster.privileges import open_tap
from vbnet.devices.tap import wire
from vbnet.devices.tap.device import TapClass
from vbnet.devices.tap.driver import TapDriver
from vbnet.errors import BusyError, NotFoundError, UsageError
from vbnet.testing import FakeOpener, GuestBench, HostBench


def test_arguments_on_the_wire() -> None:
    """Little-endian, fixed lengths; another length is the guest's mistake."""
    assert bytes([1, 0, 0, 0, 0, 0, 0, 0x80]) == wire.encode_ticket(0x8000000000000001)
    assert 0x8000000000000001 == wire.decode_ticket(bytes([1, 0, 0, 0, 0, 0, 0, 0x80]))
    assert 9000 == wire.decode_mtu(struct.pack("<I", 9000))
    with pytest.raises(UsageError):
        wire.decode_ticket(b"1234567")


@pytest.fixture
def tap() -> Iterator[int]:
    """A TAP that is not up and is gone with its descriptor."""
    if os.geteuid() != 0 or not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("making a TAP on the machine itself needs root")
    fd = open_tap(f"vbt{os.getpid() % 100000}")
    yield fd
    os.close(fd)


@pytest.fixture
def bench() -> Iterator[HostBench]:
    """A tap device on a switch, as a host has it."""
    bench = HostBench(TapClass(), {"mtu": "9000"})
    bench.fabric.switch_create("lan")
    bench.device.attributes.set_text("switch", "lan", is_open=False)
    yield bench
    bench.unplug()
    bench.fabric.close()


@pytest.mark.usefixtures("tun_device", "makes_links", "no_leaked_links")
def test_a_given_tap_becomes_a_port_and_leaves_with_the_guest(bench: HostBench, tap: int) -> None:
    """The guest learns the MTU; when it closes, the port is gone."""
    guest = GuestBench(bench)

    async def work() -> None:
        driven = await TapDriver({"device": tap}).probe(guest.device("device"))
        assert 9000 == driven.mtu
        assert [("lan", "device", "tap", 9000)] == [
            (port["switch"], port["name"], port["kind"], port["mtu"]) for port in bench.fabric.ports()
        ]
        await driven.remove()

    asyncio.run(work())

    assert [] == bench.fabric.ports()


@pytest.mark.usefixtures("tun_device", "makes_links", "no_leaked_links")
def test_the_guests_end_removes_the_port(bench: HostBench, tap: int) -> None:
    """However the guest ends, the host closes what it had open."""
    opener = FakeOpener()
    connection = bench.open("device", opener=opener)
    opener.gifts[7] = os.dup(tap)
    assert struct.pack("<I", 9000) == connection.call(wire.JOIN, wire.encode_ticket(7))

    with pytest.raises(BusyError):
        connection.call(wire.JOIN, wire.encode_ticket(8))
    bench.unplug()

    assert [] == bench.fabric.ports()


def test_a_descriptor_that_is_no_tap_is_refused_and_closed(bench: HostBench) -> None:
    """A guest may give anything; only a TAP reaches the fabric."""
    opener = FakeOpener()
    connection = bench.open("device", opener=opener)
    reader, writer = os.pipe()
    opener.gifts[7] = reader

    with pytest.raises(UsageError, match="the descriptor is no TAP"):
        connection.call(wire.JOIN, wire.encode_ticket(7))

    assert [] == bench.fabric.ports()
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"x")
    os.close(writer)


@pytest.mark.parametrize(
    ("function", "data", "error"),
    [
        (wire.JOIN, b"", UsageError),
        (wire.JOIN, bytes(9), UsageError),
        (wire.JOIN, bytes(8), NotFoundError),
        (99, b"", UsageError),
    ],
)
def test_calls_that_make_no_sense_are_refused(
    bench: HostBench, function: int, data: bytes, error: type[Exception]
) -> None:
    """Wrong length, unknown ticket, unknown function: refused, nothing changed."""
    connection = bench.open("device")

    with pytest.raises(error):
        connection.call(function, data)

    assert [] == bench.fabric.ports()


def test_a_device_without_a_switch_says_so() -> None:
    """The operator forgot an attribute; the message names it."""
    bench = HostBench(TapClass())
    connection = bench.open("device")

    with pytest.raises(UsageError, match="has no switch; set its attribute `switch`"):
        connection.call(wire.JOIN, wire.encode_ticket(1))

    bench.unplug()
    bench.fabric.close()


@pytest.mark.parametrize("text", ["67", "65536", "many"])
def test_impossible_mtus_are_refused(text: str) -> None:
    """An MTU is 68..65535."""
    bench = HostBench(TapClass())

    with pytest.raises(UsageError):
        bench.device.attributes.set_text("mtu", text, is_open=False)

    bench.unplug()
    bench.fabric.close()


def test_a_second_bus_is_refused(bench: HostBench) -> None:
    """A TAP has one guest, so one bus."""
    with pytest.raises(BusyError):
        bench.device.plug("another")


def test_a_driver_without_a_descriptor_says_so(bench: HostBench) -> None:
    """Only a netns guest has one to give."""
    guest = GuestBench(bench)

    with pytest.raises(UsageError, match="no TAP was made for device 'device'"):
        asyncio.run(TapDriver().probe(guest.device("device")))

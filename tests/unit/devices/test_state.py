"""The state device: claims, pages, the roll, and the same by calls."""

import fcntl
import json
import os
import struct
from collections.abc import Iterator

import pytest

from vbnet.devices.state import wire
from vbnet.devices.state.device import StateClass
from vbnet.devices.state.driver import StateClaims, StatePublishDriver, StateSampleDriver, StateSamples
from vbnet.errors import BusyError, PeerFault, UnsupportedError, UsageError
from vbnet.testing import FakeOpener, GuestBench, HostBench
from vbnet.testing.lab import eventually
from vbnet.testing.processes import count_fds, count_own_fds

SCHEMA = {"schema": "x:f64 mode:u8", "records": "2"}
F_ADD_SEALS, F_SEAL_SEAL = 1033, 1


@pytest.fixture
def host() -> Iterator[HostBench]:
    """A state device of two records on a bench; nothing of it is left afterwards."""
    before = count_own_fds()
    bench = HostBench(StateClass(), SCHEMA)
    yield bench
    bench.unplug()
    bench.device.release()
    bench.fabric.close()
    assert before == count_fds(os.getpid())


async def claims_of(guest: GuestBench) -> StateClaims:
    """Open the publishing side."""
    return await StatePublishDriver().probe(guest.device("publish0"))


async def samples_of(guest: GuestBench) -> StateSamples:
    """Open the sampling side."""
    return await StateSampleDriver().probe(guest.device("sample0"))


def now(host: HostBench) -> list[dict[str, object]]:
    """What the operator sees."""
    rows: list[dict[str, object]] = json.loads(host.device.attributes.texts()["now"])
    return rows


async def test_what_one_guest_publishes_another_samples(host: HostBench) -> None:
    """Without a call in between, and the operator sees it too."""
    publishing, sampling = GuestBench(host), GuestBench(host)
    claims, samples = await claims_of(publishing), await samples_of(sampling)

    publisher = await claims.publisher(1)
    sampler = await samples.sampler(1)
    nothing = sampler.sample()
    publisher.publish(x=2.5, mode=3)

    assert None is nothing
    assert (2.5, 3, True) == (sampler.sample().x, sampler.sample().mode, sampler.sample().is_alive)
    assert {"x": 2.5, "mode": 3} == now(host)[1]["values"]
    assert (2.5, 3) == (await samples.sample(1))[:2]
    await samples.remove()
    await claims.remove()


async def test_record_has_one_owner_and_keeps_its_value_without_any(host: HostBench) -> None:
    """A second claim is refused while the first lasts; then the value stays, and the next owner begins with it."""
    first, second, third = GuestBench(host), GuestBench(host), GuestBench(host)
    claims, others = await claims_of(first), await claims_of(second)
    samples = await samples_of(third)
    sampler = await samples.sampler(0)
    (await claims.publisher(0)).publish(x=1.0, mode=7)
    await eventually(lambda: sampler.sample() is not None)

    with pytest.raises(BusyError):
        await others.publisher(0)
    await claims.remove()
    left = sampler.sample()
    successor = await others.publisher(0)
    successor.publish(x=2.0)
    await eventually(lambda: sampler.sample().is_alive)

    assert (1.0, 7, False) == (left.x, left.mode, left.is_alive)
    assert (2.0, 7, True) == (sampler.sample().x, sampler.sample().mode, sampler.sample().is_alive)
    await samples.remove()
    await others.remove()


async def test_former_owner_that_keeps_its_mapping_cannot_write_where_the_next_one_does(host: HostBench) -> None:
    """Every claim has a page of its own."""
    first, second = GuestBench(host), GuestBench(host)
    claims, others = await claims_of(first), await claims_of(second)
    kept = await claims.publisher(0)
    kept.publish(x=1.0)
    await claims._opened.close()

    successor = await others.publisher(0)
    successor.publish(x=2.0)
    kept.publish(x=666.0)

    assert {"x": 2.0, "mode": 0} == now(host)[0]["values"]
    await others.remove()
    kept.close()


async def test_page_a_guest_sealed_against_freezing_costs_it_the_claim(host: HostBench) -> None:
    """Samplers never get a page that others may still map writable; the guest is reported."""
    opener = FakeOpener()
    connection = host.open("publish0", opener=opener)
    [ticket] = wire.TICKET.unpack(connection.call(wire.PublishFunction.CLAIM, wire.RECORD.pack(1, 0)))
    fd = opener.lends.pop(ticket)
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL)

    with pytest.raises(PeerFault):
        connection.call(wire.PublishFunction.COMMIT, wire.NUMBER.pack(0))

    assert 1 == len(opener.faults)
    assert "1" == host.device.attributes.texts()["faults"]
    with pytest.raises(UsageError):
        connection.call(wire.PublishFunction.COMMIT, wire.NUMBER.pack(0))
    os.close(fd)


async def test_garbage_in_a_page_spoils_its_own_record_only(host: HostBench) -> None:
    """Whatever an owner writes into its page, the host answers, and the other record is as it was."""
    opener = FakeOpener()
    connection = host.open("publish0", opener=opener)
    other = GuestBench(host)
    claims = await claims_of(other)
    (await claims.publisher(1)).publish(x=5.0)
    [ticket] = wire.TICKET.unpack(connection.call(wire.PublishFunction.CLAIM, wire.RECORD.pack(1, 0)))
    fd = opener.lends.pop(ticket)
    with os.fdopen(os.dup(fd), "r+b", buffering=0) as file:
        connection.call(wire.PublishFunction.SCHEMA, b"")
        file.seek(0x80)
        file.write(os.urandom(120))
    connection.call(wire.PublishFunction.COMMIT, wire.NUMBER.pack(0))
    os.close(fd)

    assert [0, 1] == [row["record"] for row in now(host)]
    assert {"x": 5.0, "mode": 0} == now(host)[1]["values"]
    await claims.remove()


async def test_without_memory_the_same_is_done_by_calls() -> None:
    """The driver says so, and both ways find the same values; a claim made by a call is as exclusive."""
    host = HostBench(StateClass(), {**SCHEMA, "memory": "off"})
    guest, other = GuestBench(host), GuestBench(host)
    claims, samples = await claims_of(guest), await samples_of(other)

    with pytest.raises(UnsupportedError):
        await claims.publisher(0)
    with pytest.raises(UnsupportedError):
        await samples.sampler(0)
    nothing = await samples.sample(0)
    await claims.publish(0, 1.5, mode=2)
    await claims.publish(0, x=2.5)
    with pytest.raises(BusyError):
        await (await claims_of(other)).publish(0, 9.0)
    found = await samples.sample(0)
    await claims.remove()
    left = await samples.sample(0)

    assert (False, None) == (samples.is_mapped, nothing)
    assert (2.5, 0, True) == (found.x, found.mode, found.is_alive)
    assert (2.5, False) == (left.x, left.is_alive)
    guest.close()
    host.device.release()


async def test_guest_of_another_machine_calls_while_others_share_memory(host: HostBench) -> None:
    """Refused memory, it publishes by calls what is sampled in memory here."""
    remote = host.open("publish0", opener=FakeOpener(is_remote=True))
    samples = await samples_of(GuestBench(host))
    sampler = await samples.sampler(0)

    with pytest.raises(UnsupportedError):
        remote.call(wire.PublishFunction.CLAIM, wire.RECORD.pack(1, 0))
    value = struct.pack("<dB7x", 4.5, 1)
    remote.call(wire.PublishFunction.PUBLISH, wire.NUMBER.pack(0) + value)
    sampler.sample()
    await eventually(lambda: sampler.sample() is not None)

    assert (4.5, 1, True) == (sampler.sample().x, sampler.sample().mode, sampler.sample().is_alive)
    await samples.remove()


@pytest.mark.parametrize(
    ("name", "text"), [("schema", "x"), ("schema", ""), ("records", "0"), ("records", "65"), ("memory", "maybe")]
)
def test_attribute_that_cannot_be_is_refused(host: HostBench, name: str, text: str) -> None:
    """And what it was stays."""
    before = host.device.attributes.texts()

    with pytest.raises(UsageError):
        host.device.attributes.set_text(name, text, is_open=False)

    assert before == host.device.attributes.texts()


async def test_another_schema_begins_with_nothing(host: HostBench) -> None:
    """It can be set while nobody has the device open; values of the old one would mean nothing."""
    claims = await claims_of(GuestBench(host))
    (await claims.publisher(0)).publish(x=1.0)
    with pytest.raises(BusyError):
        host.device.attributes.set_text("schema", "y:u8", is_open=True)
    await claims.remove()

    host.device.attributes.set_text("schema", "y:u8", is_open=False)

    assert [] == now(host)

"""The guest half of state.

    claims = await guest.bind("publish0")
    position = await claims.publisher(0)
    position.publish(x=1.0, y=2.0)                # a few stores; nobody is told

    samples = await guest.bind("sample0")
    latest = await samples.sampler(0)
    latest.sample()                               # x=1.0, y=2.0, published_ns=…, is_alive=True

Publishers and samplers are native and may be used from any thread. When a record gets a new owner, its samplers are led
to the new page by the guest's event loop; until then they give the last value, with ``is_alive`` False. Where no memory
can be shared, ``claims.publish`` and ``samples.sample`` do the same by calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

from vbnet.devices.state import wire
from vbnet.errors import UnsupportedError, VbnetError
from vbnet.guestnode.proxy import OpenDevice, ProxyDevice
from vbnet.sharedmem import Page, Schema, StatePage, StatePublisher, StateSampler

__all__ = ["StateClaims", "StatePublishDriver", "StateSampleDriver", "StateSamples"]


class StatePublishDriver:
    """Drives ``state-publish``."""

    abi_type = wire.PUBLISH_TYPE

    async def probe(self, device: ProxyDevice) -> StateClaims:
        """Open it; records are claimed later."""
        opened = await device.open(wire.VERSION)
        records, schema = _described(await opened.call(wire.PublishFunction.SCHEMA))
        return StateClaims(opened, schema, records)


class StateClaims:
    """Where a guest claims records.

    Attributes:
        schema: of every record.
        records: how many there are.
    """

    def __init__(self, opened: OpenDevice, schema: Schema, records: int) -> None:
        self._opened = opened
        self.schema = schema
        self.records = records
        self._publishers: list[StatePublisher] = []

    async def publisher(self, record: int = 0) -> StatePublisher:
        """Claim a record, to publish into memory; it begins with the record's last value.

        Raises:
            BusyError: somebody owns it. UsageError: no such record.
            UnsupportedError: no memory is shared here; use ``publish``.
        """
        answer = await self._opened.call(wire.PublishFunction.CLAIM, wire.RECORD.pack(wire.LAYOUT_VERSION, record))
        page = await _take_page(self._opened.device, wire.TICKET.unpack(answer)[0])
        publisher = StatePage.attach(page, self.schema).publisher()
        page.close()
        await self._opened.call(wire.PublishFunction.COMMIT, wire.NUMBER.pack(record))
        self._publishers.append(publisher)
        return publisher

    async def publish(self, record: int, *values: float, **named: float) -> None:
        """Publish by a call, from wherever this guest is; claims the record at the first one. Fields left out are 0.

        Raises:
            BusyError: somebody owns it. UsageError: no such record or field.
        """
        data = self.schema.codec.pack(*values, **named)
        await self._opened.call(wire.PublishFunction.PUBLISH, wire.NUMBER.pack(record) + data)

    async def remove(self) -> None:
        """Give every record up."""
        for publisher in self._publishers:
            publisher.close()
        await self._opened.close()


class StateSampleDriver:
    """Drives ``state-sample``."""

    abi_type = wire.SAMPLE_TYPE

    async def probe(self, device: ProxyDevice) -> StateSamples:
        """Open it, and map the roll where memory can be shared."""
        opened = await device.open(wire.VERSION)
        records, schema = _described(await opened.call(wire.SampleFunction.SCHEMA))
        try:
            answer = await opened.call(wire.SampleFunction.ROLL, wire.NUMBER.pack(wire.LAYOUT_VERSION))
            roll = await _take_page(device, wire.TICKET.unpack(answer)[0])
        except UnsupportedError:
            roll = None
        return StateSamples(opened, schema, records, roll)


class StateSamples:
    """Where a guest samples records.

    Attributes:
        schema: of every record.
        records: how many there are.
        is_mapped: whether samplers read memory here; else use ``sample``.
    """

    def __init__(self, opened: OpenDevice, schema: Schema, records: int, roll: Page | None) -> None:
        self._opened = opened
        self.schema = schema
        self.records = records
        self._roll = roll
        self._samplers: dict[int, StateSampler] = {}
        self._loop = asyncio.get_running_loop()
        self._moves: set[asyncio.Task[None]] = set()

    @property
    def is_mapped(self) -> bool:
        """Whether samplers read memory here."""
        return self._roll is not None

    async def sampler(self, record: int = 0) -> StateSampler:
        """A sampler of a record, which follows it from owner to owner; the same one each time.

        Raises:
            UsageError: no such record. UnsupportedError: no memory is shared here; use ``sample``.
        """
        if self._roll is None:
            raise UnsupportedError("no memory of this device is shared here; sample by calls", record=record)
        if record not in self._samplers:

            def on_moved(_generation: int) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the guest
                    self._loop.call_soon_threadsafe(self._moved, record)

            sampler = StateSampler(self.schema.codec, self.schema.make_sample, self._roll, record, on_moved)
            self._samplers[record] = sampler
            await self._find(record)
        return self._samplers[record]

    async def sample(self, record: int = 0) -> Any:  # noqa: ANN401 - the schema's own class
        """The latest value by a call, from wherever this guest is; None if there is none.

        Raises:
            UsageError: no such record. BusyError: it changed during every look.
        """
        answer = await self._opened.call(wire.SampleFunction.SAMPLE, wire.NUMBER.pack(record))
        word, published_ns = wire.SAMPLED.unpack_from(answer)
        value = answer[wire.SAMPLED.size :]
        if not value:
            return None
        return self.schema.make_sample((*self.schema.codec.unpack(value), published_ns, bool(word & 1)))

    async def remove(self) -> None:
        """Let go of every page."""
        for move in self._moves:
            move.cancel()
        for sampler in self._samplers.values():
            sampler.close()
        self._samplers.clear()  # each calls back into this object, which no collector sees
        if self._roll is not None:
            self._roll.close()
        await self._opened.close()

    def _moved(self, record: int) -> None:
        move = self._loop.create_task(self._follow(record))
        self._moves.add(move)
        move.add_done_callback(self._moves.discard)

    async def _follow(self, record: int) -> None:
        with contextlib.suppress(VbnetError):  # the device is gone: the sampler keeps the last value
            await self._find(record)

    async def _find(self, record: int) -> None:
        answer = await self._opened.call(wire.SampleFunction.MAP, wire.RECORD.pack(wire.LAYOUT_VERSION, record))
        generation, ticket = wire.MAPPED.unpack(answer)
        if not generation:
            return
        page = await _take_page(self._opened.device, ticket)
        sampler = self._samplers.get(record)
        if sampler is not None:
            sampler.move_to(page, self.schema.number, generation)
        page.close()


def _described(answer: bytes) -> tuple[int, Schema]:
    return wire.NUMBER.unpack_from(answer)[0], Schema(answer[wire.NUMBER.size :].decode())


async def _take_page(device: ProxyDevice, ticket: int) -> Page:
    fd = await device.take_fd(ticket)
    try:
        return Page.open(fd)
    finally:
        os.close(fd)

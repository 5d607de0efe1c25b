"""The host half of state.

    record ── generation 1: page, frozen ── owner gone
           └─ generation 2: page, frozen ── owner          roll: word of each record = generation, is somebody there

Who writes what: the roll, the host alone; a page, the one guest that mapped it before it was frozen, or the host when
values come by calls. Each claim gets a page of its own, begun with the last value, so that no earlier owner who kept
its mapping can write where a later one publishes, and no owner of one record where another's is. The danger: a guest
that seals its page against being frozen; its claim ends. A claim ends with its connection, however that ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from vbnet.devices.state import metrics, wire
from vbnet.errors import BusyError, ExistsError, PeerFault, UnsupportedError, UsageError
from vbnet.hostnode.device import (
    Attribute,
    AttributeTable,
    Connection,
    Device,
    DeviceClass,
    HostServices,
    Interface,
    Opener,
)
from vbnet.sharedmem import Page, Schema, StatePage, StatePublisher, StateRoll, StateSampler

__all__ = ["StateClass", "StateDevice"]

_SWITCH = {"on": True, "off": False}
_MAX_NOW_BYTES = 16 * 1024


class StateClass(DeviceClass):
    """Devices whose records hold the latest value."""

    name = "state"
    abi_types = (wire.PUBLISH_TYPE, wire.SAMPLE_TYPE)

    def create(self, services: HostServices, name: str) -> StateDevice:
        """Make one; memory is made by the first claim."""
        services.log.debug("state_created", device=name)
        return StateDevice(services, name)


class _Attributes(AttributeTable):
    """Shows the latest values whenever it is asked."""

    def __init__(self, device: StateDevice, on_change: Callable[[str, object], None]) -> None:
        super().__init__(
            (
                Attribute(
                    "schema",
                    "fields of a record, name:type, separated by spaces",
                    parse=Schema,
                    default=Schema("value:u64"),
                    is_locked_while_open=True,
                ),
                Attribute(
                    "records",
                    f"how many, 1 to {wire.MAX_RECORDS}",
                    parse=_parse_records,
                    default=1,
                    is_locked_while_open=True,
                ),
                Attribute(
                    "memory",
                    "on: guests of this machine share memory; off: everybody calls",
                    parse=_parse_switch,
                    default=True,
                    format=lambda is_on: "on" if is_on else "off",
                    is_locked_while_open=True,
                ),
                Attribute("claims", "records claimed so far", parse=int, default=0, is_read_only=True),
                Attribute("calls", "values published or sampled by calls", parse=int, default=0, is_read_only=True),
                Attribute("busy", "calls that found no quiet moment", parse=int, default=0, is_read_only=True),
                Attribute("faults", "claims ended for a fault", parse=int, default=0, is_read_only=True),
                Attribute("now", "latest values, as JSON", parse=str, default="[]", is_read_only=True),
            ),
            on_change,
        )
        self._device = device

    def texts(self) -> dict[str, str]:
        """Every attribute as the operator sees it, with the values of this moment."""
        self.publish("now", self._device.now())
        return super().texts()


@dataclass(slots=True)
class _Record:
    generation: int = 0
    page: StatePage | None = None
    owner: PublishConnection | None = None
    is_owned: bool = False  # only once its owner committed
    sampler: StateSampler | None = None


class StateDevice(Device):
    """One state device; its records outlive their publishers and end with it, or with another schema.

    Args:
        services: its clock tells how old a value is.
        name: of the device, for what it counts.
    """

    def __init__(self, services: HostServices, name: str) -> None:
        self._services = services
        self._counts = services.row(metrics.STATE, device=name)
        self._records: list[_Record] = []
        self._roll: StateRoll | None = None
        self._roll_page: Page | None = None
        self.attributes = _Attributes(self, lambda _name, _value: self._forget())
        self._counts.set("records", self.attributes["records"])

    @property
    def schema(self) -> Schema:
        """What the values mean."""
        schema: Schema = self.attributes["schema"]
        return schema

    def plug(self, bus: str) -> Sequence[Interface]:
        """Show both interfaces, on any number of buses."""
        del bus
        return [PublishInterface(self), SampleInterface(self)]

    def release(self) -> None:
        """Let go of all pages; who mapped one keeps it until it closes."""
        self._forget()
        self._counts.close()

    def _forget(self) -> None:
        self._counts.set("records", self.attributes["records"])
        self._counts.set("claimed", 0)
        for record in self._records:
            if record.sampler is not None:
                record.sampler.close()
            if record.page is not None:
                record.page.memory.close()
        self._records = []
        if self._roll_page is not None:
            self._roll_page.close()
        self._roll = self._roll_page = None

    def count(self, name: str) -> None:
        """One more of what the read-only attribute ``name`` counts."""
        self.attributes.publish(name, self.attributes[name] + 1)
        self._counts.add(name)

    def need_memory(self, opener: Opener) -> None:
        """Raise UnsupportedError unless this opener shares memory here."""
        if not self.attributes["memory"]:
            raise UnsupportedError("this device's memory is switched off; publish and sample by calls", memory="off")
        if opener.is_remote:
            raise UnsupportedError("shared memory needs the host's machine; publish and sample by calls")

    def describe(self) -> bytes:
        """The answer to SCHEMA."""
        return wire.NUMBER.pack(self.attributes["records"]) + self.schema.text.encode()

    # ---- records ---------------------------------------------------------------------------------------------------

    def record(self, number: int) -> _Record:
        """A record by its number; raises UsageError."""
        if not 0 <= number < self.attributes["records"]:
            raise UsageError(f"there is no record {number}; there are {self.attributes['records']}", record=number)
        while len(self._records) <= number:
            self._records.append(_Record())
        return self._records[number]

    def roll_page(self) -> Page:
        """The roll's memory, frozen."""
        if self._roll_page is None:
            count = self.attributes["records"]
            page = Page.create(StateRoll.bytes(count), "vbnet-state-roll")
            self._roll = StateRoll(page, count)
            page.freeze()
            self._roll_page = page
            for number, record in enumerate(self._records):
                self._enter(number, record)
        return self._roll_page

    def claim(self, number: int, owner: PublishConnection) -> StatePage:
        """Give a record to ``owner``: a page with its last value, not yet seen by samplers.

        Raises:
            UsageError: no such record. BusyError: it has an owner. ResourceError: no memory.
        """
        record = self.record(number)
        if record.owner is not None:
            whose = "this opener" if record.owner is owner else f"guest {record.owner.guest!r}"
            raise BusyError(f"record {number} is {whose}'s", record=number, owner=record.owner.guest)
        page = StatePage.create(self.schema)
        latest = None if record.sampler is None else record.sampler.sample_raw()
        if latest is not None:
            value, published_ns, _ = latest
            publisher = page.publisher()
            publisher.publish_raw(value, published_ns)
            publisher.close()
        record.owner = owner
        self.count("claims")
        return page

    def commit(self, number: int, page: StatePage) -> None:
        """Let samplers see a claimed record's page.

        Raises:
            PeerFault: its owner kept it from being frozen.
        """
        assert isinstance(page.memory, Page)  # noqa: S101 - as claim made it
        page.memory.freeze()
        record = self.record(number)
        sampler = page.sampler()
        if record.page is not None:
            record.page.memory.close()
        if record.sampler is not None:
            record.sampler.close()
        record.page, record.sampler = page, sampler
        record.generation += 1
        record.is_owned = True
        self._counts.shift("claimed", 1)
        self._enter(number, record)

    def leave(self, number: int) -> None:
        """A record's owner is gone; the last value stays."""
        record = self.record(number)
        if record.is_owned:
            self._counts.shift("claimed", -1)
        record.owner, record.is_owned = None, False
        self._enter(number, record)

    def sample(self, number: int) -> tuple[bytes, int] | None:
        """A record's latest value and its moment, None if there is none.

        Raises:
            UsageError: no such record. BusyError: it changed during every look.
        """
        sampler = self.record(number).sampler
        if sampler is None:
            return None
        try:
            found = sampler.sample_raw()
        except BusyError:
            self.count("busy")
            raise
        return None if found is None else found[:2]

    def now(self) -> str:
        """Every record that has a value, as JSON; cut short when it becomes long."""
        rows: list[bytes] = []
        for number, record in enumerate(self._records):
            row = msgspec.json.encode(self._row(number, record))
            if sum(map(len, rows)) + len(row) > _MAX_NOW_BYTES:
                break
            rows.append(row)
        return (b"[" + b",".join(rows) + b"]").decode()

    def _row(self, number: int, record: _Record) -> dict[str, object]:
        row: dict[str, object] = {
            "record": number,
            "generation": record.generation,
            "owner": None if record.owner is None else record.owner.guest,
            "age_ms": None,
            "values": None,
        }
        try:
            found = self.sample(number)
        except BusyError:
            return row
        if found is not None:
            value, published_ns = found
            row["age_ms"] = (self._services.clock.now_ns() - published_ns) / 1e6
            row["values"] = dict(zip(self.schema.names, self.schema.codec.unpack(value), strict=True))
        return row

    def _enter(self, number: int, record: _Record) -> None:
        if self._roll is not None and record.generation:
            self._roll.enter(number, record.generation, record.is_owned)


class SampleInterface(Interface):
    """``sample0``: any number of openers."""

    name = "sample0"
    abi_type = wire.SAMPLE_TYPE
    versions = (wire.VERSION,)
    exclusive = False

    def __init__(self, device: StateDevice) -> None:
        self._device = device

    def connect(self, opener: Opener, version: int) -> Connection:
        """Let anyone in, from anywhere."""
        del version
        return SampleConnection(self._device, opener)


class SampleConnection(Connection):
    """One opener of ``sample0``."""

    def __init__(self, device: StateDevice, opener: Opener) -> None:
        self._device = device
        self._opener = opener

    def call(self, function: int, data: bytes) -> bytes:
        """Answer SCHEMA, ROLL, MAP, SAMPLE."""
        device = self._device
        match function:
            case wire.SampleFunction.SCHEMA:
                return device.describe()
            case wire.SampleFunction.ROLL:
                _check_version(*_numbers(data, 1))
                device.need_memory(self._opener)
                return wire.TICKET.pack(self._opener.lend_fd(device.roll_page().fileno()))
            case wire.SampleFunction.MAP:
                version, number = _numbers(data, 2)
                _check_version(version)
                device.need_memory(self._opener)
                return self._map(device.record(number))
            case wire.SampleFunction.SAMPLE:
                return self._sample(*_numbers(data, 1))
            case _:
                raise UsageError(f"state-sample has no function {function}", function=function)

    def close(self) -> None:
        """Nothing is held."""

    def _map(self, record: _Record) -> bytes:
        if record.page is None:
            return wire.MAPPED.pack(0, 0)
        return wire.MAPPED.pack(record.generation, self._opener.lend_fd(record.page.memory.fileno()))

    def _sample(self, number: int) -> bytes:
        found = self._device.sample(number)
        self._device.count("calls")
        record = self._device.record(number)
        word = record.generation << 1 | record.is_owned
        value, published_ns = found if found is not None else (b"", 0)
        return wire.SAMPLED.pack(word, published_ns) + value


class PublishInterface(Interface):
    """``publish0``: any number of openers, each with records of its own."""

    name = "publish0"
    abi_type = wire.PUBLISH_TYPE
    versions = (wire.VERSION,)
    exclusive = False

    def __init__(self, device: StateDevice) -> None:
        self._device = device

    def connect(self, opener: Opener, version: int) -> Connection:
        """Let anyone in, from anywhere."""
        del version
        return PublishConnection(self._device, opener)


@dataclass(slots=True)
class _Claim:
    page: StatePage
    is_committed: bool = False
    publisher: StatePublisher | None = None


class PublishConnection(Connection):
    """One opener of ``publish0`` and the records it claimed."""

    def __init__(self, device: StateDevice, opener: Opener) -> None:
        self._device = device
        self._opener = opener
        self._claims: dict[int, _Claim] = {}

    @property
    def guest(self) -> str:
        """Whose connection this is."""
        return self._opener.guest

    def call(self, function: int, data: bytes) -> bytes:
        """Answer SCHEMA, CLAIM, COMMIT, PUBLISH."""
        match function:
            case wire.PublishFunction.SCHEMA:
                return self._device.describe()
            case wire.PublishFunction.CLAIM:
                version, number = _numbers(data, 2)
                _check_version(version)
                self._device.need_memory(self._opener)
                return self._claim(number)
            case wire.PublishFunction.COMMIT:
                self._commit(*_numbers(data, 1))
                return b""
            case wire.PublishFunction.PUBLISH:
                self._publish(data)
                return b""
            case _:
                raise UsageError(f"state-publish has no function {function}", function=function)

    def close(self) -> None:
        """Give every record up."""
        for number in list(self._claims):
            self._give_up(number)

    def _claim(self, number: int) -> bytes:
        page = self._device.claim(number, self)
        self._claims[number] = _Claim(page)
        try:
            return wire.TICKET.pack(self._opener.lend_fd(page.memory.fileno()))
        except BaseException:
            self._give_up(number)
            raise

    def _commit(self, number: int) -> None:
        claim = self._claims.get(number)
        if claim is None:
            raise UsageError(f"record {number} was not claimed here", record=number)
        if claim.is_committed:
            raise ExistsError(f"record {number} is committed already", record=number)
        try:
            self._device.commit(number, claim.page)
        except PeerFault as fault:
            self._give_up(number)
            self._device.count("faults")
            self._opener.fault(fault)
            raise
        claim.is_committed = True

    def _publish(self, data: bytes) -> None:
        length = wire.NUMBER.size + self._device.schema.value_bytes
        if len(data) != length:
            raise UsageError(f"PUBLISH takes {length} bytes, got {len(data)}", got=len(data))
        [number] = wire.NUMBER.unpack_from(data)
        claim = self._claims.get(number)
        if claim is None:
            page = self._device.claim(number, self)
            claim = self._claims[number] = _Claim(page)
            claim.publisher = page.publisher()
            self._device.commit(number, page)
            claim.is_committed = True
        if claim.publisher is None:
            raise BusyError(f"record {number} is published in memory by this opener", record=number)
        claim.publisher.publish_raw(data[wire.NUMBER.size :])
        self._device.count("calls")

    def _give_up(self, number: int) -> None:
        claim = self._claims.pop(number)
        if claim.publisher is not None:
            claim.publisher.close()
        if not claim.is_committed:
            claim.page.memory.close()
        self._device.leave(number)


def _numbers(data: bytes, count: int) -> tuple[int, ...]:
    if len(data) != count * wire.NUMBER.size:
        raise UsageError(f"this function takes {count * wire.NUMBER.size} bytes, got {len(data)}", got=len(data))
    return tuple(number for (number,) in wire.NUMBER.iter_unpack(data))


def _check_version(version: int) -> None:
    if version != wire.LAYOUT_VERSION:
        raise UsageError(
            f"state layout {version} is not spoken here, only {wire.LAYOUT_VERSION}",
            got=version,
            limit=wire.LAYOUT_VERSION,
        )


def _parse_records(text: str) -> int:
    count = int(text)
    if not 1 <= count <= wire.MAX_RECORDS:
        raise ValueError(f"must be 1..{wire.MAX_RECORDS}")
    return count


def _parse_switch(text: str) -> bool:
    try:
        return _SWITCH[text]
    except KeyError:
        raise ValueError("must be on or off") from None

"""The host half of sched: an operator's limits, and the guests that take part; the work is done by a native thread.

What a guest publishes is read, checked and applied by that thread alone, which also waits for the guest's doorbell.
Here are the rare things: a page is shown, a limit changes, a guest leaves. Everything that was applied is put back
before ``close`` returns, so a thread is never left with what nobody answers for.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from vbnet._native import SCHED_CLASSES, SCHED_COUNTERS, SchedCoordinator
from vbnet.devices.sched import wire
from vbnet.errors import ExistsError, UnsupportedError, VbnetError
from vbnet.hostnode.device import (
    Attribute,
    AttributeTable,
    Connection,
    Device,
    DeviceClass,
    HostServices,
    Interface,
    Opener,
    SharedRegion,
)
from vbnet.hostnode.rows import label_text
from vbnet.hostnode.values import flag, flag_text, within

__all__ = ["SchedClass", "SchedDevice"]

_MISSING: Final = {
    "realtime": "realtime (no CAP_SYS_NICE)",
    "deadline": "deadline (no CAP_SYS_NICE, or no bandwidth left)",
    "nice": "nice, idle (no CAP_SYS_NICE: there would be no way back)",
    "slice": "slice (the kernel is older than 6.12)",
    "weight": "weight of control groups (version 2 has no cpu controller here)",
}


class SchedClass(DeviceClass):
    """Scheduler coordinators: one device serves every guest on the buses it is plugged into."""

    name = "sched"
    abi_types = (wire.ABI_TYPE,)

    def create(self, services: HostServices, name: str) -> SchedDevice:
        """Make one; it finds out at once what this host can do, by trying."""
        return SchedDevice(services, name)


class _LiveTable(AttributeTable):
    """Attributes of which some are asked for when somebody looks."""

    def __init__(
        self, declared: Sequence[Attribute[Any]], on_change: Callable[[str, Any], None], refresh: Callable[[], None]
    ) -> None:
        super().__init__(declared, on_change)
        self._refresh = refresh

    def texts(self) -> dict[str, str]:
        """Every attribute as the operator sees it, as of now."""
        self._refresh()
        return super().texts()


class SchedDevice(Device):
    """One coordinator.

    Args:
        services: of the host.
        name: of the device, also the label of its counters.
    """

    def __init__(self, services: HostServices, name: str) -> None:
        self.services = services
        self.name = name
        self._coordinator: SchedCoordinator | None = None
        self._users = 0
        self._past = [0] * len(SCHED_COUNTERS)
        trial = SchedCoordinator()
        abilities = trial.abilities()
        trial.close()
        cannot = "; ".join(text for ability, text in _MISSING.items() if not abilities[ability]) or "-"
        self.attributes = _LiveTable(
            (
                Attribute("enabled", "0 puts everything back", flag, default=True, format=flag_text),
                Attribute("highest", f"highest class of a guest: {', '.join(SCHED_CLASSES)}", _class, "deadline"),
                Attribute("rt_priority", "highest realtime priority of a guest, 1..40", within(1, 40), 40),
                Attribute("rt_threads", "realtime threads of all guests together, 0..1024", within(0, 1024), 4),
                Attribute(
                    "rt_share", "‰ of a processor a realtime thread may use, and deadlines of all", within(1, 950), 500
                ),
                Attribute("nice_min", "least nice value of a guest, -20..0", within(-20, 0), -15),
                Attribute("boost_from", "signals of this priority boost, 0..7; 8: none", within(0, 8), 6),
                Attribute("boost_ms", "longest boost that the guest does not end, ms", within(1, 1000), 20),
                Attribute("rate", "transitions of one guest acted on a second", within(1, 100_000), 2000),
                Attribute("cannot", "what this host cannot do", str, cannot, is_read_only=True),
                Attribute("threads", "every thread in hand or refused, as JSON", str, "[]", is_read_only=True),
                Attribute("counts", "what was counted, as JSON; zeroes left out", str, "{}", is_read_only=True),
            ),
            self._changed,
            self._look,
        )
        services.log.info("sched_created", device=name, cannot=cannot)
        services.publish("sched.created", device=name, cannot=cannot)

    def plug(self, bus: str) -> Sequence[Interface]:
        """Show ``sched0`` on any number of buses."""
        del bus
        return [SchedInterface(self)]

    def release(self) -> None:
        """Put everything back and end the thread, whoever still uses it."""
        self._stop()

    def take(self) -> SchedCoordinator:
        """The coordinator for one more guest; its thread starts with the first."""
        if self._coordinator is None:
            self._coordinator = SchedCoordinator(self.services.counters, label_text({"device": self.name}))
            self._limit({})
        self._users += 1
        return self._coordinator

    def give_back(self) -> None:
        """One guest fewer; the thread ends with the last."""
        self._users -= 1
        if self._users == 0:
            self._stop()

    def _stop(self) -> None:
        coordinator, self._coordinator = self._coordinator, None
        if coordinator is not None:
            self._past = self._counts(coordinator)
            coordinator.close()

    def _counts(self, coordinator: SchedCoordinator) -> list[int]:
        return [past + count for past, count in zip(self._past, coordinator.counts(), strict=True)]

    def _changed(self, name: str, value: object) -> None:
        self._limit({name: value})

    def _limit(self, changed: dict[str, object]) -> None:
        values = {name: self.attributes[name] for name in _LIMITS} | changed
        limits: dict[str, Any] = {_LIMITS[name]: value for name, value in values.items()}
        if self._coordinator is not None:
            self._coordinator.limit(**limits)

    def _look(self) -> None:
        coordinator = self._coordinator
        threads = [] if coordinator is None else coordinator.threads()
        counts = self._past if coordinator is None else self._counts(coordinator)
        counted = {name: count for name, count in zip(SCHED_COUNTERS, counts, strict=True) if count}
        self.attributes.publish("threads", json.dumps(threads))
        self.attributes.publish("counts", json.dumps(counted))


class SchedInterface(Interface):
    """``sched0``: any number of guests of this machine."""

    name = "sched0"
    abi_type = wire.ABI_TYPE
    versions = (wire.VERSION,)
    exclusive = False

    def __init__(self, device: SchedDevice) -> None:
        self._device = device

    def connect(self, opener: Opener, version: int) -> Connection:
        """Let a guest of this machine in; only here there are threads to schedule."""
        del version
        if opener.is_remote:
            raise UnsupportedError("threads of another machine are not this host's to schedule", guest=opener.guest)
        return SchedConnection(self._device, opener)


class SchedConnection(Connection):
    """One guest's use: a page, shown once."""

    def __init__(self, device: SchedDevice, opener: Opener) -> None:
        self._device = device
        self._coordinator = device.take()
        self._signals = device.services.signals
        self._opener = opener
        self._member: int | None = None

    @property
    def member(self) -> int | None:
        """The guest's number at the coordinator, once it showed its page."""
        return self._member

    def call(self, function: int, data: bytes) -> bytes:
        """Tell what this host can do."""
        if function != wire.Function.ABILITIES or data:
            return super().call(function, data)
        abilities = self._coordinator.abilities()
        return bytes([sum(1 << bit for bit, name in enumerate(wire.ABILITIES) if abilities[name])])

    def shm(self, region: SharedRegion) -> None:
        """Take the page into use."""
        if region.id != wire.PAGE_REGION:
            return super().shm(region)
        if self._member is not None:
            raise ExistsError("the page was shared before; close the device to share it anew")
        signal = region.signal_at(wire.SIGNAL_OFFSET)
        opener = self._opener
        place = (region.offset, region.length)
        with opener.blamed():
            self._member = self._coordinator.join(opener.guest, opener.pid, region.ram, place, signal.kick_fd)
        with contextlib.suppress(ExistsError):  # another coordinator's: this one schedules without signals
            self._signals.boost(opener.guest, self._coordinator, self._member)
        return None

    def close(self) -> None:
        """Put back what the guest's threads had; when this returns the page is not looked at any more."""
        member, self._member = self._member, None
        if member is not None:
            self._signals.boost_no_more(self._opener.guest, self._coordinator)
            with contextlib.suppress(VbnetError):  # the coordinator may have ended first, and has put everything back
                self._coordinator.leave(member)
        self._device.give_back()


_LIMITS: Final = {
    "enabled": "enabled",
    "highest": "highest",
    "rt_priority": "rt_priority",
    "rt_threads": "rt_threads",
    "rt_share": "rt_share_permille",
    "nice_min": "nice_min",
    "boost_from": "boost_from",
    "boost_ms": "boost_ms",
    "rate": "rate",
}


def _class(text: str) -> str:
    if text not in SCHED_CLASSES:
        raise ValueError(f"one of {', '.join(SCHED_CLASSES)}")
    return text

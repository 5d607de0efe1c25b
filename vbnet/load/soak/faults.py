"""The faults: how each is done to a running lab, undone, and known to be over.

A fault never waits without a deadline, and whatever it did is undone when the run ends in the middle of it: a stopped
guest goes on, an interface is plugged in again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from vbnet.bus.operator import Operator
from vbnet.cluster.lab import Lab
from vbnet.cluster.plan import NIC_MODEL, GuestPlan, NicPlan
from vbnet.cluster.process import Identity, send_signal
from vbnet.errors import DeadlineError, VbnetError
from vbnet.load.soak.schedule import Fault

__all__ = ["KINDS", "REFUSED", "FaultKind", "Faults", "Need", "has_rings"]

_LOOK_S: Final = 0.02
_SLOW_STOPPED_S, _SLOW_RUNS_S = 0.04, 0.01
"""Of a slow guest's time: it runs a fifth of it."""

SIGNAL: Final = "soak.routed"
"""The signal that is led elsewhere."""

SPARE: Final = "soak-spare"
"""How the device begins that is plugged and unplugged beside those in use."""


class Need:
    """What a guest must be for a fault."""

    ANY = "any"
    RESTARTS_ON_FAILURE = "restarts when it fails"
    RESTARTS_ALWAYS = "restarts whenever it ends"
    RINGS = "has an interface with rings"
    NO_GUEST = "no guest"


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One kind of fault.

    Attributes:
        meaning: one clause for people.
        need: what its targets must be, of :class:`Need`.
        lasts: whether it takes time; else its `for` is not used.
        restarts: whether a new process takes the target's place.
        changes_ports: whether ports come and go.
    """

    meaning: str
    need: str
    lasts: bool = True
    restarts: bool = False
    changes_ports: bool = False


KINDS: Final[Mapping[str, FaultKind]] = {
    "kill": FaultKind(
        "the guest's process is killed (SIGKILL) and started again by its lab",
        Need.RESTARTS_ON_FAILURE,
        lasts=False,
        restarts=True,
        changes_ports=True,
    ),
    "restart": FaultKind(
        "the guest is asked to end (SIGTERM) and started again by its lab",
        Need.RESTARTS_ALWAYS,
        lasts=False,
        restarts=True,
        changes_ports=True,
    ),
    "stop": FaultKind("the guest's process is stopped (SIGSTOP), and goes on (SIGCONT)", Need.ANY),
    "slow": FaultKind("the guest runs a fifth of the time: a slow consumer", Need.ANY),
    "link-down": FaultKind("the carrier of the guest's first interface goes away, and comes back", Need.RINGS),
    "unplug": FaultKind(
        "the guest's first interface is unplugged, and plugged in again", Need.RINGS, changes_ports=True
    ),
    "hot-plug": FaultKind("another interface is plugged into the guest's bus, and unplugged", Need.RINGS),
    "reroute": FaultKind("a signal is led to another eventfd while it is raised", Need.NO_GUEST),
}
"""By name; those of a guest hit one guest at a time."""

REFUSED: Final[Mapping[str, str]] = {
    "host-restart": "a lab ends when its host node does: guests do not outlive it to be joined again (see the roadmap)",
}
"""What a profile may ask for, and why it cannot be had."""


class _Undo(Protocol):
    def __call__(self) -> Awaitable[None]:
        """Undo what a fault did; harmless when the lab is gone."""


class Faults:
    """Does faults to one running lab.

    Args:
        lab: brought up.
        operator: connected to its host node.
        recover_s: how long a fault may take to be over, from when it was undone.
    """

    def __init__(self, lab: Lab, operator: Operator, recover_s: float) -> None:
        self._lab, self._operator, self._recover_s = lab, operator, recover_s
        self._guests: Mapping[str, GuestPlan] = {guest.name: guest for guest in lab.plan.guests}
        self._kinds = {guest.name: process.kind for process in lab.plan.processes for guest in process.guests}
        self._does: Mapping[str, Callable[[Fault], Awaitable[None]]] = {
            "kill": self._kill,
            "restart": self._restart,
            "stop": self._stop,
            "slow": self._slow,
            "link-down": self._link_down,
            "unplug": self._unplug,
            "hot-plug": self._hot_plug,
            "reroute": self._reroute,
        }

    async def do(self, fault: Fault) -> float:
        """Do one fault, undo it, and wait until what it broke works again; the seconds from its end to then.

        Raises:
            DeadlineError: it was not over in time. VbnetError: the host node refused, or ended.
        """
        began = time.monotonic()
        await self._does[fault.kind](fault)
        return max(0.0, time.monotonic() - began - fault.for_s)

    # ---- processes ------------------------------------------------------------------------------------------------

    async def _kill(self, fault: Fault) -> None:
        await self._replaced(fault, signal.SIGKILL)

    async def _restart(self, fault: Fault) -> None:
        await self._replaced(fault, signal.SIGTERM)

    async def _replaced(self, fault: Fault, number: int) -> None:
        before = self._identity(fault.target)
        if before is not None:
            send_signal(before, number)

        def is_anew() -> bool:
            now = self._identity(fault.target)
            return now not in (None, before) and self._lab.state.guests[fault.target].state == "ready"

        await self._until(is_anew, f"guest {fault.target} was not ready again")

    async def _stop(self, fault: Fault) -> None:
        identity = self._identity(fault.target)
        try:
            _tell(identity, signal.SIGSTOP)
            await asyncio.sleep(fault.for_s)
        finally:
            _tell(identity, signal.SIGCONT)

    async def _slow(self, fault: Fault) -> None:
        identity = self._identity(fault.target)
        end = time.monotonic() + fault.for_s
        try:
            while time.monotonic() < end:
                _tell(identity, signal.SIGSTOP)
                await asyncio.sleep(_SLOW_STOPPED_S)
                _tell(identity, signal.SIGCONT)
                await asyncio.sleep(_SLOW_RUNS_S)
        finally:
            _tell(identity, signal.SIGCONT)

    def _identity(self, guest: str) -> Identity | None:
        state = self._lab.state
        return state.processes[state.guests[guest].process].identity

    # ---- devices --------------------------------------------------------------------------------------------------

    async def _link_down(self, fault: Fault) -> None:
        nic = self._nic(fault.target)
        await self._for_a_while(
            fault.for_s,
            lambda: self._operator.device_set(nic.device, "enabled", "0"),
            lambda: self._operator.device_set(nic.device, "enabled", "1"),
        )

    async def _unplug(self, fault: Fault) -> None:
        nic, bus = self._nic(fault.target), self._guests[fault.target].bus
        await self._for_a_while(
            fault.for_s,
            lambda: self._operator.device_unplug(nic.device, bus),
            lambda: self._plugged(nic.device, bus),
        )
        if self._kinds[fault.target] == "traffic":  # of others it is not known whether they open it again
            deadline = time.monotonic() + self._recover_s
            while not (await self._operator.device_get(nic.device)).attributes.get("port", "0").strip("0"):
                if time.monotonic() > deadline:
                    raise DeadlineError(
                        f"guest {fault.target} did not open {nic.device} again within {self._recover_s:g} s"
                    )
                await asyncio.sleep(_LOOK_S)

    async def _plugged(self, device: str, bus: str) -> None:
        await self._operator.device_plug(device, bus)

    async def _hot_plug(self, fault: Fault) -> None:
        name, bus = f"{SPARE}-{fault.target}", self._guests[fault.target].bus
        switch = self._nic(fault.target).switch

        async def plug() -> None:
            await self._operator.device_create(name, NIC_MODEL, {"switch": switch})
            await self._operator.device_plug(name, bus)

        await self._for_a_while(fault.for_s, plug, lambda: self._operator.device_delete(name, force=True))

    def _nic(self, guest: str) -> NicPlan:
        return next(nic for nic in self._guests[guest].nics if has_rings(self._kinds[guest], nic))

    # ---- signals --------------------------------------------------------------------------------------------------

    async def _reroute(self, fault: Fault) -> None:
        """Each raise is seen where the signal leads at that time, and nowhere else."""
        await self._operator.signal_create(SIGNAL)
        led: list[int] = []
        try:
            end = time.monotonic() + fault.for_s
            while not led or time.monotonic() < end:
                led.append(await self._operator.signal_export(SIGNAL))
                await self._operator.signal_raise(SIGNAL)
                await self._until(lambda: _was_raised(led[-1]), "a raised signal was not seen where it leads")
                if any(_was_raised(fd) for fd in led[:-1]):
                    raise DeadlineError(f"signal {SIGNAL} was seen where it did not lead any more")
                while len(led) > 1:
                    os.close(led.pop(0))
        finally:
            for fd in led:
                os.close(fd)
            with suppress(VbnetError):
                await self._operator.signal_destroy(SIGNAL)

    # ---- waiting --------------------------------------------------------------------------------------------------

    async def _for_a_while(self, seconds: float, do: _Undo, undo: _Undo) -> None:
        await do()
        try:
            await asyncio.sleep(seconds)
        finally:
            with suppress(VbnetError):  # what is wrong with the lab is told by whoever waits for it
                await undo()

    async def _until(self, is_so: Callable[[], bool], what_not: str) -> None:
        deadline = time.monotonic() + self._recover_s
        while not is_so():
            if time.monotonic() > deadline:
                raise DeadlineError(f"{what_not} within {self._recover_s:g} s")
            await asyncio.sleep(_LOOK_S)


def has_rings(kind: str, nic: NicPlan) -> bool:
    """Say whether an interface of a guest of this kind is one that a host shares rings with: a venet one."""
    return kind != "netns" and (nic.model or NIC_MODEL) == NIC_MODEL


def _tell(identity: Identity | None, number: int) -> None:
    if identity is not None:
        send_signal(identity, number)


def _was_raised(fd: int) -> bool:
    """Take what an eventfd says; whether it was anything."""
    try:
        return os.read(fd, 8) != b""
    except BlockingIOError:
        return False

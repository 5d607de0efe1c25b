"""The lab in which all subjects are up at once, and are measured one after the other.

    switch "venet":  venet-sender · venet-receiver · venet-asker · venet-replier · venet-idle-0 ...
    switch "e1000":  e1000-sender · ...

One host node with one worker serves all; the guests of a subject that is not measured sleep, and their ports are
parked. Host node and guests have a core each, as in ``vbnet bench``. A mechanism is switched off just before a
measurement, and on again after it. A guest that ends takes its model out; the others go on.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import msgspec

from vbnet.bus.operator import Operator
from vbnet.bus.rundir import RunDir
from vbnet.cluster.lab import Lab, LabEvent
from vbnet.cluster.plan import make_plan
from vbnet.cluster.topology import nic_models, parse_topology
from vbnet.errors import VbnetError
from vbnet.load import orders
from vbnet.load.bakeoff.contest import Contest
from vbnet.load.bakeoff.figures import figures
from vbnet.load.bakeoff.subjects import BASE, Subject
from vbnet.load.bakeoff.usage import Usage, read_usage
from vbnet.load.bakeoff.workloads import ROLES, URGENT, Workload
from vbnet.load.bench.machine import Cores
from vbnet.load.counting import Counter, Counts, Latency
from vbnet.load.traffic import ENTRY
from vbnet.telemetry import read_counted
from vbnet.telemetry.catalogue import installed

__all__ = ["Arena", "Broken", "lab_text"]

NIC: Final = "eth0"
_READY_S: Final = 180.0
_LEAD_S: Final = 0.05
"""From the orders to the first frame: whoever sends has heard of it by then."""

_WARM_SHARE: Final = 0.2
"""Of a measurement's length, how long it runs before it counts."""

_STILL_S: Final = 0.02
_SETTLE_S: Final = 2.0
_REPLY_TIMEOUT_S: Final = 1.0
_GONE: Final = {"ended", "failed", "given-up", "restarting"}


class Broken(Exception):  # noqa: N818 - a subject's end, carried to where it is written down
    """A subject cannot go on: one of its guests, or the host node, has ended."""


class _Reading(msgspec.Struct, frozen=True):
    """What had been counted at a moment: of those who are told, of all that arrived, and of the machine."""

    moment: float
    counts: Counts
    latency: Latency
    arrived: int
    usage: Usage
    traps: int


def lab_text(contest: Contest, *, name: str, has_idle: bool) -> str:
    """Return the lab file of a contest.

    Args:
        contest: which models.
        name: of the lab.
        has_idle: whether each model has its idle cards too.
    """
    lines = [f"name: {name}", "switches:", *(f"  {model}:" for model in contest.models), "guests:"]
    for index, model in enumerate(contest.models):
        nic = f"switch: {model}, model: {model}"
        if contest.trap_cost is not None and nic_models()[model].has_traps:
            nic += f", trap-cost: {contest.trap_cost}"
        lines += [f"  {model}-{role}: {{kind: traffic, nics: [{{{nic}}}]}}" for role in ROLES]
        if has_idle:
            place = f"ip: 10.{64 + index}.0.1/16"
            lines.append(f"  {model}-idle: {{kind: stack, count: {contest.idle_devices}, nics: [{{{nic}, {place}}}]}}")
    return "\n".join(lines) + "\n"


class Arena:
    """A lab of all models. Use it as an async context manager.

    Args:
        contest: who takes part.
        has_idle: whether each model has its idle cards too.
        cores: for the host node (far) and its guests (near); None: wherever the kernel puts them.
        root: the folder that holds run directories; the user's usual place by default.
        watch: told of every step of the lab.

    Attributes:
        gone: of each model whose guests ended, why.
    """

    def __init__(
        self,
        contest: Contest,
        *,
        has_idle: bool,
        cores: Cores | None,
        watch: Callable[[LabEvent], None],
        root: Path | None = None,
    ) -> None:
        name = f"bakeoff-{os.getpid()}"
        plan = make_plan(parse_topology(lab_text(contest, name=name, has_idle=has_idle)))
        self.gone: dict[str, str] = {}
        self._contest = contest
        self._has_idle = has_idle
        self._cores = cores
        self._watch = watch
        self._lab = Lab(plan, root=root, watch=self._saw, entries=ENTRY)
        self._run_dir = RunDir.for_node(plan.lab, root)
        self._macs = {guest.name: guest.nics[0].mac for guest in plan.guests}
        self._devices = {guest.name: guest.nics[0].device for guest in plan.guests}
        self._counter = Counter(
            {
                f"{model}-{role}": self._run_dir.process_counters(f"{model}-{role}")
                for model in contest.models
                for role in ROLES
            }
        )
        self._operator: Operator | None = None
        self._stream = 0

    async def __aenter__(self) -> Self:
        await self._lab.up(_READY_S)
        try:
            self._operator = await Operator.connect(self._run_dir.path)
            await self._set_urgency()
            self._pin()
            for model in self._contest.models:
                self._order(f"{model}-replier", orders.Reflect())
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._operator is not None:
            with suppress(VbnetError):
                await self._operator.close()
        await self._lab.down()

    @property
    def lab(self) -> Lab:
        """What runs."""
        return self._lab

    async def measure(self, subject: Subject, workload: Workload, seconds: float) -> dict[str, float]:
        """Put one subject through one workload.

        Raises:
            Broken: it has ended, or ends meanwhile.
        """
        guests = {role: f"{subject.model}-{role}" for role in workload.roles}
        self._check(subject.model)
        saved = await self._switch_off(subject)
        try:
            return await self._measured(subject, workload, guests, seconds)
        finally:
            await self._set(saved)

    async def _measured(
        self, subject: Subject, workload: Workload, guests: Mapping[str, str], seconds: float
    ) -> dict[str, float]:
        await self._settled(guests.values())
        self._stream += 2
        at_s = time.monotonic() + _LEAD_S
        warm_s = seconds * _WARM_SHARE
        self._give_orders(subject, workload, guests, at_s, warm_s + seconds)
        await self._until(subject.model, at_s + warm_s)
        first = self._look(workload, guests)
        await self._until(subject.model, at_s + warm_s + seconds)
        last = self._look(workload, guests)
        for role in ("sender", "asker"):
            if role in guests:
                self._order(guests[role], orders.Stop())
        await self._settled(guests.values())
        return figures(
            counts=last.counts - first.counts,
            latency=last.latency.since(first.latency),
            usage=last.usage.since(first.usage),
            traps=last.traps - first.traps,
            arrived=last.arrived - first.arrived,
            seconds=last.moment - first.moment,
        )

    def _give_orders(
        self, subject: Subject, workload: Workload, guests: Mapping[str, str], at_s: float, seconds: float
    ) -> None:
        manner = subject.without.manner if subject.without is not None else orders.Manner()
        if workload.flood is not None:
            self._order(guests["receiver"], orders.Listen(manner=manner))
            send = orders.Send(
                to=(self._macs[guests["receiver"]],),
                stream=self._stream,
                at_s=at_s,
                for_s=seconds,
                size=workload.flood,
                schedule=orders.Schedule("flood"),
                manner=manner,
            )
            self._order(guests["sender"], send)
        if workload.has_requests:
            ask = orders.Ask(
                to=self._macs[guests["replier"]],
                stream=self._stream + 1,
                at_s=at_s,
                for_s=seconds,
                size=64,
                window=1,
                timeout_s=_REPLY_TIMEOUT_S,
            )
            self._order(guests["asker"], ask)

    # ---- looking --------------------------------------------------------------------------------------------------

    def _look(self, workload: Workload, guests: Mapping[str, str]) -> _Reading:
        usage = read_usage(self._pids(guests.values()))
        moment = self._counter.look()
        told = [guests[workload.counted]]
        arriving = [guests[role] for role in ("receiver", "asker") if role in guests]
        sending = self._counter.total([guests["sender"]] if workload.counted == "receiver" else told)
        received = self._counter.total(told)
        return _Reading(
            moment=moment,
            counts=msgspec.structs.replace(received, sent=sending.sent),
            latency=self._counter.latency(told),
            arrived=self._counter.total(arriving).received,
            usage=usage,
            traps=self._traps(guests.values()),
        )

    def _pids(self, guests: Iterable[str]) -> list[int]:
        state = self._lab.state
        slots = [state.host, *(state.processes[name] for name in guests)]
        return [slot.identity.pid for slot in slots if slot is not None and slot.identity is not None]

    def _traps(self, guests: Iterable[str]) -> int:
        devices = {self._devices[name] for name in guests}
        try:
            counted = read_counted(self._run_dir.counters)
        except VbnetError:
            return 0
        return sum(
            block.values.get(name, 0)
            for block in counted
            if block.labels.get("device") in devices
            for name in _trap_counters().get(block.kind, ())
        )

    async def _settled(self, guests: Iterable[str]) -> None:
        """Wait until nothing has arrived at these for a moment."""
        names = list(guests)
        end = time.monotonic() + _SETTLE_S
        before = None
        while time.monotonic() < end:
            self._counter.look()
            now = self._counter.total(names)
            if now == before:
                return
            before = now
            await asyncio.sleep(_STILL_S)

    async def _until(self, model: str, moment: float) -> None:
        """Wait until then, or until a guest of the model ends."""
        while (left := moment - time.monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._lab.changed(), left)
            self._check(model)

    def _check(self, model: str) -> None:
        if (why := self.gone.get(model) or self.gone.get("")) is not None:
            raise Broken(why)

    def _saw(self, event: LabEvent) -> None:
        if event.step == "guest" and event.state in _GONE:
            model = next((name for name in self._contest.models if event.subject.rpartition("-")[0] == name), None)
            if model is not None:
                said = f": {event.detail}" if event.detail else ""
                self.gone.setdefault(model, f"guest {event.subject} {event.state}{said}")
        if event.step == "host" and event.state in _GONE:
            self.gone.setdefault("", f"the host node {event.state}")
        self._watch(event)

    # ---- changing -------------------------------------------------------------------------------------------------

    def _order(self, guest: str, order: orders.Order) -> None:
        self._lab.order(guest, msgspec.json.encode(order))

    async def _set_urgency(self) -> None:
        await self._set({(self._devices[f"{BASE}-{role}"], "priority"): str(URGENT[role]) for role in ROLES})

    async def _switch_off(self, subject: Subject) -> dict[tuple[str, str], str]:
        """Switch a subject's mechanism off; what was set before."""
        if subject.without is None or not subject.without.off or self._operator is None:
            return {}
        names = [f"{subject.model}-{role}" for role in ROLES]
        if self._has_idle:
            names += [f"{subject.model}-idle-{number}" for number in range(self._contest.idle_devices)]
        saved = {}
        for name in names:
            attributes = (await self._operator.device_get(self._devices[name])).attributes
            saved.update({(self._devices[name], key): attributes[key] for key in subject.without.off})
        await self._set({place: subject.without.off[place[1]] for place in saved})
        return saved

    async def _set(self, values: Mapping[tuple[str, str], str]) -> None:
        if self._operator is None:
            return
        for (device, attribute), value in values.items():
            await self._operator.device_set(device, attribute, value)

    def _pin(self) -> None:
        """Give the host node one core and the guests the other."""
        if self._cores is None:
            return
        state = self._lab.state
        for slot, core in [
            (state.host, self._cores.far),
            *((slot, self._cores.near) for slot in state.processes.values()),
        ]:
            if slot is not None and slot.identity is not None:
                for thread in _threads(slot.identity.pid):
                    with suppress(OSError):
                        os.sched_setaffinity(thread, {core})


def _threads(pid: int) -> list[int]:
    try:
        return [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []


@functools.cache
def _trap_counters() -> Mapping[str, list[str]]:
    """Of each kind of block, which of its counters are traps: those that are told as ``..._traps_total``."""
    return {
        block.kind: [name for name, metric in block.values.items() if metric.name.endswith("_traps_total")]
        for block in installed().metrics.blocks.values()
    }

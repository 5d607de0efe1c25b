"""A soak: load in windows, faults between them as planned, everything counted at each rest.

    lab up → warm-up → [ calm window → rest → window with a fault → rest ]* → lab down → verdicts

At a rest nothing is under way, so that counters can be compared to the frame (``conserve.py``); load begins anew
after it, and a fault hits guests under load all the same. What a window found is written before the next begins. A
soak can therefore be gone on with after anything: the window that was cut short is done again.

A guest that was started again, or got its interface back, takes up its part of the load in the same window, and a fault
is over only when it does.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from vbnet.bus.operator import Operator
from vbnet.cluster.lab import HOST, READY_TIMEOUT_S, LabEvent
from vbnet.cluster.link import link_exists
from vbnet.cluster.process import marked_processes
from vbnet.errors import DeadlineError, VbnetError
from vbnet.load.bench.machine import describe
from vbnet.load.counting import Counts
from vbnet.load.result import Outcome, figures
from vbnet.load.soak import conserve, verdicts
from vbnet.load.soak.conserve import Balance, Rest
from vbnet.load.soak.faults import KINDS, Faults
from vbnet.load.soak.figures import ProcessFigures, figures_of
from vbnet.load.soak.profile import SoakPlan
from vbnet.load.soak.result import Finding, Mark, SoakResult, SoakSample, Window
from vbnet.load.soak.schedule import Fault
from vbnet.load.told import RunFigures
from vbnet.load.traffic import LEAD_S, Sampler, Traffic

__all__ = ["Past", "SoakRun", "Watcher"]

_BEFORE_S: Final = 0.3
"""How long load flows before a fault."""
_AFTER_S: Final = 0.3
"""And behind it, once everybody takes part again."""
_SHORTEST_S: Final = 0.2
"""No window is shorter."""
_ENDLESS_S: Final = 3600.0
"""Load of a window with a fault is stopped when the fault is over."""
_LOOK_S: Final = 0.05
_STILL_S: Final = 0.5
"""Nothing was counted for so long: at rest, where counters cannot tell."""
_REST_S: Final = 10.0
"""How long everything may take to be at rest; what does not add up then never will."""
_ALONE_S: Final = 5.0
"""How long the last processes of a lab that is down may take to vanish."""
_FIGURES_MOST: Final = 2000
"""How often processes are looked at in a whole soak, at most."""
_NEARLY: Final = 0.8
"""Of an interval: one that came a little early counts as one."""
_FINDINGS_MOST: Final = 100


class Watcher(Protocol):
    """Told of a soak as it goes."""

    def lab(self, event: LabEvent) -> None:
        """One step of the lab's life."""

    def sample(self, sample: SoakSample) -> None:
        """One interval has passed."""

    def fault(self, mark: Mark) -> None:
        """A fault is being done."""

    def window(self, window: Window) -> None:
        """A window is over."""


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """What a soak did before it stopped: all that is needed to go on.

    Attributes:
        began: when its first part did, as ISO 8601.
        windows, samples: as they were written.
    """

    began: str = ""
    windows: list[Window] = []
    samples: list[SoakSample] = []

    @property
    def parts(self) -> int:
        """How often it was begun or gone on with."""
        return 1 + max((window.part for window in self.windows), default=-1)

    @property
    def elapsed_s(self) -> float:
        """How far it came."""
        return max((window.end_s for window in self.windows), default=0.0)

    @property
    def faults_done(self) -> int:
        """How many faults were done to their end."""
        return sum(window.mark is not None and not window.is_cut for window in self.windows)


class _Broken(Exception):  # noqa: N818 - the end of a run, carried to where its result is made
    """The lab cannot go on."""


class SoakRun:
    """One run of a soak, or of the rest of one.

    Args:
        plan: the checked profile, with its schedule.
        watch: told of everything as it happens.
        past: what was done before.
        root: the folder that holds run directories; the user's usual place by default.
        stop: set when the user wants it to end; what was measured until then is kept.
    """

    def __init__(
        self,
        plan: SoakPlan,
        *,
        watch: Watcher,
        past: Past | None = None,
        root: Path | None = None,
        stop: asyncio.Event | None = None,
    ) -> None:
        self._plan, self._watch = plan, watch
        self._past = past or Past()
        self._stop = stop or asyncio.Event()
        self._descriptors = _own_descriptors()
        self._traffic = Traffic(plan.load, root=root, watch=self._saw)
        self._lab = self._traffic.lab
        self._part = self._past.parts
        self._start_s = time.monotonic()
        self._windows = list(self._past.windows)
        self._samples = list(self._past.samples)
        self._todo = list(plan.schedule[self._past.faults_done :])
        self._found: list[Finding] = []
        self._figures_due_s = 0.0
        self._fault: Fault | None = None
        self._faults: Faults | None = None
        self._back: set[str] = set()
        self._broken = ""
        self._told: RunFigures
        self.is_measuring = False

    async def run(self) -> SoakResult:
        """Run it, and take the lab down whatever happens.

        Raises:
            VbnetError: the lab did not come up; nothing was measured.
        """
        plan = self._plan
        began = self._past.began or _now()
        await self._lab.up(READY_TIMEOUT_S)
        instance, taps = self._lab.state.instance, list(self._lab.state.taps)
        self._told = RunFigures(self._traffic.run_dir, "soak", plan.profile.name, plan.total_s, len(plan.schedule))
        outcome = Outcome(state="broken", detail="by a bug of the soak itself")
        try:
            async with await Operator.connect(self._lab.folder) as operator:
                self._faults = Faults(self._lab, operator, plan.recover_s)
                self._start_s = time.monotonic()
                self.is_measuring = True
                self._lab.publish(
                    "soak.began",
                    profile=plan.profile.name,
                    seed=plan.seed,
                    elapsed_s=round(self._past.elapsed_s, 3),
                    planned_s=plan.total_s,
                    faults=len(plan.schedule),
                )
                outcome = await self._soak()
                self._lab.publish(
                    "soak.ended", profile=plan.profile.name, outcome=outcome.state, findings=len(self._findings())
                )
                self._told.ended()
        finally:
            elapsed_s = self._now_s()
            await self._lab.down()
            self._told.close()
            self._traffic.counter.close()
        for said in await self._left_behind(instance, taps):
            self._found.append(Finding(what="left-behind", detail=said, at_s=round(elapsed_s, 3)))
        return self._result(began, outcome, elapsed_s)

    # ---- windows --------------------------------------------------------------------------------------------------

    async def _soak(self) -> Outcome:
        plan = self._plan
        self._traffic.reflect()
        watching = asyncio.ensure_future(self._lab.run())
        try:
            while not self._stop.is_set() and (left_s := plan.total_s - self._now_s()) >= _SHORTEST_S:
                due_s = self._todo[0].at_s - self._now_s() if self._todo else left_s
                if self._todo and due_s < _SHORTEST_S:
                    await self._window(watching, self._todo.pop(0), 0.0)
                else:
                    warm_s = plan.warm_up_s - (self._now_s() - self._past.elapsed_s)
                    ends_s = [plan.rest_s, due_s, left_s, *([warm_s] if warm_s >= _SHORTEST_S else [])]
                    await self._window(watching, None, min(ends_s))
        except _Broken as error:
            return Outcome(state="broken", detail=str(error))
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError, VbnetError):
                await watching
        if self._stop.is_set():
            return Outcome(state="interrupted", detail="by the user")
        return Outcome(state="finished")

    async def _window(self, watching: asyncio.Future[int], fault: Fault | None, seconds: float) -> None:
        """Send for a while, with a fault or without, rest, and judge what was counted."""
        traffic, begin_s = self._traffic, self._now_s()
        traffic.counter.look()
        before, latency = self._counted(), traffic.counter.latency()
        rest = conserve.rest_of(traffic.run_dir)
        self._back.clear()
        number = sum(window.part == self._part for window in self._windows)
        kind = (
            "fault"
            if fault is not None
            else "warm-up"
            if begin_s - self._past.elapsed_s < self._plan.warm_up_s
            else "calm"
        )
        at_s = traffic.begin(seconds or _ENDLESS_S)
        sampler = Sampler(traffic, at_s, _sum(before), latency, offset_s=at_s - self._start_s + self._past.elapsed_s)
        doing = asyncio.ensure_future(self._do(fault) if fault is not None else asyncio.sleep(LEAD_S + seconds))
        self._fault = fault
        due_s = at_s + self._plan.interval_s
        mark: Mark | None = None
        try:
            while not doing.done() and not self._stop.is_set() and not watching.done() and not self._broken:
                await self._look(due_s, doing, watching)
                if time.monotonic() >= due_s:
                    due_s += self._plan.interval_s
                    self._sample(sampler, number, kind)
            is_cut = not doing.done()
        finally:
            doing.cancel()
            with suppress(asyncio.CancelledError, DeadlineError, VbnetError):
                mark = await doing
        sent_s = time.monotonic() - at_s
        if seconds == 0.0 or is_cut:
            traffic.stop()
        if fault is not None and not is_cut and mark is None:
            mark = Mark(fault=fault, at_s=round(begin_s, 3), clock=_now())
            self._find("recovery", f"fault {fault.number} ({fault.kind} of {fault.target}): {_why(doing)}")
            self._broken = self._broken or f"fault {fault.number} was not over in time"
        balance = await self._rested(rest, before, kind, is_whole=not is_cut)
        self._sample(sampler, number, kind)
        self._fault = None
        counts = _sum(self._counted()) - _sum(before)
        latency = traffic.counter.latency().since(latency)
        lost = max(0, counts.sent - counts.received)
        self._judge(kind, counts, lost, balance, is_cut=is_cut)
        window = Window(
            part=self._part,
            number=number,
            kind=kind,
            begin_s=round(begin_s, 3),
            end_s=round(self._now_s(), 3),
            seconds=round(sent_s, 3),
            counts=counts,
            lost=lost,
            dropped=balance.dropped,
            figures=figures(counts, latency, sent_s, is_recorded=False) if counts.sent else {},
            mark=mark,
            findings=self._found,
            unjudged=balance.unjudged,
            is_cut=is_cut,
        )
        self._found = []
        self._windows.append(window)
        self._watch.window(window)
        if self._broken or watching.done():
            raise _Broken(self._broken or _why(watching))

    async def _do(self, fault: Fault) -> Mark:
        """Do a fault under load, and wait until those whom it hit take part again."""
        assert self._faults is not None  # noqa: S101 -- made when the lab was up
        await asyncio.sleep(LEAD_S + _BEFORE_S)
        mark = Mark(fault=fault, at_s=round(self._now_s(), 3), clock=_now())
        self._watch.fault(mark)
        self._told.fault(fault.kind)
        name = self._plan.profile.name
        self._lab.publish("soak.fault", profile=name, **_of(fault), for_s=fault.for_s)
        after_s = await self._faults.do(fault)
        again_s = time.monotonic()
        if KINDS[fault.kind].changes_ports and fault.target in self._traffic.used:
            self._traffic.rejoin(fault.target)
        await self._takes_part(fault.target)
        after_s = round(after_s + time.monotonic() - again_s, 3)
        self._lab.publish("soak.recovered", profile=name, **_of(fault), after_s=after_s)
        await asyncio.sleep(_AFTER_S)
        return msgspec.structs.replace(mark, after_s=after_s)

    async def _takes_part(self, guest: str) -> None:
        """Wait until a guest that is under load sends, and gets what is for it."""
        load, counter = self._plan.load, self._traffic.counter
        watched: list[tuple[str, str]] = []
        if guest in load.senders:
            watched.append((guest, "sent"))
        if guest in load.receivers:
            watched.append((guest, "received"))
        if guest in load.reflectors:
            watched += [(name, "received") for name, sender in load.senders.items() if guest in sender.to][:1]
        counter.look()
        before = {place: getattr(counter.total([place[0]]), place[1]) for place in watched}
        deadline = time.monotonic() + self._plan.recover_s
        while any(getattr(counter.total([name]), figure) <= count for (name, figure), count in before.items()):
            if time.monotonic() > deadline:
                raise DeadlineError(f"guest {guest} did not take part again within {self._plan.recover_s:g} s")
            await asyncio.sleep(_LOOK_S)
            counter.look()

    async def _look(self, until_s: float, *ends: asyncio.Future[Any]) -> None:
        """Wait until a moment, or until something ends; counters are read meanwhile, before they are taken away."""
        await asyncio.sleep(0)
        stopping: asyncio.Future[Any] = asyncio.ensure_future(self._stop.wait())
        try:
            while (left := until_s - time.monotonic()) > 0 and not self._broken:
                pause = min(left, _LOOK_S) if self._fault is not None else left
                done, _ = await asyncio.wait({*ends, stopping}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                self._traffic.counter.look()
                if done:
                    return
        finally:
            stopping.cancel()

    def _sample(self, sampler: Sampler, window: int, kind: str) -> None:
        moment = self._traffic.counter.look()
        processes: dict[str, ProcessFigures] = {}
        if moment >= self._figures_due_s:
            self._figures_due_s = moment + max(_NEARLY * self._plan.interval_s, self._plan.total_s / _FIGURES_MOST)
            processes = self._processes()
        taken = msgspec.structs.asdict(sampler.take(moment))
        sample = SoakSample(**taken, part=self._part, window=window, kind=kind, processes=processes)
        self._samples.append(sample)
        self._told.went_on(sample.at_s)
        self._watch.sample(sample)

    def _processes(self) -> dict[str, ProcessFigures]:
        state = self._lab.state
        known = {HOST: state.host, **state.processes}
        found = {name: figures_of(process.identity) for name, process in known.items() if process is not None}
        return {name: figures for name, figures in found.items() if figures is not None}

    # ---- rests ----------------------------------------------------------------------------------------------------

    async def _rested(self, before: Rest, counted: dict[str, Counts], kind: str, *, is_whole: bool) -> Balance:
        """Wait until nothing is under way, and compare what was counted with the rest before."""
        deadline = time.monotonic() + _REST_S
        still_s, last = time.monotonic(), (-1, -1)
        while True:
            await asyncio.sleep(_LOOK_S)
            self._traffic.counter.look()
            counts = _sum(self._counted()) - _sum(counted)
            if last != (counts.sent, counts.received):
                still_s, last = time.monotonic(), (counts.sent, counts.received)
            balance = self._balance(before, counted)
            quiet_s = time.monotonic() - still_s
            adds_up = not balance.broken and not balance.unjudged and counts.sent - counts.received == _gone(balance)
            if adds_up and kind != "fault" and is_whole and quiet_s >= 2 * _LOOK_S:
                return balance
            if quiet_s >= _STILL_S and (not balance.broken or await self._do_others_send(balance)):
                return balance
            if time.monotonic() > deadline:
                return balance

    async def _do_others_send(self, balance: Balance) -> bool:
        """Say of what does not add up that it cannot be compared, if guests that are not under load go on sending."""
        before = conserve.rest_of(self._traffic.run_dir)
        await asyncio.sleep(_STILL_S)
        busy = conserve.senders(before, conserve.rest_of(self._traffic.run_dir))
        if busy:
            balance.unjudged.update(dict.fromkeys(busy, "others send while the load rests"))
            balance.broken.clear()
        return bool(busy)

    def _balance(self, before: Rest, counted: dict[str, Counts]) -> Balance:
        load = self._plan.load
        after = conserve.rest_of(self._traffic.run_dir)
        now = self._counted()
        asks = {name for name, sender in load.senders.items() if sender.flow.ask is not None}
        steps = {name: now[name] - counted[name] for name in now if name not in load.reflectors}
        return conserve.balance(
            before, after, {name: (step, None if name in asks else step) for name, step in steps.items()}
        )

    def _counted(self) -> dict[str, Counts]:
        return {name: self._traffic.counter.total([name]) for name in sorted(self._traffic.used)}

    def _judge(self, kind: str, counts: Counts, lost: int, balance: Balance, *, is_cut: bool) -> None:
        for what in ("corrupted", "duplicates"):
            if count := getattr(counts, what):
                self._find(what, f"{count} frames in a window of kind {kind}")
        if counts.misdelivered > balance.flooded:
            self._find(
                "misdelivered", f"{counts.misdelivered} frames, and flooding made {balance.flooded} copies at most"
            )
        if is_cut or kind == "warm-up":
            return
        if kind == "calm" and lost > self._plan.loss * counts.sent:
            said = ", ".join(f"{count} {name}" for name, count in sorted(balance.dropped.items())) or "none was dropped"
            self._find("lost", f"{lost} of {counts.sent} frames without a fault ({said})")
        for said in balance.broken:
            self._find("conservation", said)

    def _find(self, what: str, detail: str) -> None:
        self._found.append(Finding(what=what, detail=detail, at_s=round(self._now_s(), 3)))
        self._lab.publish("soak.finding", profile=self._plan.profile.name, what=what, detail=detail)
        self._told.found(what)

    async def _left_behind(self, instance: str, taps: list[str]) -> list[str]:
        """What is there that should not be, once the lab is down."""
        deadline = time.monotonic() + _ALONE_S
        while found := self._leftovers(instance, taps):
            if time.monotonic() > deadline:
                return found
            await asyncio.sleep(_LOOK_S)
        return []

    def _leftovers(self, instance: str, taps: list[str]) -> list[str]:
        found = [f"process {identity.pid} of the lab is there" for identity in marked_processes(instance)]
        found += [f"interface {tap} is there" for tap in taps if link_exists(tap)]
        if self._lab.folder.exists():
            found.append(f"{self._lab.folder} is there")
        more = _own_descriptors() - self._descriptors
        if more > 0:
            found.append(f"this process has {more} descriptors more than before")
        return found

    # ---- the lab --------------------------------------------------------------------------------------------------

    def _saw(self, event: LabEvent) -> None:
        self._watch.lab(event)
        if event.step != "guest" or not self.is_measuring:
            return
        is_asked = self._fault is not None and KINDS[self._fault.kind].restarts and event.subject == self._fault.target
        if event.state in {"ended", "failed", "given-up"}:
            self._broken = self._broken or f"guest {event.subject} {event.state} ({event.detail})"
        if event.state in {"ended", "failed", "given-up", "restarting"} and not is_asked:
            self._find("unasked", f"guest {event.subject} {event.state} ({event.detail})")
            self._back.add(event.subject)
        elif event.state == "ready" and event.subject in self._back:
            # Only once the lab has told it to go does it listen to orders.
            asyncio.get_running_loop().call_soon(self._traffic.rejoin, event.subject)

    # ---- the end --------------------------------------------------------------------------------------------------

    def _now_s(self) -> float:
        """Seconds of the soak's clock, which stands still while nobody soaks."""
        return self._past.elapsed_s + time.monotonic() - self._start_s

    def _findings(self) -> list[Finding]:
        return [finding for window in self._windows for finding in window.findings] + self._found

    def _result(self, began: str, outcome: Outcome, elapsed_s: float) -> SoakResult:
        findings = self._findings()
        whole = [(window.part, window.number) for window in self._windows]
        return SoakResult(
            profile=self._plan.settings(),
            seed=self._plan.seed,
            began=began,
            ended=_now(),
            vbnet=metadata.version("vbnet"),
            machine=describe(),
            outcome=outcome,
            parts=self._part + 1,
            planned_s=self._plan.total_s,
            elapsed_s=round(elapsed_s, 3),
            planned_faults=len(self._plan.schedule),
            invariants=verdicts.invariants(findings),
            drifts=verdicts.drifts(self._plan, self._samples, whole),
            thresholds=verdicts.thresholds(self._plan.load.thresholds, self._windows),
            findings=findings[:_FINDINGS_MOST],
            windows=self._windows,
            samples=self._samples,
        )


def _sum(counted: dict[str, Counts]) -> Counts:
    total = Counts()
    for counts in counted.values():
        total = total + counts
    return total


def _gone(balance: Balance) -> int:
    return sum(balance.dropped.values())


def _of(fault: Fault) -> dict[str, object]:
    """A fault as events name it."""
    return {"number": fault.number, "kind": fault.kind, "target": fault.target}


def _own_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- names only, as cheap as can be


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _why(ended: asyncio.Future[Any]) -> str:
    """What ended something that should have gone on."""
    if ended.cancelled():
        return "it was called off"
    error = ended.exception()
    return str(error) if error is not None else "every guest has ended"

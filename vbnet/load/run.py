"""A load run: its lab is brought up, its guests are told what to do, and what they count is written down as it happens.

    lab up → reflectors reflect → warm-up → all arrived → baseline → load, one sample an interval → all arrived → result

The warm-up is a run of its own, so that what is measured begins with nothing under way: sent, received and lost add up
to the frame. Senders begin at one moment. A guest that ends ends the run, with a result of what was measured so far, as
does the user; only a run that has measured nothing has no result.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final, Protocol

import msgspec

from vbnet.bus.rundir import RunDir
from vbnet.cluster.lab import READY_TIMEOUT_S, Lab, LabEvent
from vbnet.cluster.plan import Plan, make_plan
from vbnet.cluster.quantity import duration_s
from vbnet.errors import VbnetError
from vbnet.load import orders
from vbnet.load.bench.machine import describe
from vbnet.load.counting import Counter, Counts, Latency
from vbnet.load.limit import Search
from vbnet.load.profile import LoadPlan, Sender, settings
from vbnet.load.result import GuestResult, Outcome, Result, Sample, Trial, figures, judge

__all__ = ["LoadRun", "Watcher"]

ENTRY: Final = {"traffic": "vbnet.load.guest:run"}
_LEAD_S: Final = 0.1
"""From the order to the first frame: every sender has heard of it by then."""

_SETTLE_S: Final = 3.0
_STILL_S: Final = 0.1
"""Nothing arrived for so long: nothing is under way any more."""


class Watcher(Protocol):
    """Told of a run as it goes."""

    def lab(self, event: LabEvent) -> None:
        """One step of the lab's life."""

    def sample(self, sample: Sample) -> None:
        """One interval has passed."""

    def trial(self, trial: Trial) -> None:
        """One step of a search has been done."""


class _Broken(Exception):  # noqa: N818 - the end of a run, carried to where its result is made
    """Somebody that the run needs has ended."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What had been counted at a moment."""

    moment: float
    counts: Counts
    latency: Latency


class LoadRun:
    """One run of a profile.

    Args:
        plan: the checked profile.
        root: the folder that holds run directories; the user's usual place by default.
        watch: told of everything as it happens.
        stop: set when the user wants it to end; the result is of what was measured until then.
    """

    def __init__(
        self,
        plan: LoadPlan,
        *,
        watch: Watcher,
        root: Path | None = None,
        stop: asyncio.Event | None = None,
    ) -> None:
        self._plan = plan
        self._watch = watch
        self._stop = stop or asyncio.Event()
        self._lab_plan: Plan = make_plan(plan.lab)
        self._lab = Lab(self._lab_plan, root=root, watch=self._saw, entries=ENTRY)
        self._macs = {guest.name: guest.nics[0].mac for guest in self._lab_plan.guests if guest.nics}
        used = {*plan.senders, *plan.reflectors, *plan.receivers}
        run_dir = RunDir.for_node(self._lab_plan.lab, root)
        self._counter = Counter(
            {
                guest.name: run_dir.process_counters(process.name)
                for process in self._lab_plan.processes
                for guest in process.guests
                if guest.name in used
            }
        )
        self._used = used
        self.is_measuring = False
        self._ended = ""
        self._is_recorded = any(sender.flow.replay is not None for sender in plan.senders.values())
        self._phase = 0
        self._samples: list[Sample] = []
        self._trials: list[Trial] = []

    async def run(self) -> Result:
        """Run it, and take the lab down whatever happens.

        Raises:
            VbnetError: the lab did not come up; nothing was measured.
        """
        began = datetime.now(UTC).isoformat(timespec="seconds")
        await self._lab.up(READY_TIMEOUT_S)
        try:
            self.is_measuring = True
            self._lab.publish("load.began", profile=self._plan.profile.name)
            result = await self._measure(began)
            self._lab.publish("load.ended", profile=self._plan.profile.name, outcome=result.outcome.state)
            return result
        finally:
            await self._lab.down()

    # ---- what is measured -----------------------------------------------------------------------------------------

    async def _measure(self, began: str) -> Result:
        profile = self._plan.profile
        for name in sorted(self._plan.reflectors):
            self._order(name, orders.Reflect())
        base, latency, start = Counts(), Latency(), time.monotonic()
        outcome, limit = Outcome(state="finished"), None
        seconds = 0.0
        try:
            await self._send(duration_s(profile.warm_up), None)
            await self._settled()
            if profile.find_limit is not None:
                search = Search(profile.find_limit, self._plan.thresholds)
                limit = await self._search(search)
            start = self._counter.look()
            base, latency = self._counter.total(), self._counter.latency()
            for_s = duration_s(profile.for_)
            if profile.find_limit is not None:
                for_s = duration_s(profile.find_limit.for_)
            if limit != 0:
                await self._send(for_s, limit, on_look=self._sampler(base, latency, start))
            seconds = for_s
        except _Broken as error:
            outcome = Outcome(state="broken", detail=str(error))
        if self._stop.is_set() and outcome.state == "finished":
            outcome = Outcome(state="interrupted", detail="by the user")
        if outcome.state != "finished":
            seconds = max(0.0, time.monotonic() - start - _LEAD_S)
            self._order_all(orders.Stop())
        await self._settled()
        counts = self._counter.total() - base
        latency = self._counter.latency().since(latency)
        found = figures(counts, latency, seconds, is_recorded=self._is_recorded) if counts.sent else {}
        return Result(
            profile=settings(profile),
            began=began,
            vbnet=metadata.version("vbnet"),
            machine=describe(),
            outcome=outcome,
            seconds=round(seconds, 3),
            figures=found,
            guests=list(self._guests()),
            samples=self._samples,
            verdicts=judge(self._plan.thresholds, found),
            limit=limit,
            trials=self._trials,
        )

    async def _search(self, search: Search) -> float:
        """Find the highest rate that passes; 0: not even the lowest does."""
        while (rate := search.next_rate()) is not None and not self._stop.is_set():
            self._counter.look()
            base, latency = self._counter.total(), self._counter.latency()
            await self._send(search.seconds, rate)
            await self._settled()
            counts = self._counter.total() - base
            found = figures(
                counts, self._counter.latency().since(latency), search.seconds, is_recorded=self._is_recorded
            )
            trial = search.judge(rate, len(self._plan.senders), counts, found)
            self._trials.append(trial)
            self._watch.trial(trial)
        return search.best

    async def _send(self, seconds: float, rate: float | None, on_look: Callable[[float], None] | None = None) -> None:
        """Have every sender send for so long, and look once an interval."""
        self._phase += 1
        for name in sorted(
            self._plan.receivers - {name for name, sender in self._plan.senders.items() if sender.flow.ask}
        ):
            self._order(name, orders.Listen())
        at_s = time.monotonic() + _LEAD_S
        for index, (name, sender) in enumerate(self._plan.senders.items()):
            self._order(name, self._sending(index, sender, at_s, seconds, rate))
        interval_s = duration_s(self._plan.profile.interval)
        end = at_s + seconds
        due = at_s
        while time.monotonic() < end:
            due += interval_s
            await self._pause(max(0.0, min(due, end) - time.monotonic()))
            if self._stop.is_set():
                return
            if on_look is not None:
                on_look(self._counter.look())

    def _sending(self, index: int, sender: Sender, at_s: float, seconds: float, rate: float | None) -> orders.Order:
        flow = sender.flow
        stream = self._phase << 16 | index
        to = tuple(self._macs[name] for name in sender.to)
        if flow.ask is not None:
            timeout_s = duration_s(flow.ask.timeout)
            return orders.Ask(to[0], stream, at_s, seconds, flow.size, flow.ask.window, timeout_s)
        replay = None
        if flow.replay is not None:
            replay = orders.Replay(str(self._plan.folder / flow.replay.file), flow.replay.speed)
        schedule = orders.schedule_of(flow, self._plan.profile.seed * 1009 + stream, rate)
        return orders.Send(to, stream, at_s, seconds, flow.size, schedule, replay)

    def _sampler(self, base: Counts, latency: Latency, start: float) -> Callable[[float], None]:
        """What is done once an interval: the difference to the look before becomes a sample."""
        last = _Look(start + _LEAD_S, base, latency)

        def look(moment: float) -> None:
            nonlocal last
            now = _Look(moment, self._counter.total(), self._counter.latency())
            step, whole = now.counts - last.counts, now.counts - base
            sample = Sample(
                at_s=round(moment - start - _LEAD_S, 3),
                seconds=round(moment - last.moment, 3),
                sent=step.sent,
                received=self._arrived(step),
                received_bytes=step.received_bytes,
                under_way=whole.sent - self._arrived(whole),
                reordered=step.reordered,
                corrupted=step.corrupted,
                latency_ns=now.latency.since(last.latency).percentiles_ns(),
            )
            last = now
            self._samples.append(sample)
            self._watch.sample(sample)

        return look

    def _arrived(self, counts: Counts) -> int:
        """Frames that arrived; those of a capture are foreign to a sink."""
        return counts.received + (counts.foreign if self._is_recorded else 0)

    async def _settled(self) -> None:
        """Wait until nothing has arrived for a moment."""
        end = time.monotonic() + _SETTLE_S
        before = None
        while time.monotonic() < end:
            self._counter.look()
            now = self._counter.total()
            if now == before:
                return
            before = now
            await asyncio.sleep(_STILL_S)

    def _guests(self) -> Iterator[GuestResult]:
        for name in sorted(self._used):
            counts, latency = self._counter.total([name]), self._counter.latency([name])
            roles = [
                role
                for role, names in (
                    ("sends", self._plan.senders),
                    ("replies", self._plan.reflectors),
                    ("receives", self._plan.receivers),
                )
                if name in names
            ]
            yield GuestResult(
                name=name,
                role=", ".join(roles),
                sent=counts.sent,
                received=self._arrived(counts),
                latency_ns=latency.percentiles_ns(),
            )

    # ---- the lab --------------------------------------------------------------------------------------------------

    async def _pause(self, seconds: float) -> None:
        """Wait, unless the run is stopped or somebody ends."""
        waiting = [asyncio.ensure_future(self._stop.wait()), asyncio.ensure_future(self._end())]
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        if self._ended:
            raise _Broken(self._ended)

    async def _end(self) -> None:
        """Wait until somebody that the run needs has ended."""
        running = asyncio.ensure_future(self._lab.run())
        try:
            while not self._ended and not running.done():
                changed = asyncio.ensure_future(self._lab.changed())
                await asyncio.wait({running, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError, VbnetError):
                await running
        if not self._ended:
            self._ended = "the host node ended"

    def _saw(self, event: LabEvent) -> None:
        if event.step == "guest" and event.state in {"ended", "failed", "given-up", "restarting"}:
            used = event.subject in self._used
            if used and not self._ended:
                self._ended = f"guest {event.subject} {event.state}" + (f" ({event.detail})" if event.detail else "")
        self._watch.lab(event)

    def _order(self, guest: str, order: orders.Order) -> None:
        self._lab.order(guest, msgspec.json.encode(order))

    def _order_all(self, order: orders.Order) -> None:
        for name in self._plan.senders:
            self._order(name, order)

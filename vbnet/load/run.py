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
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Protocol

from vbnet.cluster.lab import READY_TIMEOUT_S, LabEvent
from vbnet.cluster.quantity import duration_s
from vbnet.errors import VbnetError
from vbnet.load.bench.machine import describe
from vbnet.load.counting import Counts, Latency
from vbnet.load.limit import Search
from vbnet.load.profile import LoadPlan, settings
from vbnet.load.result import GuestResult, Outcome, Result, Sample, Trial, figures, judge
from vbnet.load.told import RunFigures
from vbnet.load.traffic import LEAD_S, Sampler, Traffic

__all__ = ["LoadRun", "Watcher"]


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
        self._traffic = Traffic(plan, root=root, watch=self._saw)
        self._lab, self._counter = self._traffic.lab, self._traffic.counter
        self._told: RunFigures
        self._began_s = time.monotonic()
        self.is_measuring = False
        self._ended = ""
        self._samples: list[Sample] = []
        self._trials: list[Trial] = []

    async def run(self) -> Result:
        """Run it, and take the lab down whatever happens.

        Raises:
            VbnetError: the lab did not come up; nothing was measured.
        """
        began = datetime.now(UTC).isoformat(timespec="seconds")
        profile = self._plan.profile
        await self._lab.up(READY_TIMEOUT_S)
        planned_s = duration_s(profile.warm_up) + duration_s(profile.for_)
        self._told = RunFigures(self._traffic.run_dir, "load", profile.name, planned_s)
        try:
            self._began_s, self.is_measuring = time.monotonic(), True
            self._lab.publish("load.began", profile=profile.name)
            result = await self._measure(began)
            self._lab.publish("load.ended", profile=profile.name, outcome=result.outcome.state)
            self._told.ended()
            return result
        finally:
            await self._lab.down()
            self._told.close()
            self._counter.close()

    # ---- what is measured -----------------------------------------------------------------------------------------

    async def _measure(self, began: str) -> Result:
        profile = self._plan.profile
        self._traffic.reflect()
        base, latency, start = Counts(), Latency(), time.monotonic()
        outcome, limit = Outcome(state="finished"), None
        seconds = 0.0
        try:
            await self._send(duration_s(profile.warm_up), None)
            await self._traffic.settled()
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
            seconds = max(0.0, time.monotonic() - start - LEAD_S)
            self._traffic.stop()
        await self._traffic.settled()
        counts = self._counter.total() - base
        latency = self._counter.latency().since(latency)
        found = figures(counts, latency, seconds, is_recorded=self._traffic.is_recorded) if counts.sent else {}
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
            await self._traffic.settled()
            counts = self._counter.total() - base
            found = figures(
                counts, self._counter.latency().since(latency), search.seconds, is_recorded=self._traffic.is_recorded
            )
            trial = search.judge(rate, len(self._plan.senders), counts, found)
            self._trials.append(trial)
            self._watch.trial(trial)
        return search.best

    async def _send(self, seconds: float, rate: float | None, on_look: Callable[[float], None] | None = None) -> None:
        """Have every sender send for so long, and look once an interval."""
        at_s = self._traffic.begin(seconds, rate)
        interval_s = duration_s(self._plan.profile.interval)
        end = at_s + seconds
        due = at_s
        while time.monotonic() < end:
            due += interval_s
            await self._pause(max(0.0, min(due, end) - time.monotonic()))
            if self._stop.is_set():
                return
            moment = self._counter.look()
            self._told.went_on(moment - self._began_s)
            if on_look is not None:
                on_look(moment)

    def _sampler(self, base: Counts, latency: Latency, start: float) -> Callable[[float], None]:
        """What is done once an interval: the difference to the look before becomes a sample."""
        sampler = Sampler(self._traffic, start + LEAD_S, base, latency)

        def look(moment: float) -> None:
            sample = sampler.take(moment)
            self._samples.append(sample)
            self._watch.sample(sample)

        return look

    def _guests(self) -> Iterator[GuestResult]:
        for name in sorted(self._traffic.used):
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
                received=self._traffic.arrived(counts),
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
            used = event.subject in self._traffic.used
            if used and not self._ended:
                self._ended = f"guest {event.subject} {event.state}" + (f" ({event.detail})" if event.detail else "")
        self._watch.lab(event)

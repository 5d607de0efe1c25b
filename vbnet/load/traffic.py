"""The traffic of a run: a lab brought up for it, its guests told what to do, and what they count added up.

A *phase* is one time of sending. Streams of a phase are numbered anew, so that no frame of one is taken for a frame of
another, and receivers begin to listen anew, so that they never run out of streams.

    begin(seconds) → look() now and then → stop() or the end → settled(): nothing is under way any more
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from vbnet.bus.rundir import RunDir
from vbnet.cluster.lab import Lab, LabEvent
from vbnet.cluster.plan import make_plan
from vbnet.cluster.quantity import duration_s
from vbnet.load import orders
from vbnet.load.counting import Counter, Counts, Latency
from vbnet.load.profile import LoadPlan, Sender
from vbnet.load.result import Sample

__all__ = ["LEAD_S", "Sampler", "Traffic"]

ENTRY: Final = {"traffic": "vbnet.load.guest:run"}
LEAD_S: Final = 0.1
"""From the order to the first frame: every sender has heard of it by then."""

_SETTLE_S: Final = 3.0
_STILL_S: Final = 0.1
"""Nothing arrived for so long: nothing is under way any more."""


class Traffic:
    """Who sends what in a lab, and what was counted of it.

    Args:
        plan: the checked profile.
        root: the folder that holds run directories; the user's usual place by default.
        watch: told of each step of the lab.
    """

    def __init__(self, plan: LoadPlan, *, root: Path | None, watch: Callable[[LabEvent], None]) -> None:
        self.plan = plan
        self.lab_plan = make_plan(plan.lab)
        self.lab = Lab(self.lab_plan, root=root, watch=watch, entries=ENTRY)
        self.run_dir = RunDir.for_node(self.lab_plan.lab, root)
        self.used = frozenset({*plan.senders, *plan.reflectors, *plan.receivers})
        self.counter = Counter(
            {
                guest.name: self.run_dir.process_counters(process.name)
                for process in self.lab_plan.processes
                for guest in process.guests
                if guest.name in self.used
            }
        )
        self.is_recorded = any(sender.flow.replay is not None for sender in plan.senders.values())
        self._macs = {guest.name: guest.nics[0].mac for guest in self.lab_plan.guests if guest.nics}
        self._phase = 0
        self._end_s = 0.0
        self._rate: float | None = None

    def reflect(self) -> None:
        """Have those that send back begin with it."""
        for name in sorted(self.plan.reflectors):
            self.order(name, orders.Reflect())

    def begin(self, seconds: float, rate: float | None = None) -> float:
        """Have every sender send for so long; the moment of the first frame, by the monotonic clock.

        Args:
            seconds: how long.
            rate: frames a second instead of those of an even or random flow.
        """
        self._phase += 1
        for name in sorted(self.plan.receivers - {name for name in self.plan.senders if self._does_ask(name)}):
            self.order(name, orders.Listen())
        at_s = time.monotonic() + LEAD_S
        self._end_s, self._rate = at_s + seconds, rate
        for index, (name, sender) in enumerate(self.plan.senders.items()):
            self.order(name, self._sending(index, sender, at_s, seconds))
        return at_s

    def rejoin(self, guest: str) -> None:
        """Have a guest that came back take up its part again, until the end of what was begun."""
        if guest in self.plan.reflectors:
            self.order(guest, orders.Reflect())
            return
        left_s = self._end_s - time.monotonic() - LEAD_S
        sender = self.plan.senders.get(guest)
        if sender is None or left_s <= 0:
            return
        # Its numbers begin anew, so its stream must be another one.
        self._phase += 1
        index = list(self.plan.senders).index(guest)
        self.order(guest, self._sending(index, sender, time.monotonic() + LEAD_S, left_s))

    def stop(self) -> None:
        """End what is being sent."""
        self._end_s = 0.0
        for name in self.plan.senders:
            self.order(name, orders.Stop())

    async def settled(self) -> None:
        """Wait until nothing has arrived for a moment."""
        end = time.monotonic() + _SETTLE_S
        before = None
        while time.monotonic() < end:
            self.counter.look()
            now = self.counter.total()
            if now == before:
                return
            before = now
            await asyncio.sleep(_STILL_S)

    def arrived(self, counts: Counts) -> int:
        """Frames that arrived; those of a capture are foreign to a sink."""
        return counts.received + (counts.foreign if self.is_recorded else 0)

    def order(self, guest: str, order: orders.Order) -> None:
        """Tell one guest what to do."""
        self.lab.order(guest, msgspec.json.encode(order))

    def _does_ask(self, name: str) -> bool:
        return self.plan.senders[name].flow.ask is not None

    def _sending(self, index: int, sender: Sender, at_s: float, seconds: float) -> orders.Order:
        flow = sender.flow
        stream = (self._phase & 0xFFFF) << 16 | index
        to = tuple(self._macs[name] for name in sender.to)
        if flow.ask is not None:
            timeout_s = duration_s(flow.ask.timeout)
            return orders.Ask(to[0], stream, at_s, seconds, flow.size, flow.ask.window, timeout_s)
        replay = None
        if flow.replay is not None:
            replay = orders.Replay(str(self.plan.folder / flow.replay.file), flow.replay.speed)
        schedule = orders.schedule_of(flow, self.plan.profile.seed * 1009 + stream, self._rate)
        return orders.Send(to, stream, at_s, seconds, flow.size, schedule, replay)


class Sampler:
    """Makes samples: what was counted from one look to the next.

    Args:
        traffic: whose counts.
        start_s: when it began, by the monotonic clock; samples count from then.
        base, latency: what had been counted by then.
        offset_s: what is added to the times of samples.
    """

    def __init__(
        self, traffic: Traffic, start_s: float, base: Counts, latency: Latency, *, offset_s: float = 0.0
    ) -> None:
        self._traffic = traffic
        self._start_s, self._base, self._offset_s = start_s, base, offset_s
        self._moment, self._counts, self._latency = start_s, base, latency

    def take(self, moment: float) -> Sample:
        """Return what was counted since the last one.

        Args:
            moment: when the counters were looked at.
        """
        counter = self._traffic.counter
        counts, latency = counter.total(), counter.latency()
        step, whole = counts - self._counts, counts - self._base
        sample = Sample(
            at_s=round(moment - self._start_s + self._offset_s, 3),
            seconds=round(moment - self._moment, 3),
            sent=step.sent,
            received=self._traffic.arrived(step),
            received_bytes=step.received_bytes,
            under_way=whole.sent - self._traffic.arrived(whole),
            reordered=step.reordered,
            corrupted=step.corrupted,
            latency_ns=latency.since(self._latency).percentiles_ns(),
        )
        self._moment, self._counts, self._latency = moment, counts, latency
        return sample

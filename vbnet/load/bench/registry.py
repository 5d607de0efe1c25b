"""Every bench there is, by the name under which ``vbnet bench`` runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vbnet.load.bench import (
    blk,
    calls,
    lab,
    metrics,
    namespaces,
    native,
    nics,
    sched,
    signals,
    state,
    through,
    timers,
    vhost,
)
from vbnet.load.bench.context import Context
from vbnet.load.bench.row import Row

__all__ = ["BENCHES", "Bench"]


@dataclass(frozen=True, slots=True)
class Bench:
    """One bench.

    Args:
        name: under which it is asked for.
        run: measures and yields rows as they come.
    """

    name: str
    run: Callable[[Context], Iterator[Row]]

    @property
    def summary(self) -> str:
        """One line: what it measures."""
        return (self.run.__doc__ or "").strip().splitlines()[0].replace("``", "`")


BENCHES: Final = {
    bench.name: bench
    for bench in (
        Bench("ring", native.ring),
        Bench("switch", through.switch),
        Bench("rtt", through.rtt),
        Bench("rtt.asleep", through.rtt_asleep),
        Bench("vhost", vhost.vhost),
        Bench("vhost.rtt", vhost.rtt),
        Bench("fastcall", native.fastcall),
        Bench("fastcall.python", calls.fastcall_python),
        Bench("python", through.python),
        Bench("offloads", through.offloads),
        Bench("blk", blk.blk),
        Bench("virtio-net", nics.virtio_net),
        Bench("timer.arm", timers.arm),
        Bench("timer.late", timers.late),
        Bench("idle", lab.idle),
        Bench("launch", lab.launch),
        Bench("netns.tcp", namespaces.tcp),
        Bench("scale", through.scale),
        Bench("capture.cost", through.capture_cost),
        Bench("metrics.scrape", metrics.scrape),
        Bench("metrics.cost", through.metrics_cost),
        Bench("sched", sched.sched),
        Bench("limit", native.limit),
        Bench("signal.raise", signals.raise_),
        Bench("signal.priority", signals.priority),
        Bench("signal.eoi", signals.eoi),
        Bench("state", state.state),
    )
}

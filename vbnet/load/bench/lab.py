"""Benches of a whole lab: what idle guests cost, how long coming up takes, what one more guest weighs.

These bring up real labs with ``vbnet.cluster``: a host node, guest processes, buses, devices, everything ready to pass
traffic. They are held against fixed figures, not against a peer. Each lab has a run directory of its own and is taken
down whatever happens.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from vbnet.cluster.lab import Lab
from vbnet.cluster.plan import make_plan
from vbnet.cluster.topology import parse_topology
from vbnet.load.bench.context import Context
from vbnet.load.bench.machine import process_ticks
from vbnet.load.bench.row import Row
from vbnet.load.bench.summary import AtMost, Summary

__all__ = ["idle", "launch", "memory_beyond_ram", "processes", "topology", "with_lab"]

_Found = TypeVar("_Found")
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_READY_SECONDS: Final = 120.0
_SETTLE_SECONDS: Final = 1.0
_RAM_NAME: Final = "/memfd:vbnet-ram"
_NOT_PLACED: Final = "-"
_KIB: Final = 1 << 10
_MIB: Final = 1 << 20


def topology(name: str, guests: int, *, is_packed: bool) -> str:
    """Write the lab file of so many stack guests on one switch."""
    return f"""
name: {name}
switches: {{lan: {{}}}}
guests:
  g: {{kind: stack, count: {guests}, packed: {str(is_packed).lower()}, nics: [{{switch: lan, ip: 10.64.0.1/10}}]}}
"""


def _with_lab(guests: int, *, is_packed: bool, look: Callable[[Lab, float], _Found]) -> _Found:
    return with_lab(topology(f"bench{os.getpid()}", guests, is_packed=is_packed), look)


def with_lab(text: str, look: Callable[[Lab, float], _Found]) -> _Found:
    """Bring the lab of a lab file up, look at it (given how long coming up took), and take it down."""

    async def run(root: Path) -> _Found:
        lab = Lab(make_plan(parse_topology(text)), root=root)
        begun = time.perf_counter()
        await lab.up(_READY_SECONDS)
        try:
            return look(lab, time.perf_counter() - begun)
        finally:
            await lab.down()

    with tempfile.TemporaryDirectory(prefix="vbnet-bench-") as root:
        return asyncio.run(run(Path(root)))


def processes(lab: Lab) -> list[int]:
    """Host node and guest processes."""
    slots = [*lab.state.processes.values(), *([lab.state.host] if lab.state.host else [])]
    return [slot.identity.pid for slot in slots if slot.identity is not None]


def idle(context: Context) -> Iterator[Row]:
    """Processor time of idle guests and their host, in percent of one core."""
    shapes = [(4, False)] if context.is_quick else [(100, False), (100, True)]
    for guests, is_packed in shapes:
        samples = _with_lab(guests, is_packed=is_packed, look=lambda lab, _seconds: _idle_percent(lab, context))
        wanted = AtMost(1.0) if guests == 100 else None  # noqa: PLR2004 - what the target is for
        params = _params(guests, is_packed=is_packed)
        yield Row.of("idle", params, "% of one core", Summary.of(samples), _NOT_PLACED, wanted=wanted)


def _idle_percent(lab: Lab, context: Context) -> list[float]:
    """Watch once a turn, after everything that follows coming up has come to rest."""
    pids = processes(lab)
    time.sleep(_SETTLE_SECONDS)
    samples = []
    for _ in range(1 if context.is_quick else 3):
        before, begun = _ticks(pids), time.perf_counter()
        time.sleep(context.pace.watch_seconds)
        used, seconds = _ticks(pids) - before, time.perf_counter() - begun
        samples.append(100 * used / _TICKS_A_SECOND / seconds)
    return samples


def _ticks(pids: list[int]) -> int:
    return sum(process_ticks(pid) for pid in pids)


def launch(context: Context) -> Iterator[Row]:
    """Seconds until every guest of a lab is ready, and what one more packed guest weighs."""
    processes, packed, fewer = (4, 16, 8) if context.is_quick else (64, 1000, 200)
    is_full = not context.is_quick
    turns = range(1 if context.is_quick else 3)
    samples = [_with_lab(processes, is_packed=False, look=lambda _lab, seconds: seconds) for _ in turns]
    wanted = AtMost(10.0) if is_full else None
    params = _params(processes, is_packed=False)
    yield Row.of("launch", params, "s", Summary.of(samples), _NOT_PLACED, wanted=wanted)
    looks = [_with_lab(packed, is_packed=True, look=_weigh) for _ in turns]
    seconds = Summary.of(seconds for seconds, _weight in looks)
    yield Row.of("launch", _params(packed, is_packed=True), "s", seconds, _NOT_PLACED, wanted=wanted)
    light = [_with_lab(fewer, is_packed=True, look=_weigh)[1] for _ in turns]
    heavy = [weight for _, weight in looks]
    weights = [(more - less) / (packed - fewer) for more, less in zip(heavy, light, strict=True)]
    yield Row.of(
        "launch",
        {"memory_of": "one more packed guest", "from_guests": fewer, "to_guests": packed},
        "bytes",
        Summary.of(weights),
        _NOT_PLACED,
        wanted=AtMost(float(_MIB)) if is_full else None,
        note="host and guests together, beyond the guest's RAM region",
    )


def _params(guests: int, *, is_packed: bool) -> dict[str, str | int | float]:
    return {"guests": guests, "packed": str(is_packed).lower()}


def _weigh(lab: Lab, seconds: float) -> tuple[float, float]:
    return seconds, float(sum(memory_beyond_ram(_smaps(pid)) for pid in processes(lab)))


def _smaps(pid: int) -> str:
    return Path(f"/proc/{pid}/smaps").read_text()


def memory_beyond_ram(smaps: str) -> int:
    """Add up a process's share (PSS) of everything it maps, in bytes, guests' RAM regions left out."""
    total_kib = 0
    is_ram = False
    for line in smaps.splitlines():
        name, separator, value = line.partition(":")
        if not separator or " " in name:
            is_ram = _RAM_NAME in line
        elif name == "Pss" and not is_ram:
            total_kib += int(value.split()[0])
    return total_kib * _KIB

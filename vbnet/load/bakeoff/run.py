"""The order of a bake-off.

    lab without idle cards:  repeats, workloads, subjects     every subject once a repeat, in an order of its own
    lab with idle cards:     the same for the workload that wants them
    aside:                   single mechanisms, and what others offer, each as ``vbnet bench`` measures it

Subjects take turns within a repeat, so that whatever the machine does meanwhile meets all of them; the order follows
from the seed. A subject that ends is told of and left out from then on. A user who stops it gets what was measured.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final, Protocol

import msgspec

from vbnet._native import bench_placement, bench_probe
from vbnet.cluster.lab import LabEvent
from vbnet.errors import UnsupportedError, VbnetError
from vbnet.load.bakeoff.arena import Arena, Broken
from vbnet.load.bakeoff.contest import ELSEWHERE, Contest, settings
from vbnet.load.bakeoff.record import Reading, Record
from vbnet.load.bakeoff.subjects import MECHANISMS, Subject, subjects
from vbnet.load.bakeoff.workloads import WORKLOADS, Workload
from vbnet.load.bench.machine import Cores, describe, two_cores
from vbnet.load.bench.row import Row
from vbnet.load.bench.summary import Summary
from vbnet.load.told import RunFigures

__all__ = ["Bakeoff", "Watcher"]

_PROBE_S: Final = 0.05
_ASIDE: Final = {"interrupt-controller": "signal.eoi"}
"""Benches of mechanisms that are no part of a frame's way."""

_POLITE_S: Final = 10.0


class Watcher(Protocol):
    """Told of a bake-off as it goes."""

    def lab(self, event: LabEvent) -> None:
        """One step of a lab's life."""

    def reading(self, reading: Reading, done: int, total: int) -> None:
        """One measurement was made."""

    def missing(self, subject: str, why: str) -> None:
        """A subject cannot go on."""

    def aside(self, name: str) -> None:
        """A bench begins."""


class _Document(msgspec.Struct, frozen=True):
    """What ``vbnet bench --format json`` prints, as far as it is used."""

    rows: list[Row]


class Bakeoff:
    """One bake-off.

    Args:
        contest: the checked file.
        watch: told of everything as it happens.
        is_quick: benches beside it are short and rough too.
        root: the folder that holds run directories; the user's usual place by default.
        stop: set when the user wants it to end; the record is of what was measured until then.
    """

    def __init__(
        self,
        contest: Contest,
        *,
        watch: Watcher,
        is_quick: bool = False,
        root: Path | None = None,
        stop: asyncio.Event | None = None,
    ) -> None:
        self._contest = contest
        self._watch = watch
        self._is_quick = is_quick
        self._root = root
        self._stop = stop or asyncio.Event()
        self._subjects = subjects(contest.models, contest.without)
        self._readings: list[Reading] = []
        self._missing: dict[str, str] = {}
        self._rows: list[Row] = []
        self._notes: list[str] = []
        workloads = [WORKLOADS[name] for name in WORKLOADS if name in contest.workloads]
        self._stages = [
            (has_idle, chosen)
            for has_idle in (False, True)
            if (chosen := [workload for workload in workloads if workload.has_idle is has_idle])
        ]
        self._total = contest.repeats * len(self._subjects) * len(workloads)
        self._told: RunFigures
        self._began_s = time.monotonic()
        self.is_measuring = False

    async def run(self) -> Record:
        """Measure everything, and take every lab down whatever happens.

        Raises:
            VbnetError: a lab did not come up, and nothing was measured yet.
        """
        began, start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        cores = self._cores()
        before = _placement(cores)
        for has_idle, workloads in self._stages:
            if not self._stop.is_set():
                await self._stage(workloads, cores, has_idle=has_idle)
        for name in self._benches():
            if not self._stop.is_set():
                self._watch.aside(name)
                await self._bench(name)
        return Record(
            contest=settings(self._contest),
            began=began,
            seconds=round(time.monotonic() - start, 1),
            vbnet=metadata.version("vbnet"),
            machine=describe(),
            placement=(before, _placement(cores)),
            state="interrupted" if self._stop.is_set() else "finished",
            readings=self._readings,
            missing=self._missing,
            aside=self._rows,
            notes=self._notes,
        )

    async def _stage(self, workloads: list[Workload], cores: Cores | None, *, has_idle: bool) -> None:
        arena = Arena(self._contest, has_idle=has_idle, cores=cores, watch=self._watch.lab, root=self._root)
        try:
            async with arena:
                self.is_measuring = True
                planned = self._contest.repeats * len(workloads) * len(self._subjects)
                self._told = RunFigures(arena.lab.run_dir, "bakeoff", "bakeoff", planned * self._contest.seconds)
                self._began_s = time.monotonic()
                arena.lab.publish("bakeoff.began", planned=planned)
                try:
                    for turn in range(self._contest.repeats):
                        for workload in workloads:
                            await self._turn(arena, workload, turn)
                    arena.lab.publish("bakeoff.ended", readings=len(self._readings))
                    self._told.ended()
                finally:
                    self._told.close()
        except VbnetError as error:
            if not self._readings:
                raise
            self._notes.append(f"the lab with idle cards did not come up: {error}")

    async def _turn(self, arena: Arena, workload: Workload, turn: int) -> None:
        order = list(self._subjects)
        random.Random(f"{self._contest.seed}/{turn}/{workload.name}").shuffle(order)  # noqa: S311 - no secret
        for subject in order:
            if self._stop.is_set():
                return
            await self._measure(arena, subject, workload, turn)

    async def _measure(self, arena: Arena, subject: Subject, workload: Workload, turn: int) -> None:
        if subject.name in self._missing:
            return
        measuring = asyncio.ensure_future(arena.measure(subject, workload, self._contest.seconds))
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({measuring, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not measuring.done():
                return
            found = measuring.result()
        except (Broken, VbnetError) as error:
            self._missing[subject.name] = str(error)
            arena.lab.publish("bakeoff.missing", subject=subject.name, detail=str(error))
            self._watch.missing(subject.name, str(error))
            return
        finally:
            stopping.cancel()
            if not measuring.done():
                measuring.cancel()
                with suppress(asyncio.CancelledError, Broken, VbnetError):
                    await measuring
        without = subject.without.name if subject.without is not None else ""
        reading = Reading(
            subject=subject.name,
            model=subject.model,
            without=without,
            workload=workload.name,
            turn=turn,
            figures=found,
        )
        self._readings.append(reading)
        self._told.went_on(time.monotonic() - self._began_s)
        self._watch.reading(reading, len(self._readings), self._total)

    def _cores(self) -> Cores | None:
        try:
            return two_cores()
        except UnsupportedError:
            self._notes.append("this process may use one core only: host node and guests share it")
            return None

    # ---- benches --------------------------------------------------------------------------------------------------

    def _benches(self) -> Iterator[str]:
        yield from (_ASIDE[name] for name in self._contest.without if MECHANISMS[name].is_aside)
        yield from (name for name in ELSEWHERE if name in self._contest.elsewhere)

    async def _bench(self, name: str) -> None:
        """Run a bench as a program of its own: it ends with its processes when it is told to."""
        command = [sys.executable, "-m", "vbnet.cli.main", "bench", name, "--format", "json"]
        bench = await asyncio.create_subprocess_exec(
            *command,
            *(["--quick"] if self._is_quick else []),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        talking = asyncio.ensure_future(bench.communicate())
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({talking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not talking.done():
                return
            said, problem = talking.result()
            self._rows += msgspec.json.decode(said, type=_Document).rows
            if bench.returncode:
                self._notes.append(f"bench {name}: {problem.decode(errors='replace').strip()}")
        except msgspec.MsgspecError:
            self._notes.append(f"bench {name} failed: {problem.decode(errors='replace').strip()[-500:]}")
        finally:
            stopping.cancel()
            if not talking.done():
                await _end(bench, talking)


async def _end(bench: asyncio.subprocess.Process, talking: asyncio.Future[tuple[bytes, bytes]]) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            bench.send_signal(number)
        done, _ = await asyncio.wait({talking}, timeout=_POLITE_S)
        if done:
            return


def _placement(cores: Cores | None) -> str:
    if cores is None:
        return "-"
    return bench_placement(Summary.of(bench_probe(cores.pair, _PROBE_S)).median)

"""A running lab: brought up in order, watched, taken down without a trace.

    host node → switches, buses, devices → uplinks → guest processes → every guest ready → go

*Ready* means that a guest's interfaces can pass traffic. Only when all are ready does the lab say *go*, and guests
begin their own work (a function, a program, a generator): nobody talks to a peer that is not there yet.

The supervisor owns everything: when it ends, in whatever way, every process of the lab ends (see ``launch.py``), and
``clean.py`` removes what files remain. The host node's end is the lab's end; a guest's end is its restart policy's
matter.

Danger: guests run other people's code. What they report is bounded and believed only about themselves.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vbnet.bus.rundir import RunDir
from vbnet.clock import Clock, MonotonicClock, Timer
from vbnet.cluster import clean, operate, process, state
from vbnet.cluster.launch import HOST_GONE, Launcher, Process, Report
from vbnet.cluster.link import link_exists
from vbnet.cluster.operate import HostControl
from vbnet.cluster.plan import Plan, ProcessPlan
from vbnet.cluster.restart import Again, GivenUp, RestartPolicy
from vbnet.cluster.state import FrontEndState, GuestState, LabState, Lock, ProcessState
from vbnet.errors import DeadlineError, NotFoundError, PeerGone, VbnetError
from vbnet.units import SECOND_NS

if TYPE_CHECKING:
    from vbnet.telemetry.serve import ExporterProcess

HOST = "host"
"""Name of the host node's process and log; the lab file keeps it from guests."""

READY_TIMEOUT_S = 60.0
POLITE_S = 3.0
"""How long a process may take to end after SIGTERM before it is killed."""

REQUESTS_PER_MESSAGE = 200
GUESTS_NAMED_MAX = 8
"""Guests of a packed process that an event names; it has the count of all."""


class LabEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of a lab's life, for whoever watches.

    Attributes:
        step: host, network, uplink, guest, lab.
        subject: its name.
        state: starting, ready, ended, failed, restarting, given-up, stopping, stopped.
        detail: one sentence, or empty.
        done, total: progress of the step.
    """

    step: str
    subject: str
    state: str
    detail: str = ""
    done: int = 0
    total: int = 0


Watcher = Callable[[LabEvent], None]


class LabFailed(VbnetError):  # noqa: N818 -- a fact about the lab
    """A lab could not come up, or its host node ended. Everything of it was taken down again."""


class _Running:
    """One process slot of the lab: its plan, its policy, and the process that fills it now."""

    def __init__(self, plan: ProcessPlan) -> None:
        self.plan = plan
        self.policy = RestartPolicy(plan.restart)
        self.process: Process | None = None
        self.started_ns = 0
        self.timer: Timer | None = None
        self.ended = asyncio.Event()


class Lab:
    """A lab of this machine, run by this process.

    Args:
        plan: what to bring up.
        root: the folder that holds run directories; the user's usual place by default.
        watch: told of every step.
        clock: for back-off.
        entries: other entry functions for some kinds of process.
        connect: how to reach the host node once it runs.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        root: Path | None = None,
        watch: Watcher | None = None,
        clock: Clock | None = None,
        entries: Mapping[str, str] | None = None,
        connect: Callable[[Path], Awaitable[HostControl]] = operate.connect_host,
    ) -> None:
        self.plan = plan
        self.run_dir = RunDir.for_node(plan.lab, root)
        self.folder = self.run_dir.path
        self.control: HostControl | None = None
        self._watch = watch or (lambda _: None)
        self._clock = clock or MonotonicClock()
        self._entries = entries
        self._connect = connect
        self._lock: Lock | None = None
        self._exporter: ExporterProcess | None = None
        self._launcher: Launcher | None = None
        self._host = _Running(ProcessPlan(name=HOST, kind="host", guests=()))
        self._slots = {item.name: _Running(item) for item in plan.processes}
        self._state: LabState | None = None
        self._changed = asyncio.Event()
        self._is_going = False
        self._is_stopping = False
        self._write_due: asyncio.Handle | None = None

    @property
    def state(self) -> LabState:
        """What the lab's state file says."""
        if self._state is None:
            raise DeadlineError("the lab was not brought up")
        return self._state

    async def up(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Bring the lab up; on any failure everything is taken down again.

        Args:
            timeout_s: how long all of it may take.

        Raises:
            BusyError: a lab of this name is up (the caller's mistake).
            LabFailed: a guest or the host node did not get ready; the message has the last lines of its log.
            DeadlineError: not ready in time.
            VbnetError: the host node refused something.
        """
        self._claim()
        try:
            async with asyncio.timeout(timeout_s):
                await self._start_host()
                await self._start_exporter()
                await self._make_network()
                await self._insert_disks()
                await self._make_uplinks()
                self._start_guests()
                await self._all_ready()
        except TimeoutError as error:
            missing = [guest.name for guest in self.state.guests.values() if guest.state != "ready"]
            logs = self._log_tail(self.state.guests[missing[0]].process if missing else HOST)
            await self.down()
            if isinstance(error, VbnetError):
                raise
            names = ", ".join(missing[:5]) or "the host node"
            raise DeadlineError(
                f"lab {self.plan.lab} was not ready after {timeout_s:g} s: {names}; taken down{logs}"
            ) from error
        except BaseException:
            await self.down()
            raise
        self._is_going = True
        for slot in self._slots.values():
            if slot.process is not None:
                slot.process.go()
        self.state.phase = "up"
        self._write_now()
        self._tell("lab", self.plan.lab, "ready")
        self.publish("lab.up", count=len(self.state.guests))

    async def run(self) -> int:
        """Watch the lab until every guest has ended for good.

        Returns:
            0 when all of them ended well, else 1.

        Raises:
            LabFailed: the host node ended; the lab cannot go on without it.
        """
        while True:
            if self._host.ended.is_set() and not self._is_stopping:
                how = _how(self._record(self._host).exit_code or 0)
                raise LabFailed(f"the host node of lab {self.plan.lab} ended: {how}{self._log_tail(HOST)}")
            if self._slots and all(slot.ended.is_set() for slot in self._slots.values()) and not self._is_host_gone():
                guests = self.state.guests.values()
                return int(any(guest.state in {"failed", "given-up"} for guest in guests))
            await self.changed()

    def order(self, guest: str, message: bytes) -> None:
        """Tell the process of a guest what to do next; nothing happens while it does not run.

        Raises:
            NotFoundError: the lab has no such guest. ResourceError: the process does not take its orders.
        """
        state = self.state.guests.get(guest)
        if state is None:
            raise NotFoundError(f"lab {self.plan.lab} has no guest `{guest}`", guest=guest)
        running = self._slots[state.process].process
        if running is not None:
            running.order(message)

    def publish(self, topic: str, **fields: object) -> None:
        """Have the host node tell whoever follows its events; nothing happens without one."""
        if self.control is not None:
            self.control.tell(topic, {"lab": self.plan.lab, **fields})

    async def changed(self) -> None:
        """Wait until a guest's state changes."""
        self._changed.clear()
        await self._changed.wait()

    async def down(self) -> None:
        """End everything and remove every trace. Harmless when nothing is up."""
        if self._lock is None:
            return
        self._is_stopping = True
        self._tell("lab", self.plan.lab, "stopping")
        self.publish("lab.stopping")
        if self._state is not None:
            self._state.phase = "stopping"
            self._write_now()
        for slot in self._slots.values():
            if slot.timer is not None:
                slot.timer.cancel()
                slot.ended.set()
        await self._end(list(self._slots.values()))
        if self.control is not None:
            with suppress(VbnetError):
                await self.control.close()
        await self._end([self._host])
        if self._exporter is not None:
            await asyncio.to_thread(self._exporter.close)
            self._exporter = None
        if self._launcher is not None:
            self._launcher.close()
        if self._state is not None:
            clean.end_marked(self._state.instance)
            clean.remove_taps(self._state)
        if self._write_due is not None:
            self._write_due.cancel()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()
        self._lock = None
        self._tell("lab", self.plan.lab, "stopped")

    # ---- the steps of coming up -----------------------------------------------------------------------------------

    def _claim(self) -> None:
        """Take the lab's folder, clearing what a killed lab of this name left there."""
        self.run_dir.create()
        self._lock = Lock(self.folder)
        clean.clean_folder(self.folder, is_ours=True)
        myself = process.identify(os.getpid())
        assert myself is not None  # noqa: S101 -- this process is alive
        self._state = LabState(
            lab=self.plan.lab,
            instance=secrets.token_hex(16),
            file=self.plan.file,
            phase="starting",
            since_s=time.time(),
            supervisor=myself,
            taps=[uplink.tap for uplink in self.plan.uplinks if not link_exists(uplink.tap)],
            front_ends=[
                FrontEndState(name=request.args["name"], macs=[mac] if (mac := request.args["mac"]) else [])
                for request in self.plan.requests
                if request.verb == "port.listen"
            ],
        )
        for item in self.plan.processes:
            self._state.processes[item.name] = ProcessState(name=item.name, kind=item.kind, restart=item.restart)
            for guest in item.guests:
                self._state.guests[guest.name] = GuestState(
                    name=guest.name,
                    kind=item.kind,
                    process=item.name,
                    ips=[nic.ip for nic in guest.nics if nic.ip is not None],
                    macs=[nic.mac for nic in guest.nics],
                )
        self._state.host = ProcessState(name=HOST, kind="host")
        self._write_now()
        kinds = {"host"} | {item.kind for item in self.plan.processes}
        self._launcher = Launcher(self.folder, self._state.instance, kinds, self._entries)

    async def _start_host(self) -> None:
        self._tell("host", self.plan.lab, "starting")
        self._is_host_ready = asyncio.Event()
        self._start(self._host)
        ready = asyncio.ensure_future(self._is_host_ready.wait())
        ended = asyncio.ensure_future(self._host.ended.wait())
        try:
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            ended.cancel()
        self._check_host()
        self.control = await self._connect(self.folder)
        self._tell("host", self.plan.lab, "ready")

    async def _start_exporter(self) -> None:
        if self.plan.metrics is None:
            return
        from vbnet.telemetry.serve import EXPORTER_LOG, ExporterProcess  # noqa: PLC0415 -- only labs with an exporter need it

        listen, web_config = self.plan.metrics.listen, self.plan.metrics.web_config
        self._tell("metrics", listen, "starting")
        self._exporter = ExporterProcess(
            listen,
            web_config=None if web_config is None else Path(web_config),
            node=self.folder.name,
            root=self.folder.parent,
            log=self.run_dir.logs / EXPORTER_LOG,
        )
        await asyncio.to_thread(self._exporter.wait_ready)
        self._tell("metrics", self._exporter.address, "ready")

    async def _make_network(self) -> None:
        control, requests = self._controlled(), self.plan.requests
        for start in range(0, len(requests), REQUESTS_PER_MESSAGE):
            batch = requests[start : start + REQUESTS_PER_MESSAGE]
            await control.apply(batch)
            self._tell("network", batch[-1].describe(), "ready", done=start + len(batch), total=len(requests))

    async def _insert_disks(self) -> None:
        for number, disk in enumerate(self.plan.disks, 1):
            await self._controlled().insert(disk)
            self._tell("disk", disk.device, "ready", done=number, total=len(self.plan.disks))

    async def _make_uplinks(self) -> None:
        from vbnet.cluster import uplinks  # noqa: PLC0415 -- only labs with uplinks need it

        for number, uplink in enumerate(self.plan.uplinks, 1):
            if uplink.tap in self.state.taps:
                await asyncio.to_thread(uplinks.make_tap, uplink, self.state.instance)
            else:
                await asyncio.to_thread(uplinks.use_tap, uplink)
            await self._controlled().add_uplink(uplink)
            self._tell("uplink", uplink.tap, "ready", done=number, total=len(self.plan.uplinks))

    def _start_guests(self) -> None:
        for slot in self._slots.values():
            self._start(slot)

    async def _all_ready(self) -> None:
        while True:
            self._check_host()
            states = self.state.guests.values()
            for guest in states:
                if guest.state in {"failed", "ended", "given-up"}:
                    said = guest.detail or f"its process ended with {self.state.processes[guest.process].exit_code}"
                    raise LabFailed(f"guest {guest.name} did not get ready: {said}{self._log_tail(guest.process)}")
            if all(guest.state == "ready" for guest in states):
                return
            await self.changed()

    def _check_host(self) -> None:
        if self._host.ended.is_set():
            raise LabFailed(f"the host node of lab {self.plan.lab} did not start{self._log_tail(HOST)}")

    def _controlled(self) -> HostControl:
        if self.control is None:
            raise PeerGone("the host node is not there")
        return self.control

    # ---- processes ------------------------------------------------------------------------------------------------

    def _start(self, slot: _Running) -> None:
        assert self._launcher is not None  # noqa: S101 -- made by _claim
        slot.timer = None
        slot.ended.clear()
        slot.started_ns = self._clock.now_ns()
        slot.process = running = self._launcher.start(slot.plan, self.plan.workers)
        record = self._record(slot)
        record.identity = running.identity
        record.exit_code = None
        loop = asyncio.get_running_loop()
        loop.add_reader(running.reports.fileno(), self._on_reports, slot, running)
        loop.add_reader(running.sentinel, self._on_end, slot, running)
        self._set_guests(slot, "starting")
        if slot is not self._host:
            self.publish("lab.started", **_of(slot.plan), pid=running.pid)

    def _record(self, slot: _Running) -> ProcessState:
        if slot is self._host:
            assert self.state.host is not None  # noqa: S101 -- made by _claim
            return self.state.host
        return self.state.processes[slot.plan.name]

    def _on_reports(self, slot: _Running, running: Process) -> None:
        for report in running.take_reports():
            self._on_report(slot, report)
        if running.has_hung_up:
            asyncio.get_running_loop().remove_reader(running.reports.fileno())

    def _on_report(self, slot: _Running, report: Report) -> None:
        if slot is self._host:
            self._is_host_ready.set()
            return
        guest = self.state.guests.get(report.guest)
        if guest is None or guest.process != slot.plan.name or report.state not in {"ready", "failed"}:
            return
        was_ready = guest.state == "ready"
        guest.state, guest.detail = report.state, report.detail
        ready = sum(other.state == "ready" for other in self.state.guests.values())
        self._tell("guest", guest.name, guest.state, guest.detail, done=ready, total=len(self.state.guests))
        is_whole = all(self.state.guests[member.name].state == "ready" for member in slot.plan.guests)
        if is_whole and not was_ready:
            self.publish("lab.ready", **_of(slot.plan))
        if self._is_going and is_whole and slot.process is not None:
            slot.process.go()
        self._note_change()

    def _on_end(self, slot: _Running, running: Process) -> None:
        code = running.exit_code()
        if code is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(running.sentinel)
        loop.remove_reader(running.reports.fileno())
        for report in running.take_reports():
            self._on_report(slot, report)
        running.close()
        self.run_dir.process_counters(slot.plan.name).unlink(missing_ok=True)
        slot.process = None
        record = self._record(slot)
        record.exit_code, record.identity = code, None
        is_orphan = code == HOST_GONE and self._is_host_gone()  # it is not started again: the lab is about to end
        if slot is self._host or self._is_stopping or is_orphan:
            slot.ended.set()
            self._set_guests(slot, "stopped")
            self._note_change()
            return
        said = _how(code)
        self.publish("lab.exited", **_of(slot.plan), exit_code=code, detail=said)
        match slot.policy.decide(code, slot.started_ns, self._clock.now_ns()):
            case Again(delay_ns):
                record.restarts += 1
                delay_s = delay_ns / SECOND_NS
                self.publish("lab.restarting", **_of(slot.plan), restarts=record.restarts, delay_s=delay_s)
                self._set_guests(slot, "restarting", f"{said}; again in {delay_s:g} s")
                slot.timer = self._clock.call_later(delay_ns, lambda: self._restart(slot))
            case GivenUp(restarts):
                slot.ended.set()
                detail = f"{said}; failed {restarts} times within a minute"
                self.publish("lab.given_up", **_of(slot.plan), detail=detail)
                self._set_guests(slot, "given-up", detail)
            case ended:
                slot.ended.set()
                if ended.is_failure:
                    self.publish("lab.failed", **_of(slot.plan), detail=said)
                self._set_guests(slot, "failed" if ended.is_failure else "ended", said)
        self._note_change()

    def _is_host_gone(self) -> bool:
        """Whether the host node has ended, also where its end was not told yet."""
        return not process.is_alive(self._record(self._host).identity)

    def _restart(self, slot: _Running) -> None:
        if not self._is_stopping:
            self._start(slot)
            self._note_change()

    def _set_guests(self, slot: _Running, new: str, detail: str = "") -> None:
        for member in slot.plan.guests:
            guest = self.state.guests[member.name]
            if new == "failed" and guest.state == "failed" and guest.detail:
                continue
            guest.state, guest.detail = new, detail
        if slot.plan.guests and new not in {"starting", "stopped"}:
            self._tell("guest", slot.plan.name, new, detail)

    async def _end(self, slots: list[_Running]) -> None:
        """Ask every process to end, then make it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            alive = [slot for slot in slots if slot.process is not None and not slot.ended.is_set()]
            if not alive:
                return
            for slot in alive:
                if slot.process is not None:
                    slot.process.signal(number)
            waiting = [asyncio.ensure_future(slot.ended.wait()) for slot in alive]
            await asyncio.wait(waiting, timeout=POLITE_S)
            for task in waiting:
                task.cancel()

    # ---- telling --------------------------------------------------------------------------------------------------

    def _tell(self, step: str, subject: str, new: str, detail: str = "", *, done: int = 0, total: int = 0) -> None:
        self._watch(LabEvent(step, subject, new, detail, done, total))

    def _note_change(self) -> None:
        """Wake the waiting, and write the state file soon (once for many changes)."""
        self._changed.set()
        if self._write_due is None:
            self._write_due = asyncio.get_running_loop().call_later(0.05, self._write_now)

    def _write_now(self) -> None:
        if self._write_due is not None:
            self._write_due.cancel()
            self._write_due = None
        with suppress(FileNotFoundError):
            state.write_state(self.folder, self.state)

    def _log_tail(self, name: str, lines: int = 8) -> str:
        """Return the end of a process's log, for a message about its failure."""
        try:
            with (self.run_dir.logs / f"{name}.log").open("rb") as log:
                log.seek(0, 2)
                log.seek(max(0, log.tell() - 4096))
                tail = log.read().decode(errors="replace").splitlines()[-lines:]
        except OSError:
            return ""
        return "".join(f"\n  {name}: {line}" for line in tail)


def _how(code: int) -> str:
    """Say how a process ended; a negative code is the signal that ended it."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _of(plan: ProcessPlan) -> dict[str, object]:
    """A process as events name it: with its guests, of many the first."""
    guests = [guest.name for guest in plan.guests[:GUESTS_NAMED_MAX]]
    return {"process": plan.name, "guests": guests, "count": len(plan.guests)}

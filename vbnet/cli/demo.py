"""`vbnet demo`: a small lab comes up, talks and goes away, for somebody who sees vbnet for the first time."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.resources import files

import msgspec

from vbnet.bus.rundir import RunDir
from vbnet.cli import output
from vbnet.cluster import clean, privileges
from vbnet.cluster.guests.traffic import REPORT_EVERY_S
from vbnet.cluster.lab import Lab, LabEvent
from vbnet.cluster.plan import make_plan
from vbnet.cluster.source import Source
from vbnet.cluster.supervise import own_command
from vbnet.cluster.topology import LabFile, parse_topology

TIMEOUT_S = 15.0
TALK_S = 6.0
PROGRAM_TIMEOUT_S = 8.0

PICTURE = r"""
   web-0  web-1  web-2      app         gen      sink         ns
   small IP hosts, one      a Python    makes    counts       a real Linux network
   process, 10.10.0.10-12   function    frames   frames       namespace, 10.10.0.100
     |      |      |         |           |        |            |
  ===+======+======+=========+===========+========+============+===   switch "lan"
                                host node
        every line up is memory that two processes share; only ns has the kernel's TAP in between
"""

app = output.application(
    "Watch a small lab come up, talk and go away: a host node, small IP hosts, a Python guest, a traffic pair, "
    "and a real "
    "network namespace where this machine allows one. Takes less than 20 seconds and leaves nothing behind.",
    [("vbnet demo", "that is all")],
)


@app.command()
def demo() -> None:
    """Watch a small lab come up, talk and go away."""
    sys.exit(asyncio.run(_demo()))


def demo_lab() -> LabFile:
    """Return the lab of the demo, as its file says it."""
    return parse_topology((files("vbnet.cluster") / "demo.yaml").read_text(encoding="utf-8"), "demo.yaml", {})


async def _demo() -> int:
    started = time.monotonic()
    lab_file, has_namespace = _fitting(demo_lab())
    output.say(PICTURE)
    lab = Lab(make_plan(lab_file), watch=_show)
    try:
        await lab.up(TIMEOUT_S)
        _title(f"Up after {time.monotonic() - started:.1f} s. All guests can pass traffic.")
        watching = asyncio.ensure_future(lab.run())
        is_good = await _talk(lab, has_namespace)
        watching.cancel()
    finally:
        await lab.down()
    left = [item for item in clean.find_leftovers() if item.lab == lab_file.topology.name]
    _title("Down again. " + ("Left behind: nothing." if not left else f"Left behind: {left}"))
    output.say(f"  {time.monotonic() - started:.1f} s in all. Next: examples/, docs/lab.md, `vbnet --help`.")
    return 0 if is_good and not left else 1


def _fitting(lab_file: LabFile) -> tuple[LabFile, bool]:
    """Leave out the namespace where this machine does not allow one, and say so."""
    found = privileges.examine()
    if found.has_namespaces and found.tun is None:
        return lab_file, True
    output.note(
        "Without network namespaces on this machine, the guest `ns` is left out; `vbnet doctor` says what helps."
    )
    guests = {name: guest for name, guest in lab_file.topology.guests.items() if name != "ns"}
    topology = msgspec.structs.replace(lab_file.topology, guests=guests)
    return LabFile(topology, Source(lab_file.source.file, lab_file.source.data, lab_file.source.lines)), False


async def _talk(lab: Lab, has_namespace: bool) -> bool:
    is_good = True
    if has_namespace:
        is_good &= await _inside(
            "The kernel's own ping, from the namespace to a small IP host",
            ["ping", "-n", "-c", "3", "-i", "0.2", "10.10.0.10"],
        )
        is_good &= await _inside(
            "The kernel's own TCP: curl fetches that host's page",
            ["curl", "-s", "-i", "--max-time", "5", "http://10.10.0.10/"],
        )
    _title("The Python guest built ARP requests by hand and got answers")
    is_good &= await _ended(lab, "app")
    _print_log(lab, "app", 5)
    _title("The traffic pair: 20 000 frames a second for two seconds, each with the time it was due")
    is_good &= await _ended(lab, "gen")
    await asyncio.sleep(REPORT_EVERY_S * 1.2)
    sent, received = _counted(lab, "gen")["sent"], _counted(lab, "sink")
    latency = {name: received["latency"][f"{name}_ns"] / 1000 for name in ("p50", "p99", "max")}
    output.say(f"  gen:  sent {sent['frames']:,} frames of 64 bytes")
    output.say(f"  sink: got {received['received']['frames']:,}, lost {received['received']['lost']:,}")
    output.say("  latency: half within {p50:.0f} us, 99 % within {p99:.0f} us, worst {max:.0f} us".format(**latency))
    return is_good


async def _inside(title: str, command: Sequence[str]) -> bool:
    """Run a program inside the namespace, the way a user would, and show what it prints."""
    _title(title)
    if shutil.which(command[0]) is None:
        output.say(f"  ({command[0]} is not installed here)")
        return True
    output.say(f"  $ vbnet exec ns -- {' '.join(command)}")
    process = await asyncio.create_subprocess_exec(
        *own_command(),
        "exec",
        "--lab",
        "demo",
        "ns",
        "--",
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), PROGRAM_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        output.say(f"  no end after {PROGRAM_TIMEOUT_S:g} s")
        return False
    for line in said.decode(errors="replace").splitlines()[:14]:
        output.say(f"  {line[:110]}")
    return process.returncode == 0


async def _ended(lab: Lab, guest: str) -> bool:
    """Wait until a guest has done its work; say whether it went well."""
    try:
        async with asyncio.timeout(TALK_S):
            while lab.state.guests[guest].state == "ready":
                await lab.changed()
    except TimeoutError:
        return False
    return lab.state.guests[guest].state == "ended"


def _log_lines(lab: Lab, name: str) -> list[str]:
    return (RunDir(lab.folder).logs / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()


def _print_log(lab: Lab, name: str, lines: int) -> None:
    for line in _log_lines(lab, name)[-lines:]:
        output.say(f"  {name}: {line}")


def _counted(lab: Lab, name: str) -> dict[str, dict[str, int]]:
    """Return what a traffic guest said last."""
    return msgspec.json.decode(_log_lines(lab, name)[-1], type=dict[str, dict[str, int]])


def _show(event: LabEvent) -> None:
    """Print the steps of coming up that a newcomer wants to see."""
    if event.step == "network" and event.done == event.total:
        output.say(f"  buses, switch and devices are there ({event.total} requests)")
    elif event.step == "guest" and event.state == "ready" and event.total:
        output.say(f"  guest {event.subject} can pass traffic ({event.done}/{event.total})")
    elif event.step in {"host", "guest"} and event.state in {"starting", "ready", "failed"}:
        output.say(f"  {event.step} {event.subject} is {event.state} {event.detail}".rstrip())


def _title(text: str) -> None:
    output.say(f"\n* {text}")

"""Benches between network namespaces: the kernel's own TCP, through vbnet's switch and through the kernel's.

```text
   iperf3 ─ TCP ─ eth0 ─ TAP ─▶ worker ─▶ TAP ─ eth0 ─ TCP ─ iperf3      with offloads, and frame by frame
   iperf3 ─ TCP ─ eth0 ─ veth ─ bridge ─ veth ─ eth0 ─ TCP ─ iperf3      the peer
```

Everything shares two cores: sender, receiver, and what is between them. The kernel's bridge needs no third thread and
no copy; vbnet's worker copies each frame out of one TAP and into the other.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from vbnet.cluster.lab import Lab
from vbnet.errors import ResourceError, UnsupportedError
from vbnet.load.bench.context import Context
from vbnet.load.bench.lab import processes, with_lab
from vbnet.load.bench.peers.bridge import Bridge, entering, why_not_installed
from vbnet.load.bench.row import Row
from vbnet.load.bench.summary import AtLeast
from vbnet.load.bench.turns import Contender, Outcome

__all__ = ["tcp"]

_MTU: Final = 1500
_SECONDS: Final = 3
_DEADLINE_SECONDS: Final = 30.0
_PORT: Final = 5201
_SHARE: Final = 0.7
_SWITCHES: Final = {"on": "10.66.0.2", "off": "10.67.0.2"}
"""The address of the second namespace, with offloads and without."""


def _topology(name: str) -> str:
    nics = "[{{switch: with, ip: 10.66.0.{0}/24}}, {{switch: without, ip: 10.67.0.{0}/24, offloads: false}}]"
    return f"""
name: {name}
switches: {{with: , without: }}
guests:
  one: {{kind: netns, nics: {nics.format(1)}}}
  two: {{kind: netns, nics: {nics.format(2)}}}
"""


def tcp(context: Context) -> Iterator[Row]:
    """TCP between two network namespaces (iperf3), MTU 1500, with offloads and without, against the kernel's bridge."""
    if shutil.which("iperf3") is None:
        raise UnsupportedError("iperf3 is not installed (Debian: iperf3)")
    missing = why_not_installed()
    if missing is not None:
        raise UnsupportedError(missing)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, context.cores.pair)
    try:
        outcome = with_lab(_topology(f"bench{os.getpid()}"), lambda lab, _seconds: _compete(context, lab))
    finally:
        os.sched_setaffinity(0, before)
    against = (Bridge.label, outcome.summaries[Bridge.label])
    for offloads in _SWITCHES:
        yield Row.of(
            "netns.tcp",
            {"mtu": _MTU, "offloads": offloads},
            "bits/s",
            outcome.summaries[offloads],
            outcome.placement,
            baseline=against,
            wanted=AtLeast(_SHARE) if offloads == "on" else None,
        )


def _compete(context: Context, lab: Lab) -> Outcome:
    with ExitStack() as stack:
        stack.enter_context(context.helpers(processes(lab)))
        for pid in processes(lab):
            _pin(pid, context.cores.pair)
        bridge = stack.enter_context(Bridge())
        guests = {name: process.identity.pid for name, process in lab.state.processes.items() if process.identity}
        ends = (guests["one"], guests["two"])
        seconds = 1 if context.is_quick else _SECONDS
        contenders = [
            Contender(offloads, functools.partial(_bits_per_second, ends, address, seconds))
            for offloads, address in _SWITCHES.items()
        ]
        contenders.append(
            Contender(bridge.label, functools.partial(_bits_per_second, bridge.pids, bridge.address, seconds))
        )
        return context.compete(contenders)


def _pin(pid: int, cores: Sequence[int]) -> None:
    """Keep all threads of a process on ``cores``."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def _bits_per_second(ends: Sequence[int], address: str, seconds: int) -> Sequence[float]:
    """Have the first namespace send to the second; one sample: what arrived there."""
    sender, receiver = ends
    server = subprocess.Popen(  # noqa: S603 - the bench's own program
        [*entering(receiver), "iperf3", "--server", "--one-off", "--forceflush", "--port", str(_PORT)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None  # noqa: S101 - asked for
        while "listening" not in (line := server.stdout.readline()):
            if not line:
                raise ResourceError("iperf3 does not listen", errno=0)
        command = ["iperf3", "--client", address, "--port", str(_PORT), "--time", str(seconds), "--json"]
        done = subprocess.run(  # noqa: S603 - as above
            [*entering(sender), *command], check=False, capture_output=True, text=True, timeout=_DEADLINE_SECONDS
        )
        report = json.loads(done.stdout or "{}")
        if done.returncode != 0 or "error" in report:
            raise ResourceError(f"iperf3 fails: {report.get('error', done.stderr)}", errno=0)
        server.communicate(timeout=_DEADLINE_SECONDS)
    finally:
        if server.poll() is None:
            server.kill()
            server.communicate()
    return [float(report["end"]["sum_received"]["bits_per_second"])]

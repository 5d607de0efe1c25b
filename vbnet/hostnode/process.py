"""The host node as a process of its own: log file, signals, and the word that it is ready."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vbnet.bus.descriptors import raise_descriptor_limit
from vbnet.bus.rundir import DEFAULT_NODE, RunDir
from vbnet.errors import VbnetError
from vbnet.hostnode.device import Log
from vbnet.hostnode.fabric import Fabric
from vbnet.hostnode.log import log_file
from vbnet.hostnode.node import HostNode, HostOptions

__all__ = ["main", "native_fabric", "run_host"]

_COUNTER_BYTES = 48 << 20
"""Room for what some four thousand guests with a network card, and some ten thousand signals more, count; and for the
latencies of some 1900 cards, which are let in while a quarter of it is left."""


def run_host(
    options: HostOptions,
    *,
    make_fabric: Callable[[], Fabric] | None = None,
    on_ready: Callable[[], None] | None = None,
    log: Log | None = None,
) -> None:
    """Run a host node until SIGTERM, SIGINT or ``node.shutdown``; returns when all is cleaned up.

    Args:
        options: how it is set up.
        make_fabric: makes the switch fabric, in this process, once the run directory is private; None runs without.
        on_ready: called once guests and operators can connect.
        log: where it writes; None writes to ``logs/host.log`` in the run directory.

    Raises:
        VbnetError: it could not start; nothing is left behind.
    """
    options.run_dir.create()
    raise_descriptor_limit()
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("vbnet-host", encoding="ascii")
    with contextlib.ExitStack() as stack:
        writer = log if log is not None else stack.enter_context(log_file(options.run_dir.logs / "host.log"))
        asyncio.run(_serve(options, make_fabric, on_ready, writer))


def native_fabric(run_dir: RunDir, workers: int = 1) -> Fabric:
    """The real switch fabric, counting into ``counters/host.counters`` of the run directory.

    Args:
        run_dir: exists already.
        workers: threads that move frames, >= 1.
    """
    from vbnet._native import CounterFile  # noqa: PLC0415 - hosts without switches do without
    from vbnet._native import Fabric as NativeFabric  # noqa: PLC0415

    counters = CounterFile.create(run_dir.counters / "host.counters", _COUNTER_BYTES)
    fabric: Fabric = NativeFabric(counters, workers)
    return fabric


async def _serve(
    options: HostOptions,
    make_fabric: Callable[[], Fabric] | None,
    on_ready: Callable[[], None] | None,
    log: Log,
) -> None:
    node = HostNode(options, log=log, fabric=make_fabric() if make_fabric is not None else None)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, node.ask_stop)
    await node.start()
    if on_ready is not None:
        on_ready()
    await node.run()


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m vbnet.hostnode``: 0 when it ended as asked, 1 when it could not start."""
    parser = argparse.ArgumentParser(prog="python -m vbnet.hostnode", description="Run a host node.")
    parser.add_argument("--node", default=DEFAULT_NODE, help="name of the node and of its run directory")
    parser.add_argument("--run-root", type=Path, default=None, help="folder of run directories")
    parser.add_argument("--tcp", default=None, help="tcp://ADDRESS:PORT for other machines (needs --keys)")
    parser.add_argument("--keys", type=Path, default=None, help="folder of this host's key and allow-list")
    parser.add_argument(
        "--workers", type=int, default=1, help="threads that move frames; 0 for a host without switches"
    )
    parser.add_argument("--ready-fd", type=int, default=None, help="write 'ready' to this descriptor, then close it")
    chosen = parser.parse_args(arguments)
    try:
        options = HostOptions(
            run_dir=RunDir.for_node(chosen.node, chosen.run_root), name=chosen.node, tcp=chosen.tcp, keys=chosen.keys
        )
        run_host(
            options,
            make_fabric=(lambda: native_fabric(options.run_dir, chosen.workers)) if chosen.workers else None,
            on_ready=None if chosen.ready_fd is None else lambda: _tell_ready(chosen.ready_fd),
        )
    except VbnetError as error:
        sys.stderr.write(f"vbnet host: {error}\n")
        return 1
    return 0


def _tell_ready(fd: int) -> None:
    with os.fdopen(fd, "wb") as pipe:
        pipe.write(b"ready\n")

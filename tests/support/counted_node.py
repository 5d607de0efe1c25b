"""A host node that is nothing but its run directory: a counters file that the test writes, on a clock of its own."""

from __future__ import annotations

import os
from pathlib import Path

from vbnet._native import CounterFile
from vbnet.bus.rundir import HostRecord, RunDir, start_ticks
from vbnet.hostnode.metrics import GUEST_STATES
from vbnet.hostnode.rows import Row, open_row
from vbnet.telemetry.catalogue import installed
from vbnet.telemetry.watch.look import Look, Watcher

__all__ = ["CountedNode"]

BEGIN_S = 1_800_000_000.0
FILE_BYTES = 1 << 24


class CountedNode:
    """One node.

    Args:
        root: where its run directory is made.
        name: of the node.
    """

    def __init__(self, root: Path, name: str = "lab") -> None:
        self.run_dir = RunDir.for_node(name, root)
        self.run_dir.create()
        self.counters = CounterFile.create(self.run_dir.counters / "host.counters", size=FILE_BYTES)
        self._rows: list[Row] = []  # a block is given back when nobody holds it
        self.now_s = BEGIN_S
        self.watcher = Watcher(self.run_dir, now_ns=lambda: int(self.now_s * 1e9), now_s=lambda: self.now_s)
        self.record(os.getpid())
        self.host = self.block("host")
        self.beat()

    def record(self, pid: int) -> None:
        """Say that the node is this process."""
        record = HostRecord(pid, "2027-01-15T08:00:00Z", "1", 1, 1, "4.3.5", start_ticks(pid))
        self.run_dir.write_host(record)

    def block(self, kind: str, **labels: str) -> Row:
        """Make a block."""
        row = open_row(installed().metrics.blocks[kind], labels, self.counters)
        self._rows.append(row)
        return row

    def beat(self, interval_s: float = 1.0) -> None:
        """Let the heartbeat be now."""
        self.host.set("node_heartbeat_timestamp_seconds", int(self.now_s * 1000))
        self.host.set("node_heartbeat_interval_seconds", int(interval_s * 1000))

    def guest(self, name: str, state: str = "ready", switch: str = "lan") -> Row:
        """Make a guest with a port and two signals; gives the port."""
        self.block("guest", guest=name).set("state", GUEST_STATES.index(state))
        device = f"{name}.eth0"
        self.block("device", device=device, type="venet")
        for queue in ("0", "1"):
            self.block("signal", guest=name, device=device, signal=f"eth0/{queue}")
        port = self.block("port", guest=name, device=device, switch=switch)
        for queue in ("transmit", "receive"):
            port.set(f"{queue}_slots", 64)
        return port

    def after(self, seconds: float) -> Look:
        """Look once more, so many seconds later; the node is alive meanwhile."""
        self.now_s += seconds
        self.beat()
        return self.watcher.look()

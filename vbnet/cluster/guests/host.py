"""The host node of a lab, in a process of its own."""

from __future__ import annotations

from vbnet.bus.rundir import RunDir
from vbnet.cluster.launch import Job
from vbnet.hostnode.fabric import Fabric


def run(job: Job) -> int:
    """Run the host node until the lab asks it to end."""
    from vbnet.hostnode.node import HostOptions  # noqa: PLC0415 -- sockets only in the process that is the host
    from vbnet.hostnode.process import run_host  # noqa: PLC0415 -- same

    run_dir = RunDir(job.folder)
    run_host(
        HostOptions(run_dir=run_dir, name=job.folder.name),
        make_fabric=lambda: make_fabric(run_dir, job.workers),
        on_ready=lambda: job.report(job.process.name, "ready"),
    )
    return 0


def make_fabric(run_dir: RunDir, workers: int) -> Fabric:
    """Make the native switch fabric of a host node, its counters in the run directory.

    Args:
        run_dir: of the host node.
        workers: native threads that move frames, >= 1.
    """
    from vbnet import _native  # noqa: PLC0415 -- only in the process that is a host

    run_dir.counters.mkdir(mode=0o700, exist_ok=True)
    counters = _native.CounterFile.create(run_dir.counters / "host.counters")
    fabric: Fabric = _native.Fabric(counters, workers=workers)
    return fabric

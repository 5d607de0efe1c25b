"""The host node of a lab, in a process of its own."""

from __future__ import annotations

from vbnet.bus.rundir import RunDir
from vbnet.cluster.launch import Job


def run(job: Job) -> int:
    """Run the host node until the lab asks it to end."""
    from vbnet.hostnode.node import HostOptions  # noqa: PLC0415 -- sockets only in the process that is the host
    from vbnet.hostnode.process import native_fabric, run_host  # noqa: PLC0415 -- same

    run_dir = RunDir(job.folder)
    run_host(
        HostOptions(run_dir=run_dir, name=job.folder.name),
        make_fabric=lambda: native_fabric(run_dir, job.workers),
        on_ready=lambda: job.report(job.process.name, "ready"),
    )
    return 0

"""Running a lab in the background: the supervisor's side, and that of the command that waits until it is ready."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from vbnet.cli import output
from vbnet.cli.failure import exit_code
from vbnet.cli.progress import Progress
from vbnet.cluster.lab import Lab, LabEvent
from vbnet.cluster.plan import Plan
from vbnet.cluster.supervise import Background, supervise
from vbnet.errors import VbnetError


def run_reporting(plan: Plan, timeout_s: float, fd: int) -> int:
    """Run as the background supervisor: events go to ``fd`` until the lab is ready, and to the log throughout.

    Returns:
        The exit code.
    """
    os.set_inheritable(fd, False)  # noqa: FBT003 -- the function's only way
    with os.fdopen(fd, "wb", buffering=0) as pipe:

        def watch(event: LabEvent) -> None:
            output.note(f"{event.step} {event.subject}: {event.state} {event.detail}".rstrip())
            if not pipe.closed:
                with suppress(BrokenPipeError):
                    pipe.write(msgspec.json.encode(event) + b"\n")
            if event.step == "lab" and event.state == "ready":
                pipe.close()

        try:
            return asyncio.run(supervise(Lab(plan, watch=watch), timeout_s))
        except VbnetError as error:
            watch(LabEvent("lab", plan.lab, "failed", str(error)))
            return exit_code(error)
        except Exception as error:
            watch(LabEvent("lab", plan.lab, "failed", f"this is a bug: {type(error).__name__}: {error}"))
            raise


def start_detached(command: Sequence[str], lab: str, progress: Progress) -> None:
    """Start the supervisor of a lab in the background; return when the lab is ready, or leave with its exit code.

    Args:
        command: supervises the lab in the foreground, and has the hidden option ``--report-fd``.
        lab: the lab's name.
        progress: shows how it comes up.

    Raises:
        BusyError: a lab of this name is up.
    """
    background = Background([*command], lab)
    last: LabEvent | None = None
    try:
        with progress:
            for last in background.events():
                if last.state != "failed" or last.step != "lab":
                    progress.show(last)
    except BaseException:
        background.stop()
        raise
    if last is None or last.step != "lab" or last.state != "ready":
        code = background.wait()
        output.note(f"vbnet: {last.detail if last else 'the supervisor ended before it began'}")
        sys.exit(code or 1)

"""A guest that is the user's own function.

``run: "hello.py:main"`` names a file (from the lab file's folder), ``run: "package.module:main"`` a module. The function
gets one argument, the guest. An ``async def`` runs on this process's event loop and gets the asynchronous guest; a plain
function runs in the main thread and gets the synchronous one. What it returns is the exit code (None is 0).

It starts once the whole lab is ready, so its peers answer.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vbnet.cluster.launch import Job
from vbnet.errors import UsageError

NIC_TIMEOUT_S = 30.0


def run(job: Job) -> int:
    """Run the function of a ``python`` guest in this process."""
    plan = job.process.guests[0]
    os.environ.update(plan.env)
    os.chdir(job.process.folder)
    function = load_function(str(plan.run), Path(job.process.folder))
    result = asyncio.run(_run_async(job, function)) if inspect.iscoroutinefunction(function) else _run_plain(job, function)
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def load_function(target: str, folder: Path) -> Callable[[Any], Any]:
    """Load ``file.py:function`` or ``module:function``.

    Raises:
        UsageError: no such file, module or function (the lab author's mistake).
    """
    where, _, name = target.rpartition(":")
    sys.path.insert(0, str((folder / where).resolve().parent if where.endswith(".py") else folder))
    if where.endswith(".py"):
        file = (folder / where).resolve()
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if spec is None or spec.loader is None or not file.is_file():
            raise UsageError(f"there is no file {file}; `run: {target}` names it", run=target)
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise UsageError(f"there is no module `{error.name}`; `run: {target}` needs it", run=target) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{where} has no function `{name}`; `run: {target}` names it", run=target)
    loaded: Callable[[Any], Any] = function
    return loaded


async def _run_async(job: Job, function: Callable[[Any], Any]) -> object:
    from vbnet.guestnode import GuestNode  # noqa: PLC0415 -- this process speaks to the bus only from here on

    plan = job.process.guests[0]
    async with await GuestNode.connect(job.folder, job.process.name) as node:
        guest = await node.join(plan.name, bus=plan.bus, kind="python", ram_bytes=plan.ram_bytes)
        for nic in plan.nics:
            await guest.nic(nic.name, timeout=NIC_TIMEOUT_S)
        job.report(plan.name, "ready")
        await job.gone_ahead()
        result: object = await function(guest)
        return result


def _run_plain(job: Job, function: Callable[[Any], Any]) -> object:
    from vbnet import Guest  # noqa: PLC0415 -- same

    plan = job.process.guests[0]
    with Guest(plan.name, run_dir=job.folder, bus=plan.bus, ram_bytes=plan.ram_bytes) as guest:
        for nic in plan.nics:
            guest.nic(nic.name, timeout=NIC_TIMEOUT_S)
        job.report(plan.name, "ready")
        job.wait_gone_ahead()
        result: object = function(guest)
        return result

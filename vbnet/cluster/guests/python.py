"""A guest that is the user's own function.

``run: "hello.py:main"`` names a file (from the lab file's folder), ``run: "package.module:main"`` a module. The
function gets one argument, the guest. An ``async def`` runs on this process's event loop and gets the asynchronous
guest; a plain function runs in the main thread and gets the synchronous one. What it returns is the exit code (None
is 0).

It starts once the whole lab is ready, so its peers answer.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vbnet.bus.limits import DEFAULT_RAM_BYTES
from vbnet.bus.link import Secrets
from vbnet.bus.rundir import RunDir
from vbnet.cluster.guests.waiting import with_host
from vbnet.cluster.launch import Job
from vbnet.cluster.plan import GuestPlan
from vbnet.errors import UsageError, VbnetError
from vbnet.guestnode import GuestNode
from vbnet.guestnode.sync import Guest as SyncGuest

NIC_TIMEOUT_S = 30.0
_PACKAGE = Path(__file__).parents[2]
"""Of vbnet, whose frames are of no use to whoever reads the traceback of their own code."""


def run(job: Job) -> int:
    """Run the function of a ``python`` guest in this process."""
    plan = job.process.guests[0]
    os.environ.update(plan.env)
    os.chdir(job.process.folder)
    function = load_function(str(plan.run), Path(job.process.folder))
    return _code(
        asyncio.run(_run_async(job, function)) if inspect.iscoroutinefunction(function) else _run_plain(job, function)
    )


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


class Where(NamedTuple):
    """A host node: its address, and keys if it is on another machine."""

    address: RunDir | str
    secrets: Secrets | None = None


def run_function(target: str, folder: Path, where: Where, name: str, bus: str | None) -> int:
    """Run a function as a guest of a host node in this process, outside of a lab.

    Args:
        target: ``file.py:function`` (from ``folder``) or ``module:function``.
        folder: where files and modules are looked for.
        where: the host node.
        name: of the guest.
        bus: to join; None makes a private one.

    Returns:
        The number that the function returned, else 0.

    Raises:
        SystemExit: the user's code raised something, which was printed. VbnetError: what it did not catch of ours.
    """
    with _own_mistakes():
        function = load_function(target, folder)
    if inspect.iscoroutinefunction(function):

        async def run_it() -> object:
            async with await GuestNode.connect(where.address, name, secrets=where.secrets) as node:
                guest = await node.join(name, bus)
                with _own_mistakes():
                    return await with_host(guest, function(guest))

        return _code(asyncio.run(run_it()))
    with SyncGuest(name, bus, address=where.address, secrets=where.secrets) as guest, _own_mistakes():
        return _code(function(guest))


@contextmanager
def _own_mistakes() -> Iterator[None]:
    """Print what the user's own code raised, with its traceback, and end with 1; our errors have messages of their own.

    Raises:
        SystemExit: 1, for what was printed.
    """
    try:
        yield
    except VbnetError:
        raise
    except Exception as error:
        where = error.__traceback__
        while where is not None and not _is_users(where.tb_frame.f_code.co_filename):
            where = where.tb_next
        traceback.print_exception(type(error), error, where)
        raise SystemExit(1) from error


def _is_users(file: str) -> bool:
    """Whether a file of code is neither of this package nor of what imports modules."""
    return not file.startswith("<frozen") and not Path(file).is_relative_to(_PACKAGE)


async def _run_async(job: Job, function: Callable[[Any], Any]) -> object:
    plan = job.process.guests[0]
    async with await GuestNode.connect(job.folder, job.process.name) as node:
        guest = await node.join(plan.name, plan.bus, ram_bytes=_ram_bytes(plan))
        for nic in plan.nics:
            await guest.nic(nic.name, NIC_TIMEOUT_S)
        job.report(plan.name, "ready")
        await job.gone_ahead()
        return await with_host(guest, function(guest))


def _run_plain(job: Job, function: Callable[[Any], Any]) -> object:
    plan = job.process.guests[0]
    with SyncGuest(plan.name, plan.bus, address=job.folder, ram_bytes=_ram_bytes(plan)) as guest:
        for nic in plan.nics:
            guest.nic(nic.name, NIC_TIMEOUT_S)
        job.report(plan.name, "ready")
        job.wait_gone_ahead()
        result: object = function(guest)
        return result


def _ram_bytes(plan: GuestPlan) -> int:
    """Return how much memory a guest gets when the lab file does not say: enough for all its NICs."""
    return plan.ram_bytes or DEFAULT_RAM_BYTES * max(1, len(plan.nics))


def _code(result: object) -> int:
    return result if isinstance(result, int) and not isinstance(result, bool) else 0

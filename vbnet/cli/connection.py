"""Reaching a host node from the command line: by name on this machine, by address and keys on another."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Concatenate

import typer
from typer.models import OptionInfo

from vbnet.bus.keys import KeyStore
from vbnet.bus.link import Secrets
from vbnet.bus.operator import Operator, SyncOperator
from vbnet.bus.rundir import DEFAULT_NODE, HOST_LOCK, RunDir, host_lives, run_folders, run_root
from vbnet.cli.completion import beginning_so
from vbnet.errors import NotFoundError, UnsupportedError, UsageError


def running_nodes() -> list[str]:
    """Return the names of the host nodes of this user that run now.

    Raises:
        ResourceError: the folder of run directories cannot be read.
    """
    return [entry.name for entry in run_folders(run_root()) if entry.is_dir() and host_lives(entry)]


def node_option(names: Callable[[], list[str]], text: str) -> OptionInfo:
    """Return the option that names a host node.

    Args:
        names: what a shell completes it with.
        text: its help.
    """

    def complete(incomplete: str) -> list[str]:
        return beginning_so(names, incomplete)

    option: OptionInfo = typer.Option("--node", "-n", envvar="VBNET_NODE", autocompletion=complete, help=text)
    return option


NodeOption = Annotated[
    str | None,
    node_option(
        running_nodes,
        "Host node: its name (a lab's node has the lab's name) or tcp://HOST:PORT; not needed when one runs here.",
    ),
]
KeysOption = Annotated[
    Path | None,
    typer.Option("--keys", envvar="VBNET_KEYS", help="Folder of keys (see `vbnet keys`), for tcp.", show_default=False),
]
ServerKeyOption = Annotated[
    str | None,
    typer.Option(
        "--server-key", envvar="VBNET_SERVER_KEY", help="Public key of the host node, for tcp.", show_default=False
    ),
]


_WHERE = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
    for name, option in (("node", NodeOption), ("keys", KeysOption), ("server_key", ServerKeyOption))
]


def default_keys() -> Path:
    """Return the folder of this user's keys."""
    return Path.home() / ".config" / "vbnet" / "keys"


def resolve(node: str | None) -> RunDir | str:
    """Return where the host node meant by ``--node`` is.

    Raises:
        NotFoundError: none runs here, or not that one.
        UsageError: several run and none was named.
    """
    if node is not None and node.startswith("tcp:"):
        return node
    running = running_nodes()
    if node is not None:
        if node not in running:
            there = f"running: {', '.join(running)}" if running else "none runs"
            raise NotFoundError(f"no host node `{node}` runs here; {there}", node=node)
        return RunDir.for_node(node)
    if len(running) == 1:
        return RunDir.for_node(running[0])
    if DEFAULT_NODE in running:
        return RunDir.for_node(DEFAULT_NODE)
    if not running:
        raise NotFoundError(
            "no host node runs here; start a lab with `vbnet up FILE`, or one by itself with `vbnet host run`"
        )
    raise UsageError(f"several host nodes run; name one with --node: {', '.join(running)}")


def kept(node: str | None) -> RunDir:
    """Return the run directory meant by ``--node``, also of a host node that hangs or is dead.

    Raises:
        NotFoundError: there is none.
        UsageError: several host nodes run, or left something, and none was named; or it is on another machine.
    """
    if node is not None and node.startswith("tcp:"):
        raise UnsupportedError(f"{node} is on another machine; what it keeps is read there", node=node)
    if node is None and running_nodes():
        found = resolve(None)
        assert isinstance(found, RunDir)  # noqa: S101 -- no address was given
        return found
    there = _nodes_there()
    if node is None and len(there) == 1:
        return RunDir.for_node(there[0])
    if node is None and there:
        raise UsageError(f"no host node runs, several did; name one with --node: {', '.join(there)}")
    run_dir = RunDir.for_node(DEFAULT_NODE if node is None else node)
    if node is None or not run_dir.path.is_dir():
        known = f"there is: {', '.join(there)}" if there else f"nothing is in {run_root()}"
        raise NotFoundError(f"no host node {f'`{node}` ' if node else ''}has run here; {known}", node=node)
    run_dir.check()
    return run_dir


def _nodes_there() -> list[str]:
    """Return the names of the host nodes of this user that run, or left a run directory."""
    return [entry.name for entry in run_folders(run_root()) if (entry / HOST_LOCK).exists()]


def secrets(address: RunDir | str, keys: Path | None, server_key: str | None) -> Secrets | None:
    """Return the keys for an address; none are needed on this machine.

    Raises:
        UsageError: tcp without the host node's public key.
    """
    if not isinstance(address, str):
        return None
    if server_key is None:
        raise UsageError(f"{address} needs the host node's public key: --server-key (its `vbnet keys show` prints it)")
    return Secrets(KeyStore(keys or default_keys()).load(), server_key)


def connect(node: str | None, keys: Path | None = None, server_key: str | None = None) -> SyncOperator:
    """Connect to a host node; use the result as a context manager."""
    address = resolve(node)
    return SyncOperator(address, secrets=secrets(address, keys, server_key))


async def connect_async(node: str | None, keys: Path | None = None, server_key: str | None = None) -> Operator:
    """Like :func:`connect`, for a running event loop."""
    address = resolve(node)
    return await Operator.connect(address, secrets=secrets(address, keys, server_key))


def on_host(work: Callable[Concatenate[SyncOperator, ...], None]) -> Callable[..., None]:
    """Turn a function of an operator into a command: with the options that say which host node, before its last one.

    The operator is connected while the function runs, and never before the command line was found to be right.
    """

    @functools.wraps(work)
    def command(*, node: str | None, keys: Path | None, server_key: str | None, **rest: object) -> None:
        with connect(node, keys, server_key) as operator:
            work(operator, **rest)

    _, *own, last = inspect.signature(work, eval_str=True).parameters.values()
    shown = [*own, *_WHERE, last]
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # Typer reads it
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return command

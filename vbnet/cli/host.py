"""`vbnet host`: a host node by itself, without a lab."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from vbnet.bus.operator import SyncOperator
from vbnet.bus.rundir import DEFAULT_NODE, RunDir, host_lives
from vbnet.cli import output
from vbnet.cli.connection import KeysOption, NodeOption, ServerKeyOption, connect, default_keys, on_host, resolve
from vbnet.cli.output import Format, FormatOption
from vbnet.errors import BusyError, DeadlineError

app = output.application(
    "Run, inspect and stop a host node by itself. Labs bring their own.",
    [
        ("vbnet host run", "run one here until Ctrl-C"),
        ("vbnet host run --tcp tcp://10.0.0.1:7400", "let in other machines, with keys"),
        ("vbnet host run --metrics 127.0.0.1:9617", "with an exporter for Prometheus beside it"),
        ("vbnet host info", "who it is and how it does"),
    ],
    is_group=True,
)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="Name of the node.")] = DEFAULT_NODE,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Native threads that move frames.")] = 1,
    tcp: Annotated[
        str | None,
        typer.Option(help="Also listen at tcp://ADDRESS:PORT for other machines; needs keys.", show_default=False),
    ] = None,
    *,
    keys: KeysOption = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Serve metrics at ADDRESS:PORT from a process beside it.", show_default=False),
    ] = None,
    web_config: Annotated[
        Path | None,
        typer.Option(help="TLS and users for --metrics, see `vbnet metrics serve --help`.", show_default=False),
    ] = None,
) -> None:
    """Run a host node until Ctrl-C, SIGTERM or `vbnet host stop`."""
    from vbnet.hostnode.node import HostOptions  # noqa: PLC0415 -- same
    from vbnet.hostnode.process import native_fabric, run_host  # noqa: PLC0415 -- same

    run_dir = RunDir.for_node(name)
    options = HostOptions(run_dir=run_dir, name=name, tcp=tcp, keys=(keys or default_keys()) if tcp else None)
    with ExitStack() as stack:
        where = ""
        if metrics is not None:
            from vbnet.telemetry.serve import EXPORTER_LOG, ExporterProcess  # noqa: PLC0415 -- only when asked for

            run_dir.create()
            log = run_dir.logs / EXPORTER_LOG
            root = run_dir.path.parent
            exporter = stack.enter_context(
                ExporterProcess(metrics, web_config=web_config, node=name, root=root, log=log)
            )
            exporter.wait_ready()
            where = f", its metrics at {exporter.address}"
        run_host(
            options,
            make_fabric=lambda: native_fabric(run_dir, workers),
            on_ready=lambda: output.note(f"host node {name} is ready in {run_dir.path}{where}; Ctrl-C ends it"),
        )
    _remove_folder(run_dir.path)


@app.command()
@on_host
def info(
    operator: SyncOperator,
    *,
    how: FormatOption = Format.table,
) -> None:
    """Show who the host node is and how it does."""
    output.print_record(operator.node_info(), how)


@app.command()
def stop(
    *,
    node: NodeOption = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for its end.")] = 10.0,
    keys: KeysOption = None,
    server_key: ServerKeyOption = None,
    how: FormatOption = Format.table,
) -> None:
    """Have the host node end; its guests are told."""
    from vbnet.cluster.process import identify, wait_ended  # noqa: PLC0415 -- only this verb waits

    address = resolve(node)
    with connect(node, keys, server_key) as operator:
        facts = operator.node_info()
        identity = identify(facts.pid) if isinstance(address, RunDir) else None
        operator.node_shutdown()
    if identity is not None and not wait_ended(identity, timeout):
        raise DeadlineError(f"host node {facts.name} (process {facts.pid}) did not end within {timeout:g} s")
    if isinstance(address, RunDir):
        _remove_folder(address.path)
    output.print_done(f"host node {facts.name} ended", {"name": facts.name, "pid": facts.pid, "result": "ended"}, how)


def _remove_folder(folder: Path) -> None:
    """Remove the run directory of a host node that has ended in order, if it did not do so itself."""
    with suppress(BusyError):
        if folder.is_dir() and not host_lives(folder):
            from vbnet.cluster.clean import clean_folder  # noqa: PLC0415 -- rarely needed

            clean_folder(folder)

"""`vbnet metrics`: what a host node counts, for Prometheus and for a look from the shell."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vbnet.bus.rundir import DEFAULT_NODE, RunDir, counted_nodes, run_root
from vbnet.cli import output
from vbnet.cli.connection import node_option, running_nodes
from vbnet.errors import NotFoundError, UsageError


class MetricsFormat(StrEnum):
    """How metrics are printed."""

    text = "text"
    openmetrics = "openmetrics"
    json = "json"


NodeOption = Annotated[
    str | None,
    node_option(
        lambda: counted_nodes(run_root()),
        "Host node (a lab's node has the lab's name), also one that hangs or was killed; not needed for one.",
    ),
]

app = output.application(
    "Print what a host node counts, as Prometheus reads it.\n\nReads shared memory only, so it works on a node that "
    "hangs, is stopped or was killed, and disturbs none. docs/metrics.md lists every metric.",
    [
        ("vbnet metrics", "all of the node that runs here, as text"),
        ("vbnet metrics --node lab --format json", "of one node, for a program"),
        ("vbnet metrics | grep drop_total", "what was dropped, by reason"),
        ("vbnet metrics serve", "serve every node at http://127.0.0.1:9617/ for Prometheus"),
    ],
)


@app.callback(invoke_without_command=True)
def metrics(
    context: typer.Context,
    node: NodeOption = None,
    how: Annotated[
        MetricsFormat,
        typer.Option("--format", help="Prometheus' text format, OpenMetrics, or one JSON document."),
    ] = MetricsFormat.text,
) -> None:
    """Print what a host node counts, as Prometheus reads it."""
    if context.invoked_subcommand is not None:
        return
    run_dir = which(node)
    if how is MetricsFormat.json:
        output.print_json(_plain(run_dir))
        return
    from vbnet.telemetry import Exposition, Format  # noqa: PLC0415 -- native code only where it is used

    wanted = Format.OPENMETRICS if how is MetricsFormat.openmetrics else Format.TEXT
    sys.stdout.write(Exposition(run_dir).render(wanted).decode())
    sys.stdout.flush()


@app.command()
def serve(
    listen: Annotated[
        str, typer.Option("--listen", help="ADDRESS:PORT; beyond this machine only with TLS and users.")
    ] = "127.0.0.1:9617",
    web_config: Annotated[
        Path | None,
        typer.Option("--web-config", help="File with TLS and users, see below.", show_default=False),
    ] = None,
    node: NodeOption = None,
) -> None:
    """Serve metrics over HTTP until Ctrl-C: of one node with --node, else of every node of this user.

    /metrics is one node, /metrics?node=NAME one of several, /sd lists all of them for Prometheus' HTTP service
    discovery (http_sd_configs). A password or TLS comes from --web-config: tls_server_config with cert_file and
    key_file, basic_auth_users with bcrypt hashes; changed files are used from the next connection on.
    """
    from vbnet.telemetry import serve as exporter  # noqa: PLC0415 -- only this verb serves
    from vbnet.telemetry.server import Listen, MetricsServer  # noqa: PLC0415 -- same

    if node is not None:
        which(node)
    listening, web = exporter.prepare(listen, web_config)
    server = MetricsServer(listening, web, node)
    where = Listen(*listening.getsockname()[:2])
    scheme = "https" if web.current.tls is not None else "http"
    exporter.serve(server, lambda: output.note(f"serving {scheme}://{where}/metrics; Ctrl-C ends it"))


def which(node: str | None) -> RunDir:
    """Return the run directory of the node that is meant, running or not.

    Raises:
        NotFoundError: none ran here, or not that one. UsageError: several did and none was named.
    """
    counted = counted_nodes(run_root())
    if node is not None:
        if node not in counted:
            there = f"there are: {', '.join(counted)}" if counted else f"none left any in {run_root()}"
            raise NotFoundError(f"no counters of a host node `{node}` here; {there}", node=node)
        return RunDir.for_node(node)
    candidates = running_nodes() or counted
    if len(candidates) == 1:
        return RunDir.for_node(candidates[0])
    if DEFAULT_NODE in candidates:
        return RunDir.for_node(DEFAULT_NODE)
    if not candidates:
        raise NotFoundError(
            f"no host node ran in {run_root()}; start a lab with `vbnet up FILE`, or a node with `vbnet host run`"
        )
    raise UsageError(f"several host nodes are here; name one with --node: {', '.join(candidates)}")


def _plain(run_dir: RunDir) -> list[dict[str, Any]]:
    from vbnet.telemetry.collector import read_families  # noqa: PLC0415 -- same

    return [
        {
            "name": family.name,
            "kind": family.type,
            "unit": family.unit,
            "help": family.documentation,
            "samples": [
                {"name": sample.name, "labels": sample.labels, "value": sample.value} for sample in family.samples
            ],
        }
        for family in read_families(run_dir)
    ]

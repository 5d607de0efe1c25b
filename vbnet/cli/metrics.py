"""`vbnet metrics`: what a host node counts, for Prometheus and for a look from the shell."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from vbnet.bus.rundir import DEFAULT_NODE, RunDir, run_root
from vbnet.cli import output
from vbnet.cli.connection import running_nodes
from vbnet.errors import NotFoundError, UsageError


class MetricsFormat(StrEnum):
    """How metrics are printed."""

    text = "text"
    openmetrics = "openmetrics"
    json = "json"


def counted_nodes() -> list[str]:
    """Return the names of this user's host nodes that left counters, running or not."""
    try:
        return sorted(entry.name for entry in run_root().iterdir() if (entry / "counters").is_dir())
    except OSError:
        return []


def complete_counted(incomplete: str) -> list[str]:
    """Return those that begin so."""
    return [name for name in counted_nodes() if name.startswith(incomplete)]


NodeOption = Annotated[
    str | None,
    typer.Option(
        "--node",
        "-n",
        envvar="VBNET_NODE",
        autocompletion=complete_counted,
        help="Host node (a lab's node has the lab's name), also one that hangs or was killed; not needed for one.",
    ),
]

app = output.application(
    "Print what a host node counts, as Prometheus reads it.\n\nReads shared memory only, so it works on a node that "
    "hangs, is stopped or was killed, and disturbs none. docs/metrics.md lists every metric.",
    [
        ("vbnet metrics", "all of the node that runs here, as text"),
        ("vbnet metrics --node lab --format json", "of one node, for a program"),
        ("vbnet metrics | grep drop_total", "what was dropped, by reason"),
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
    from vbnet.telemetry import Exposition  # noqa: PLC0415 -- native code only where it is used

    sys.stdout.write(Exposition(run_dir).render(openmetrics=how is MetricsFormat.openmetrics).decode())
    sys.stdout.flush()


def which(node: str | None) -> RunDir:
    """Return the run directory of the node that is meant, running or not.

    Raises:
        NotFoundError: none ran here, or not that one. UsageError: several did and none was named.
    """
    counted = counted_nodes()
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

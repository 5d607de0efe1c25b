"""`vbnet monitor`: Prometheus and Grafana for what runs here, until Ctrl-C."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from vbnet.bus.rundir import counted_nodes, run_root
from vbnet.cli import output
from vbnet.cli.labs import complete_lab
from vbnet.cli.output import Format, FormatOption
from vbnet.errors import NotFoundError

app = output.application(
    "Start Prometheus and Grafana for what runs here, until Ctrl-C.\n\nPrometheus gets vbnet's rules and alerts and "
    "finds labs and host nodes as they come and go; Grafana gets it as datasource, and vbnet's dashboards. Both must "
    "be installed; what is missing is said, and the rest is started. Everything listens at 127.0.0.1 only, where "
    "Grafana lets everybody look and nobody change.\n\nWhatever was started ends with this command, also when it is "
    "killed. Data is in the run directory and is removed, unless --data says where to keep it. Exit code 3 for a lab "
    "or exporter that is not there, 5 when the folder or a port is taken, 4 or 6 when a program did not start, 7 when "
    "one ended later; 0 after Ctrl-C.",
    [
        ("vbnet monitor", "of everything that runs here"),
        ("vbnet monitor demo", "of one lab"),
        ("vbnet monitor --data ~/vbnet-metrics", "keep what was measured"),
        ("vbnet monitor --format json", "print the addresses as JSON once all answer"),
    ],
)

_LOOK_EVERY_S = 1.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

PortOption = Annotated[
    int | None, typer.Option(min=1, max=65535, help="Port to use; the usual one or a free one.", show_default=False)
]


@app.command()
def monitor(
    labs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[LAB]...",
            help="Only these labs or host nodes; all, also later ones, when left out.",
            autocompletion=complete_lab,
            show_default=False,
        ),
    ] = None,
    *,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder to keep data in; made when it is not there.", show_default=False),
    ] = None,
    prometheus_port: PortOption = None,
    grafana_port: PortOption = None,
    exporter: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS:PORT",
            help="Exporter of all nodes that runs already (`vbnet metrics serve`); one is started when left out.",
            show_default=False,
        ),
    ] = None,
    how: FormatOption = Format.table,
) -> None:
    """Start Prometheus and Grafana for what runs here, until Ctrl-C."""
    from vbnet.cluster.monitor import Monitor, Options, missing_programs  # noqa: PLC0415 -- only this verb monitors

    root = run_root()
    here = counted_nodes(root)
    if unknown := [name for name in labs or [] if name not in here]:
        there = f"there are: {', '.join(here)}" if here else "none is here; start one with `vbnet up FILE`"
        raise NotFoundError(f"there is no lab or host node `{unknown[0]}`; {there}", lab=unknown[0])
    stopped = threading.Event()
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda _number, _frame: stopped.set())
    for missing in missing_programs():
        output.note(f"{missing.program} is not installed: {missing.fix}")
    options = Options(root, labs or (), data, prometheus_port, grafana_port, exporter)
    with Monitor(options, stopped) as running:
        output.print_rows(running.programs(), ("program", "address"), how)
        output.note(f"data is in {running.data}; Ctrl-C ends all of it")
        told: list[str] = []
        while not stopped.is_set():
            running.check()
            now = _lines(running.scraped(), running.firing())
            for line in now:
                if line not in told:
                    output.note(line)
            told = now
            stopped.wait(_LOOK_EVERY_S)


def _lines(scraped: dict[str, str] | None, firing: list[str] | None) -> list[str]:
    """Say what Prometheus sees, in lines that stay the same while it does."""
    lines = []
    if scraped is not None:
        names = ", ".join(f"{name} ({health})" for name, health in sorted(scraped.items()))
        lines.append(f"scraping: {names or 'nothing yet; labs that come are found'}")
    if firing is not None:
        lines.append(f"alerts: {', '.join(firing) or 'none'}")
    return lines

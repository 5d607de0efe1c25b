"""`vbnet graph`: the topology of a running host node or lab, or of a lab file, as DOT, Mermaid or SVG."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vbnet.bus.rundir import RunDir
from vbnet.cli import output
from vbnet.cli.completion import beginning_so
from vbnet.cli.connection import KeysOption, NodeOption, ServerKeyOption, connect, resolve, running_nodes
from vbnet.cli.output import Format, FormatOption
from vbnet.cluster.graph import Card, Device, Facts, Guest, Rates, Signal, facts_of_plan, make_graph
from vbnet.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from vbnet.bus.admin import DeviceInfo
    from vbnet.bus.operator import SyncOperator

SUFFIXES = {".dot": "dot", ".gv": "dot", ".mmd": "mermaid", ".mermaid": "mermaid", ".svg": "svg"}


class Language(StrEnum):
    """What a graph is written in."""

    dot = "dot"
    mermaid = "mermaid"
    svg = "svg"


app = output.application(
    "Draw the topology of a running lab or host node, or of a lab file that is not running.\n\nOf a running one, each "
    "link shows what passes now, both ways together; links that are down are dashed, quarantined ones red. Many guests "
    "that differ only in their number are one node. With --format json, the nodes and edges themselves.",
    [
        ("vbnet graph", "the lab that runs here, as Mermaid"),
        ("vbnet graph demo -o demo.svg", "a running lab, as a picture"),
        ("vbnet graph lab.yaml --as dot | dot -Tpng", "a lab file"),
        ("vbnet graph --signals --all -o all.svg", "with signals, and each guest by itself"),
    ],
)


def complete_what(incomplete: str) -> list[str]:
    """Return running host nodes, and lab files in this folder, that begin so."""
    files = [path.name for path in sorted(Path().glob("*.y*ml")) if path.name.startswith(incomplete)]
    return [*beginning_so(running_nodes, incomplete), *files]


@app.command()
def graph(
    what: Annotated[
        str | None,
        typer.Argument(
            help="A running lab, or a lab file (YAML); not needed when one lab runs.",
            autocompletion=complete_what,
            show_default=False,
        ),
    ] = None,
    *,
    language: Annotated[
        Language | None,
        typer.Option("--as", help="Default: by the name of the -o file, else mermaid.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write into this file.", show_default=False)
    ] = None,
    interval: Annotated[
        float, typer.Option(min=0, max=60, help="Seconds over which rates are measured; 0 shows none.")
    ] = 1.0,
    signals: Annotated[
        bool, typer.Option("--signals", help="Also draw signals: who may raise them, for whom.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Each guest by itself, however many there are.")] = False,
    node: NodeOption = None,
    keys: KeysOption = None,
    server_key: ServerKeyOption = None,
    how: FormatOption = Format.table,
) -> None:
    """Draw the topology of a running lab or host node, or of a lab file."""
    chosen = _language(language, file)
    if what is not None and _is_file(what):
        facts = _of_file(Path(what))
    else:
        if what is not None and node is not None and what != node:
            raise UsageError(f"give {what!r} or --node {node}, not both", got=what)
        facts = _of_node(what or node, keys, server_key, interval, with_signals=signals)
    made = make_graph(facts, show_all=every)
    if how is Format.json and file is None:
        output.print_json(made)
        return
    from vbnet.cluster.draw import LANGUAGES  # noqa: PLC0415 -- only what is drawn pays for it

    drawn = LANGUAGES[chosen](made)
    if file is None:
        output.say(drawn.rstrip("\n"))
        return
    try:
        file.write_text(drawn, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write {file}: {error.strerror}", errno=error.errno or 0) from error
    told = {"file": str(file), "as": chosen, "nodes": len(made.nodes), "edges": len(made.edges)}
    output.print_done(f"{file}: {len(made.nodes)} nodes, {len(made.edges)} edges", told, how)


def _language(language: Language | None, file: Path | None) -> str:
    if language is not None:
        return language.value
    if file is None:
        return Language.mermaid.value
    try:
        return SUFFIXES[file.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"{file} does not say what to draw; name it {', '.join(SUFFIXES)}, or say --as dot|mermaid|svg",
            got=file.suffix,
        ) from None


def _is_file(what: str) -> bool:
    return Path(what).suffix in {".yaml", ".yml"} or "/" in what


def _of_file(file: Path) -> Facts:
    from vbnet.cluster.plan import make_plan  # noqa: PLC0415 -- YAML is loaded for files only
    from vbnet.cluster.topology import load_topology  # noqa: PLC0415 -- same

    return facts_of_plan(make_plan(load_topology(file)))


def _of_node(
    node: str | None, keys: Path | None, server_key: str | None, interval_s: float, *, with_signals: bool
) -> Facts:
    address = resolve(node)
    with connect(node, keys, server_key) as operator:
        if interval_s and isinstance(address, RunDir):
            rates = _rates(address, interval_s)
        else:
            rates = {}
            if interval_s:
                output.note(f"no rates: counters are read in shared memory, and {address} is another machine")
        return _facts(operator, rates, with_signals=with_signals)


def _facts(operator: SyncOperator, rates: dict[str, Rates], *, with_signals: bool) -> Facts:
    from vbnet.cluster.topology import nic_classes  # noqa: PLC0415 -- lab files are not needed for anything else here

    buses, guests, devices = operator.bus_list(), operator.guest_list(), operator.device_list()
    ports = {port["name"]: port for port in operator.port_list()}
    facts = Facts(operator.node_info().name, operator.switch_list(), [bus.name for bus in buses])
    facts.guests = [Guest(guest.name, guest.bus, guest.kind, guest.state) for guest in guests]
    for device in devices:
        if device.type in nic_classes() and device.plugs:
            facts.cards.append(_card(device, ports.pop(device.name, None), rates))
        else:
            on = tuple(dict.fromkeys(plug.bus for plug in device.plugs))
            facts.devices.append(Device(device.name, device.type or "no type yet", on))
    facts.cards += [
        Card(name, port["switch"], None, "", port["is_up"], _faults(port), rates.get(name))
        for name, port in ports.items()
        if port["switch"]
    ]
    if with_signals:
        facts.signals = [_signal(row) for row in operator.signal_list() if row["to"] is not None]
    return facts


def _card(device: DeviceInfo, port: dict[str, Any] | None, rates: dict[str, Rates]) -> Card:
    """A card, which is down as long as no guest drives it."""
    is_up = port is not None and bool(port["is_up"])
    faults = _faults(port) if port is not None else ()
    return Card(
        device.name, device.attributes.get("switch", ""), device.plugs[0].bus, "", is_up, faults, rates.get(device.name)
    )


def _faults(port: dict[str, Any]) -> tuple[str, ...]:
    faults = ((way, port.get(f"{way}_fault")) for way in ("transmit", "receive"))
    return (*(f"{way}: {rule}" for way, rule in faults if rule), *(("gone",) if port.get("is_gone") else ()))


def _signal(row: dict[str, Any]) -> Signal:
    owner = row["guest"]
    by_hand = row["device"] == "signal"
    granted = tuple(row["granted"])
    raisers = granted or ((owner,) if owner and by_hand else ())
    name = f"{owner}/{row['name']}" if owner else row["name"]
    return Signal(name, row["to"], row["priority"], "" if by_hand else row["device"], raisers, bool(row["is_blocked"]))


def _rates(run_dir: RunDir, interval_s: float) -> dict[str, Rates]:
    """Measure, for each port, what passes both ways together."""
    before, begin_s = _counted(run_dir), time.monotonic()
    time.sleep(interval_s)
    after, end_s = _counted(run_dir), time.monotonic()
    return {
        port: Rates(*((now - then) / (end_s - begin_s) for now, then in zip(after[port], before[port], strict=True)))
        for port in before.keys() & after.keys()
        if all(now >= then for now, then in zip(after[port], before[port], strict=True))
    }


def _counted(run_dir: RunDir) -> dict[str, tuple[int, int]]:
    from vbnet.telemetry import read_counted  # noqa: PLC0415 -- native code only where it is used

    return {
        block.labels.get("device", ""): (
            block.values["transmit_frames"] + block.values["receive_frames"],
            block.values["transmit_bytes"] + block.values["receive_bytes"],
        )
        for block in read_counted(run_dir.counters, "port")
    }

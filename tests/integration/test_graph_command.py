"""`vbnet graph` against a host node with traffic, and on lab files; the command runs in this process."""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import vbnet
from tests.support.lab import BROADCAST, Lab, Net, Station
from tests.support.waiting import PATIENCE, eventually
from vbnet.cli.main import main
from vbnet.devices.intc.driver import IntcDriver

Run = Callable[..., str]
TAIL = 0x80
"""Offset of the tail in a ring, by docs/wire/ring.md."""

FILE = "name: t\nswitches: {lan: }\nguests:\n  g: {kind: traffic, count: 2, nics: [{switch: lan}]}\n"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    """Give a function that runs ``vbnet`` with these words, and gives what it printed."""

    def running(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(words)
        printed = capsys.readouterr()
        assert code == ended.value.code, printed
        return printed.err if code else printed.out

    return running


@pytest.fixture
def run(command: Run) -> Run:
    """Give a function that runs ``vbnet graph`` with these words, and gives what it printed."""
    return functools.partial(command, "graph")


@pytest.fixture
def running(own_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    """Give the test a host node that ``vbnet graph`` finds, as the only one."""
    monkeypatch.setenv("VBNET_RUN_DIR", str(own_lab.run_dir.path.parent))
    with own_lab.net() as net:
        yield net


def link(graph: dict[str, Any], guest: str) -> dict[str, Any]:
    """The edge between the switch and a guest."""
    [found] = [edge for edge in graph["edges"] if edge["kind"] == "link" and edge["target"] == f"guest:{guest}"]
    assert isinstance(found, dict)
    return found


@contextmanager
def sending(station: Station) -> Iterator[None]:
    """Have a guest send broadcasts without end meanwhile."""
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            station.nic.send([station.to(BROADCAST)] * 16, PATIENCE)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_running_node_is_drawn_with_what_passes_its_links(run: Run, running: Net) -> None:
    """Frames that pass are a rate; a link whose carrier is off is down; without an interval nothing is measured."""
    near, far = running.station(), running.station()
    running.operator.device_set(f"{far.guest.name}.eth0", "enabled", "0")

    with sending(near):
        graph = json.loads(run("--interval", "0.2", "--format", "json"))
    unmeasured = json.loads(run("--interval", "0", "--format", "json"))

    assert {near.guest.name, far.guest.name, running.switch} == {node["label"] for node in graph["nodes"]}
    assert link(graph, near.guest.name)["rates"]["packets"] > 0
    assert link(graph, near.guest.name)["rates"]["bytes"] >= 60 * link(graph, near.guest.name)["rates"]["packets"]
    assert ("down", ["eth0", "down"]) == tuple(link(graph, far.guest.name)[key] for key in ("state", "lines"))
    assert ("ok", None) == tuple(link(unmeasured, near.guest.name)[key] for key in ("state", "rates"))


def test_a_quarantined_queue_is_seen_in_the_graph_the_events_and_the_errors(
    run: Run, command: Run, running: Net
) -> None:
    """A guest says that its ring has more than fits: its link is red, with the rule that it broke."""
    hostile, honest = running.station(), running.station()
    with memoryview(hostile.guest.session.ram.view(hostile.nic.layout.tx_offset + TAIL, 4)) as tail:
        tail[:] = b"\xff\xff\xff\x7f"
    os.eventfd_write(hostile.nic._opened._signals[0].kick_fd, 1)
    eventually(lambda: running.lab.ports()[hostile.port]["transmit_fault"], "the queue is quarantined")
    eventually(lambda: hostile.port in command("events", "--last", "50", "--topic", "port.fault"), "it is told")

    graph = json.loads(run("--interval", "0", "--format", "json"))
    errors = json.loads(command("errors", "--format", "json"))["errors"]

    rule = "tail_out_of_range"
    bad, good = (link(graph, station.guest.name) for station in (hostile, honest))
    assert ("fault", ["eth0", "quarantined", f"transmit: {rule}"], "ok") == (bad["state"], bad["lines"], good["state"])
    assert [("port.fault", hostile.port, rule, 1)] == [
        (error["what"], error["whose"], error["code"], error["count"]) for error in errors
    ]


def test_signals_are_drawn_when_asked_for(run: Run, running: Net) -> None:
    """From who was granted one to whom it leads."""
    bus = running.bus(running.name("bus"))
    running.operator.device_plug(running.device(running.name("irq"), "intc"), bus)
    with (
        vbnet.Guest("web", bus, address=running.lab.run_dir) as web,
        vbnet.Guest("db", bus, address=running.lab.run_dir) as db,
    ):
        web.register(IntcDriver())
        web.run(web.bind("intc0", PATIENCE).create("tick", lambda: None, priority=5))
        running.operator.signal_grant("web/tick", db.name)

        without = json.loads(run("--interval", "0", "--format", "json"))
        graph = json.loads(run("--interval", "0", "--signals", "--format", "json"))

    assert [] == [edge for edge in without["edges"] if edge["kind"] == "signal"]
    [edge] = [edge for edge in graph["edges"] if edge["kind"] == "signal" and edge["lines"] == ["web/tick p5"]]
    assert ("guest:db", "guest:web") == (edge["source"], edge["target"])


def test_a_picture_is_written_into_a_file(run: Run, running: Net, tmp_path: Path) -> None:
    """What it is, the file's name says; an option says otherwise."""
    station = running.station()
    picture, text = tmp_path / "lab.svg", tmp_path / "lab.txt"

    said = run("-o", str(picture), "--interval", "0")
    run("-o", str(text), "--as", "dot", "--interval", "0")

    assert said.startswith(f"{picture}: 2 nodes, 1 edges")
    assert station.guest.name in "".join(ET.fromstring(picture.read_text()).itertext())  # noqa: S314 -- made here
    assert text.read_text().startswith("graph ")


def test_a_lab_file_is_drawn_without_running(run: Run, tmp_path: Path) -> None:
    """As Mermaid unless something else was asked for."""
    file = tmp_path / "lab.yaml"
    file.write_text(FILE)

    drawn = run(str(file))

    assert drawn.startswith("flowchart TD\n")
    assert all(label in drawn for label in ('"lan"', '"g-0<br/>traffic"', '"g-1<br/>traffic"'))


def test_bad_input_is_one_clear_message(run: Run, tmp_path: Path) -> None:
    """A name that says nothing, a folder that is not there, a node that does not run."""
    file = tmp_path / "lab.yaml"
    file.write_text(FILE)

    suffix = run(str(file), "-o", str(tmp_path / "lab.png"), code=2)
    folder = run(str(file), "-o", str(tmp_path / "no" / "lab.svg"), code=4)
    nobody = run("nobody", code=3)
    both = run("one", "--node", "other", code=2)

    assert "lab.png does not say what to draw; name it .dot" in suffix
    assert "cannot write" in folder
    assert nobody.startswith("vbnet: no host node `nobody` runs here")
    assert "give 'one' or --node other, not both" in both

"""`vbnet events` and `vbnet errors` against host nodes that run, hang and were killed.

The command runs in this process, which costs a fraction of starting one; what follows a node is a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

import vbnet
from tests.support import vbnet_program
from tests.support.lab import Lab
from tests.support.waiting import PATIENCE, eventually
from vbnet.bus.operator import SyncOperator
from vbnet.cli.events import complete_topic, parse_since
from vbnet.cli.main import main
from vbnet.devices.echo.wire import EchoFunction
from vbnet.errors import UsageError, VbnetError
from vbnet.testing.processes import HostProcess
from vbnet.testing.wire import RawPeer

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Give a function that runs ``vbnet`` with these words, expects its exit code, and gives what it printed."""

    def running(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(words)
        printed = capsys.readouterr()
        assert code == ended.value.code, printed
        return printed.err if code else printed.out

    return running


@pytest.fixture
def host(run_dir: Path) -> Iterator[HostProcess]:
    """Give the test a host node where three buses were made and an operator asked for what is not there."""
    with HostProcess(run_dir) as process, SyncOperator(process.run_dir) as operator:
        for name in ("a", "b", "c"):
            operator.bus_create(name)
        with pytest.raises(VbnetError):
            operator.bus_delete("none")
        yield process


def topics(printed: str) -> list[str]:
    """The topics of what ``--format json`` printed."""
    return [json.loads(line)["topic"] for line in printed.splitlines()]


def buses(printed: str) -> list[str]:
    """The buses of what ``--format json`` printed."""
    return [json.loads(line)["bus"] for line in printed.splitlines()]


@pytest.mark.usefixtures("host")
def test_events_that_happened_before_can_be_read(run: Run) -> None:
    """The last ones, by topic, severity and age; as JSON or as lines for people."""
    last = run("events", "--last", "2", "--format", "json")
    chosen = run("events", "--last", "9", "--topic", "bus.", "-t", "node.ready", "--format", "json")
    line = run("events", "--last", "1", "bus.created").strip()

    assert ["b", "c"] == buses(last)
    assert ["node.ready", *["bus.created"] * 3] == topics(chosen)
    assert line.endswith("info     bus.created       bus=c is_private=no")
    assert datetime.fromisoformat(line.split()[0]).tzinfo is not None
    assert "" == run("events", "--last", "9", "--severity", "error")
    assert "" == run("events", "--since", "2099-01-01", "--no-follow")
    assert ["b", "c"] == buses(run("events", "--since", "1h", "--format", "json", "--topic", "bus."))[1:]


def test_what_a_killed_node_told_is_still_there(run: Run, host: HostProcess) -> None:
    """Events and errors are read from files; the next node of that name goes on with them."""
    host.kill()

    events = run("events", "--node", "host", "--last", "3", "--format", "json")
    [error] = json.loads(run("errors", "--format", "json"))["errors"]

    assert ["a", "b", "c"] == buses(events)
    assert ("admin.refused", "operator", "ENOENT", 1) == tuple(error[key] for key in ("what", "whose", "code", "count"))
    with HostProcess(host.run_dir.path.parent) as again, SyncOperator(again.run_dir) as operator:
        with pytest.raises(VbnetError):
            operator.bus_delete("none")
        assert [2] == [error["count"] for error in json.loads(run("errors", "--format", "json"))["errors"]]
        assert ["bus.created", "node.starting", "node.ready"] == topics(
            run("events", "--last", "3", "--format", "json")
        )


def test_a_node_that_hangs_can_be_read(run: Run, host: HostProcess) -> None:
    """Nobody is asked: files are read."""
    os.kill(host.pid, signal.SIGSTOP)
    try:
        events, errors = run("events", "--last", "1"), run("errors")
    finally:
        os.kill(host.pid, signal.SIGCONT)

    assert "bus=c" in events
    assert "there is no bus 'none'" in errors


def test_following_after_the_last_events_shows_each_once(host: HostProcess) -> None:
    """What happens between reading the history and hearing the stream is neither lost nor shown twice."""
    command = [*vbnet_program.COMMAND, "events", "bus.", "--last", "2", "--follow", "--format", "json", "--count", "30"]
    with (
        SyncOperator(host.run_dir) as operator,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower,
    ):
        assert follower.stdout is not None
        made = 0
        while follower.poll() is None:
            operator.bus_create(f"more-{made}")
            made += 1
        shown = buses(follower.stdout.read())

    begin = shown.index("more-0") if "more-0" in shown else 0
    first = int(shown[begin].removeprefix("more-"))
    assert 30 == len(shown)
    assert [f"more-{number}" for number in range(first, first + 30 - begin)] == shown[begin:]


def test_errors_are_shown_for_people_and_programs(run: Run, host: HostProcess) -> None:
    """The same error again is a greater count; a table has the columns a person looks for."""
    with SyncOperator(host.run_dir) as operator, pytest.raises(VbnetError):
        operator.bus_delete("none")

    table = run("errors").splitlines()

    assert ["WHAT", "WHOSE", "CODE", "COUNT", "FIRST", "LAST", "MESSAGE"] == table[0].split()
    assert ["admin.refused", "operator", "ENOENT", "2"] == table[1].split()[:4]


def test_bad_input_is_one_clear_message(run: Run, run_dir: Path) -> None:
    """No such node, a damaged file, a time that is none, another machine: each with its exit code."""
    nobody = run("events", "--last", "1", "--node", "nobody", code=3)
    nothing = run("errors", code=3)
    with HostProcess(run_dir) as host:
        host.run_dir.errors_file.write_bytes(b"half")
        damaged = run("errors", code=7)
        no_time = run("events", "--since", "yesterday", code=2)
        far = run("errors", "--node", "tcp://10.0.0.1:7400", code=2)

    assert nobody.startswith("vbnet: no host node `nobody` has run here")
    assert nothing.startswith("vbnet: no host node has run here")
    assert "errors.log is no log of distinct errors: it has 4 bytes" in damaged
    assert "--since 'yesterday' is no time; write 30s" in no_time
    assert "is on another machine" in far
    assert all(1 == len(said.splitlines()) for said in (nobody, nothing, damaged, no_time, far))


@pytest.mark.parametrize(
    ("text", "expected"), [("30s", 970), ("10m", 400), ("0.25h", 100), ("1790000000.5", 1790000000.5)]
)
def test_since_is_an_age_or_a_moment(text: str, expected: float) -> None:
    """Ages count back from now."""
    assert expected == parse_since(text, 1000)


@pytest.mark.parametrize("text", ["", "s", "-5m", "5 m", "nan", "1e9", "2026-13-01", "12"])
def test_a_since_that_is_neither_is_refused(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(UsageError):
        parse_since(text, 1000)


def test_topics_are_completed_and_listed(run: Run, run_dir: Path) -> None:
    """With severity and fields, as the host node knows them."""
    with HostProcess(run_dir):
        listed = {row["topic"]: row for row in json.loads(run("events", "--topics", "--format", "json"))}

    assert ["port.set", "port.fault"] == complete_topic("por")
    assert ("error", ["port", "name", "part", "rule", "text"]) == (
        listed["port.fault"]["severity"],
        listed["port.fault"]["fields"],
    )


def test_nothing_that_is_kept_has_contents_of_frames_calls_or_tokens(own_lab: Lab) -> None:
    """Traffic, refused calls and messages, and a forged token, all of planted bytes; then every file is searched."""
    planted = b"PLANTED-BYTES-"
    with own_lab.net() as net:
        near, far = net.station(), net.station()
        near.nic.send([near.to(far, 64)[:14] + planted * 20] * 50)
        near.wait_taken(50)
        bus = net.bus("echoes")
        net.operator.device_plug(net.device("echo0", "echo"), bus)
        with vbnet.Guest("caller", bus, address=own_lab.run_dir) as caller:
            echo = caller.open("echo0", timeout=PATIENCE)
            echo.call(EchoFunction.ECHO, planted * 10)
            for refused in (EchoFunction.FAIL, 999):
                with pytest.raises(VbnetError):
                    echo.call(refused, planted * 10)
        with RawPeer(own_lab.run_dir.path) as peer:
            peer.packet(1, [1, planted.ljust(32, b"x"), False])
            peer.bus.send(planted * 100)
            eventually(lambda: b"attach.refused" in own_lab.run_dir.errors_file.read_bytes(), "it is refused")
            eventually(lambda: b"a stranger" in own_lab.run_dir.errors_file.read_bytes(), "so is the message")

    files = [path for path in own_lab.run_dir.path.rglob("*") if path.is_file()]

    assert {"events.jsonl", "errors.log", "host.log"} <= {path.name for path in files}
    assert [] == [path.name for path in files if planted in path.read_bytes()]

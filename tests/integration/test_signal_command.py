"""`vbnet signal` and `vbnet guest list` against a real host node and guests that serve signals.

The command runs in this process, which costs a fraction of starting one; tests/integration/test_commands.py starts it.
"""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import vbnet
from tests.support.waiting import PATIENCE, eventually
from vbnet.bus.operator import SyncOperator
from vbnet.cli.main import main
from vbnet.cli.signal import complete_signal
from vbnet.devices.intc.driver import IntcDriver
from vbnet.testing.processes import HostProcess


@dataclass
class Desk:
    """An operator at the command line, and two guests, ``web`` and ``db``, each with a signal ``tick``."""

    guests: dict[str, vbnet.Guest]
    heard: dict[str, threading.Semaphore]
    capsys: pytest.CaptureFixture[str]

    def run(self, *words: str, code: int = 0) -> str:
        """Run ``vbnet`` with these words, expect its exit code, give what it printed."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(words)
        printed = self.capsys.readouterr()
        assert code == ended.value.code, printed
        return printed.err if code else printed.out

    def rows(self, *words: str) -> Any:
        """Run it and give the JSON it prints."""
        return json.loads(self.run(*words, "--format", "json"))

    def row(self, signal: str) -> Any:
        """What the list has of one signal, which must be there."""
        [found] = [row for row in self.rows("signal", "list") if row["signal"] == signal]
        return found


@pytest.fixture
def desk(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    """Give the test a host node with a controller on one bus, and the guests there."""
    with HostProcess(run_dir) as host, SyncOperator(host.run_dir) as operator:
        operator.bus_create("lan")
        operator.device_create("irq", "intc")
        operator.device_plug("irq", "lan")
        with (
            vbnet.Guest("web", "lan", address=host.run_dir) as web,
            vbnet.Guest("db", "lan", address=host.run_dir) as db,
        ):
            desk = Desk({"web": web, "db": db}, {}, capsys)
            for guest in (web, db):
                guest.register(IntcDriver(vcpus=2, is_realtime=False))
                desk.heard[guest.name] = threading.Semaphore(0)
                guest.run(guest.bind("intc0").create("tick", desk.heard[guest.name].release, priority=5))
            yield desk


def test_a_signal_is_raised_changed_and_routed(desk: Desk) -> None:
    """Each verb does what it says, and the signal's row shows it."""
    said = desk.run("signal", "raise", "web/tick", "--count", "3")
    assert desk.heard["web"].acquire(timeout=PATIENCE)
    desk.run("signal", "set", "web/tick", "--priority", "6", "--mask")
    desk.run("signal", "route", "web/tick", "--vcpu", "1")
    changed = desk.row("web/tick")
    desk.run("signal", "set", str(changed["id"]), "--unmask")

    expected = {"priority": 6, "is_masked": True, "to": "web", "vcpu": 1, "state": "masked"}
    assert "signal web/tick raised 3 times\n" == said
    assert expected == {name: changed[name] for name in expected}
    assert "open" == desk.row("web/tick")["state"]


def test_a_list_may_be_of_one_guest(desk: Desk) -> None:
    """What is its own or leads to it; a guest without any is told in a sentence."""
    desk.run("signal", "create", "alarm")
    desk.run("signal", "route", "alarm", "--like", "db/tick")

    assert {"alarm", "db/tick"} == {row["signal"] for row in desk.rows("signal", "list", "db")}
    assert [] == desk.rows("signal", "list", "nobody")


def test_an_operators_signal_is_made_led_granted_and_destroyed(desk: Desk) -> None:
    """Its raise is kept while it leads nowhere, and served once where another signal leads."""
    made = desk.rows("signal", "create", "alarm", "--priority", "7")
    desk.run("signal", "raise", "alarm")
    eventually(lambda: desk.row("alarm")["state"] == "latched", "the raise is kept")
    said = desk.run("signal", "route", "alarm", "--like", "db/tick")
    was_served = desk.heard["db"].acquire(timeout=PATIENCE)
    desk.run("signal", "grant", "alarm", "web")
    granted = desk.row("alarm")
    desk.run("signal", "revoke", "alarm", "web")
    desk.run("signal", "route", "alarm", "--nowhere")
    revoked = desk.row("alarm")
    desk.run("signal", "destroy", "alarm")

    assert was_served
    assert {"name": "alarm", "id": granted["id"]} == made
    assert said.startswith("signal alarm leads to db 0:")
    assert (["web"], "db", 7, "open") == tuple(granted[name] for name in ("granted", "to", "priority", "state"))
    assert ([], "nowhere") == (revoked["granted"], revoked["leads_to"])
    assert "no signal 'alarm'" in desk.run("signal", "destroy", "alarm", code=3)


MISTAKES = [
    ("raise web/tok", 3, "there is no signal 'web/tok'; `vbnet signal list` shows all"),
    ("create a/b", 2, "no slash"),
    ("set web/tick", 2, "say what to change: --priority N, --mask or --unmask"),
    ("set web/tick --priority 8", 2, "8 is not in the range"),
    ("route web/tick", 2, "say where: --like SIGNAL, or any of --guest, --vcpu and --vector; or --nowhere alone"),
    ("route web/tick --nowhere --vcpu 1", 2, "or --nowhere alone"),
    ("route web/tick --like web/tok", 3, "there is no signal 'web/tok'"),
    ("route web/tick --guest other", 3, "guest 'other' has no interrupt controller in use"),
    ("route web/tick --vcpu 2", 3, "has 2 vCPUs, numbered from 0; got 2"),
    ("route web/tick --vector 4096", 2, "4096"),
]


def test_each_mistake_has_its_code_and_says_what_to_do(desk: Desk) -> None:
    """The message helps, and the signals are as they were before."""
    before = desk.rows("signal", "list")

    said = {words: desk.run("signal", *words.split(), code=code) for words, code, _message in MISTAKES}

    assert [] == [(words, said[words]) for words, _code, message in MISTAKES if message not in said[words]]
    assert before == desk.rows("signal", "list")


def test_names_are_completed(desk: Desk) -> None:
    """The shell is told the signals that begin so; where no host node runs, none and no message."""

    class Context:
        """What Typer hands over."""

        params: dict[str, str | None]

        def __init__(self, node: str | None) -> None:
            self.params = {"node": node}

    complete: Callable[[Any, str], list[str]] = complete_signal
    desk.run("signal", "create", "alarm")

    assert ["alarm"] == complete(Context(None), "al")
    assert ["alarm", "db/tick", "web/tick"] == sorted(complete(Context(None), ""))
    assert [] == complete(Context("elsewhere"), "al")


def test_a_handler_that_does_not_return_is_shown_in_the_list_of_guests(desk: Desk) -> None:
    """State wedged, and which vCPU, priority and vector; the other guest is shown as it is."""
    let_go = threading.Event()
    web = desk.guests["web"]
    stuck = web.run(web.bind("intc0").create("stuck", lambda: let_go.wait(PATIENCE), priority=2, vcpu=1))

    desk.run("signal", "raise", "web/stuck")
    eventually(lambda: "wedged" in {row["state"] for row in desk.rows("guest", "list")}, "it is shown as wedged")
    shown = {row["name"]: row for row in desk.rows("guest", "list")}
    eventually(lambda: "guest.wedged" in desk.run("events", "--last", "9"), "an event tells of it")
    let_go.set()
    eventually(lambda: "guest.unwedged" in desk.run("events", "--last", "9"), "and of its end")

    assert ("wedged", "ready") == (shown["web"]["state"], shown["db"]["state"])
    assert shown["web"]["detail"].startswith(f"vCPU 1 priority 2 vector {stuck.vector} since ")
    assert shown["web"]["detail"].endswith(" s, 0 pending")

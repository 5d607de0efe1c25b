"""The verbs against a real lab: host node, Python guests, network namespaces, from other shells."""

import json
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import vbnet_program
from tests.support.vbnet_program import rows, run
from tests.support.waiting import eventually
from vbnet.cluster import process, state

FUNCTIONS = '''
"""Guests of the tests."""

import threading

from vbnet.devices.intc.driver import IntcDriver


async def serve(guest):
    """Serve two signals, one of them without end."""
    guest.register(IntcDriver(vcpus=2))
    intc = await guest.bind("intc0")
    await intc.create("tick", lambda: None, priority=5)
    await intc.create("stuck", threading.Event().wait, priority=2)
    print("serving", flush=True)
    await stay(guest)


async def stay(guest):
    """Say so, and stay until the lab ends."""
    print(f"{guest.name} stays", flush=True)
    await guest.wait_device("never", 3600)


def fail(guest):
    """End badly."""
    return 3
'''
LAB = """
name: t
switches: {lan: }
guests:
  a: {kind: python, run: "functions.py:stay", nics: [{switch: lan}], restart: always}
  b: {kind: python, run: "functions.py:stay", nics: [{switch: lan}], count: 2}
"""
SIGNALS = """
name: t
guests:
  web: {kind: python, run: "functions.py:serve", ram: 1MiB}
  db: {kind: python, run: "functions.py:serve", ram: 1MiB}
  other: {kind: python, run: "functions.py:stay"}
devices: {irq: {type: intc, attributes: {vcpus: 2}, guests: [web, db]}}
"""
NAMESPACES = """
name: t
switches: {lan: }
guests:
  one: {kind: netns, nics: [{switch: lan, ip: 10.10.0.1/24}]}
  two: {kind: netns, nics: [{switch: lan, ip: 10.10.0.2/24, mtu: 9000}]}
"""


@pytest.fixture(autouse=True)
def _nothing_left(no_leaked_processes: None, no_leaked_links: None) -> None:
    """Every test here ends with nothing running."""


@pytest.fixture
def bring_up(tmp_path: Path, run_dir: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that brings a lab up in the background; it is down, without a trace, after the test."""

    def up(text: str) -> Path:
        (tmp_path / "functions.py").write_text(FUNCTIONS, encoding="utf-8")
        file = tmp_path / "lab.yaml"
        file.write_text(text, encoding="utf-8")
        run("up", str(file), "-d")
        return run_dir / "t"

    yield up
    run("down", "--all")
    assert [] == list(run_dir.iterdir())


def test_ps_shows_every_guest(bring_up: Callable[[str], Path]) -> None:
    """Names, kinds, states, addresses and processes, from another shell."""
    bring_up(LAB)

    found = rows("ps")

    assert ["a", "b-0", "b-1"] == [row["guest"] for row in found]
    assert {"ready"} == {row["state"] for row in found}
    assert all(process.identify(row["pid"]) for row in found)


def test_the_host_nodes_nouns_show_what_the_lab_made(bring_up: Callable[[str], Path]) -> None:
    """Buses, devices, guests, switches, ports and classes, each as JSON."""
    bring_up(LAB)

    assert {"a", "b-0", "b-1"} == {row["name"] for row in rows("bus", "list")}
    assert {"a.eth0": "venet", "b-0.eth0": "venet", "b-1.eth0": "venet"} == {
        row["name"]: row["type"] for row in rows("device", "list")
    }
    assert {"ready"} == {row["state"] for row in rows("guest", "list")}
    assert ["lan"] == [row["name"] for row in rows("switch", "list")]
    assert {"a.eth0", "b-0.eth0", "b-1.eth0"} == {row["name"] for row in rows("port", "list")}
    assert {"venet", "tap"} <= {row["name"] for row in rows("device", "classes")}
    assert "t" == rows("host", "info")["name"]


def test_ports_without_a_guest_are_set_by_hand(bring_up: Callable[[str], Path]) -> None:
    """What a full virtual machine does to its senders, and its cable; a guest's card is set at its device."""
    bring_up(LAB)
    added = rows("port", "add", "lan", "vm", "--vhost-user", "auto")["id"]
    card = next(row["id"] for row in rows("port", "list") if row["name"] == "a.eth0")

    found = rows("port", "set", str(added), "hold=0", "budget=32", "enabled=0")

    assert {"hold_us": 0, "budget": 32, "is_up": False}.items() <= found.items()
    assert found.items() <= next(row for row in rows("port", "list") if row["id"] == added).items()
    assert "0..10000" in run("port", "set", str(added), "hold=20000", code=2).stderr
    assert "device set" in run("port", "set", str(card), "hold=0", code=2).stderr
    assert "port list" in run("port", "set", "999", "hold=0", code=3).stderr
    run("port", "remove", str(added))


def test_ports_are_meant_by_name_or_id(bring_up: Callable[[str], Path]) -> None:
    """A number is an id, anything else a name: to set, to remove, and to show what was counted."""
    bring_up(LAB)
    added = rows("port", "add", "lan", "vm", "--vhost-user", "auto")["id"]

    by_name, by_id = rows("port", "set", "vm", "budget=32"), rows("port", "set", str(added), "budget=33")

    assert [(added, 32), (added, 33)] == [(row["id"], row["budget"]) for row in (by_name, by_id)]
    assert {"vm"} == {row["port"] for row in rows("port", "stats", str(added), "--zeroes")}
    assert "there is no port 'nobody'" in run("port", "remove", "nobody", code=3).stderr
    assert "there is no port 999" in run("port", "stats", "999", code=3).stderr
    assert added == rows("port", "remove", "vm")["id"]


def test_names_that_cannot_be_are_refused_in_words(bring_up: Callable[[str], Path]) -> None:
    """What names may be is told, and it is wrong use."""
    bring_up(LAB)

    assert "tap 'x/y' cannot be: 1 to 15 letters" in run("port", "add", "lan", "x/y", code=2).stderr
    assert "name 'x/y' cannot be: 1 to 96 letters" in run("bus", "create", "x/y", code=2).stderr
    assert "slash" in run("signal", "create", "x/y", code=2).stderr


def test_a_port_for_front_ends_takes_no_options_of_a_tap(bring_up: Callable[[str], Path]) -> None:
    """And a TAP none of theirs: nothing that is asked for is left out silently."""
    bring_up(LAB)

    assert "TAP" in run("port", "add", "lan", "vm", "--vhost-user", "auto", "--no-offloads", code=2).stderr
    assert "--vhost-user" in run("port", "add", "lan", "vb0", "--mac", "02:00:00:00:00:22", code=2).stderr
    assert "vm" not in {row["name"] for row in rows("port", "list")}


def test_a_consoles_log_is_made_when_it_is_inserted(bring_up: Callable[[str], Path], tmp_path: Path) -> None:
    """A log that is there is added to; a disk has to be there, and each error speaks of what was meant."""
    bring_up(LAB)
    run("device", "create", "console0", "type=virtio-console")
    run("device", "create", "disk0", "type=virtio-blk")
    log, nowhere = tmp_path / "new.log", str(tmp_path / "nowhere" / "file")

    run("device", "insert", "console0", str(log))

    assert b"" == log.read_bytes()
    assert str(log) == rows("device", "show", "console0")["attributes"]["log"]
    assert "cannot open the log" in run("device", "insert", "console0", nowhere, code=4).stderr
    assert "cannot open the disk image" in run("device", "insert", "disk0", nowhere, code=4).stderr
    assert "--read-only" in run("device", "insert", "console0", str(log), "--read-only", code=2).stderr
    run("device", "insert", "nobody", str(tmp_path / "other.log"), code=3)
    assert not (tmp_path / "other.log").exists()


def test_devices_can_be_made_and_plugged_by_hand(bring_up: Callable[[str], Path]) -> None:
    """Two-step creation, write-once type, plug, unplug, delete; each mistake has its code."""
    bring_up("name: t\nswitches: {lan: }\nguests:\n  a: {kind: python, run: 'functions.py:stay'}\n")

    run("bus", "create", "lab")
    run("device", "create", "nic0")
    run("device", "plug", "nic0", "lab", code=2)
    run("device", "set", "nic0", "type=venet", "switch=lan")
    run("device", "set", "nic0", "type=venet", code=2)
    run("device", "set", "nic0", "colour=red", code=3)
    run("device", "create", "nic0", code=5)
    run("device", "plug", "nic0", "lab")
    assert [{"bus": "lab", "interface": "nic0"}] == [
        {"bus": plug["bus"], "interface": plug["interface"]} for plug in rows("device", "show", "nic0")["plugs"]
    ]
    run("bus", "delete", "lab", code=5)
    run("device", "unplug", "nic0", "lab")
    run("device", "delete", "nic0")
    run("bus", "delete", "lab")
    run("device", "show", "nic0", code=3)


def test_a_labs_device_serves_the_guests_it_names_and_ps_shows_who_is_wedged(bring_up: Callable[[str], Path]) -> None:
    """One controller on two of three buses; the guest whose handler does not return is shown with what holds it."""
    bring_up(SIGNALS)
    eventually(lambda: len(rows("signal", "list")) == 4, "both guests named their signals")
    device = rows("device", "show", "irq")

    run("signal", "raise", "web/stuck")
    eventually(lambda: rows("ps")[0]["state"] == "wedged", "the handler is shown as wedged")

    shown = {row["guest"]: row for row in rows("ps")}
    assert ("intc", "2") == (device["type"], device["attributes"]["vcpus"])
    assert ["db", "web"] == sorted(plug["bus"] for plug in device["plugs"])
    assert {"web": "wedged", "db": "ready", "other": "ready"} == {name: row["state"] for name, row in shown.items()}
    assert shown["web"]["detail"].startswith("vCPU 0 priority 2 vector ")


def test_ps_says_when_the_host_node_does_not_answer(bring_up: Callable[[str], Path]) -> None:
    """Whoever was ready is not shown without a word when nobody knows."""
    lab = state.read_state(bring_up(LAB))
    assert lab.host is not None

    with stopped(lab.host.identity):
        found = rows("ps")

    assert {"the host node does not answer"} == {row["detail"] for row in found}


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_ps_and_guest_list_agree_on_who_is_stuck(bring_up: Callable[[str], Path]) -> None:
    """A guest that missed two heartbeats of 7.5 s is; the others are not, and neither is it when it goes on."""
    lab = state.read_state(bring_up(LAB))

    with stopped(lab.processes[lab.guests["a"].process].identity):
        eventually(lambda: {row["guest"]: row["state"] for row in rows("ps")}["a"] == "stuck", "a is stuck", 60)
        listed = {row["name"]: row["state"] for row in rows("guest", "list")}
    eventually(lambda: {row["state"] for row in rows("ps")} == {"ready"}, "it goes on", 60)

    assert ("stuck", "ready") == (listed["a"], listed["b-0"])


@contextmanager
def stopped(identity: process.Identity | None) -> Iterator[None]:
    """Let a process do nothing for a while."""
    assert identity is not None
    assert process.send_signal(identity, signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(identity, signal.SIGCONT)


def test_logs_have_what_a_guest_printed(bring_up: Callable[[str], Path]) -> None:
    """One guest's lines, or everybody's with names."""
    bring_up(LAB)
    follower = subprocess.Popen([*vbnet_program.COMMAND, "logs", "-f"], stdout=subprocess.PIPE, text=True)
    assert follower.stdout is not None

    followed: set[str] = set()
    while not {"a: a stays\n", "b-0: b-0 stays\n", "b-1: b-1 stays\n"} <= followed:
        followed.add(follower.stdout.readline())
    run("down")

    assert 0 == follower.wait(timeout=vbnet_program.LIMIT_S)
    follower.stdout.close()


def test_a_killed_guest_comes_back_and_events_tell(bring_up: Callable[[str], Path]) -> None:
    """Its policy restarts it; whoever follows the events sees it go and come, and who asks later is told too."""
    folder = bring_up(LAB)
    first = state.read_state(folder).processes["a"].identity
    assert first is not None
    command = [*vbnet_program.COMMAND, "events", "--topic", "guest.", "--format", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        while not select.select([follower.stdout], [], [], 0.1)[0]:
            run("guest", "reset", "b-0")  # until the follower listens

        process.send_signal(first, signal.SIGKILL)

        topics = []
        while "guest.ready" not in topics:
            event = json.loads(follower.stdout.readline())
            topics += [event["topic"]] if event["guest"] == "a" else []
        follower.terminate()
    assert ["guest.gone", "guest.joined", "guest.ready"] == topics
    eventually(lambda: "lab.ready" == lab_story("a")[-1], "the lab says that it is ready again")
    assert [
        *("lab.started", "lab.ready", "lab.exited", "lab.restarting", "lab.started", "lab.ready"),
    ] == lab_story("a")


def lab_story(process: str) -> list[str]:
    """What a lab told of one of its processes."""
    lines = run("events", "--last", "1000", "--topic", "lab.", "--format", "json").stdout.splitlines()
    return [event["topic"] for event in map(json.loads, lines) if event.get("process") == process]


def test_a_reset_guest_has_its_devices_again(bring_up: Callable[[str], Path]) -> None:
    """Reset does not restart the process."""
    bring_up(LAB)
    before = rows("ps")[0]["pid"]

    run("guest", "reset", "a")

    assert before == rows("ps")[0]["pid"]
    assert "a" in {row["name"] for row in rows("guest", "list")}


def test_a_function_can_be_run_as_a_guest(bring_up: Callable[[str], Path], tmp_path: Path) -> None:
    """Outside of any lab file, on a private bus; the number it returns is the exit code."""
    bring_up(LAB)

    run("guest", "run", f"{tmp_path}/functions.py:fail", code=3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def main(guest):\n    return 1 / 0\n", "ZeroDivisionError: division by zero"),
        ("async def main(guest):\n    return 1 / 0\n", "ZeroDivisionError: division by zero"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def main(guest:\n", "SyntaxError"),
    ],
    ids=["function", "coroutine function", "module", "syntax"],
)
def test_a_functions_own_mistake_is_shown_as_its_own(
    bring_up: Callable[[str], Path], tmp_path: Path, text: str, said: str
) -> None:
    """With a traceback of the user's code alone, and nobody is asked to report it."""
    bring_up(LAB)
    file = tmp_path / "boom.py"
    file.write_text(text, encoding="utf-8")

    told = run("guest", "run", f"{file}:main", code=1).stderr

    assert said in told
    assert str(file) in told
    assert "bug" not in told
    assert "vbnet/cluster" not in told


def test_exec_wants_a_namespace(bring_up: Callable[[str], Path]) -> None:
    """A Python guest has none, and the message says what to do."""
    bring_up(LAB)

    said = run("exec", "a", "--", "true", code=2).stderr

    assert "guest `a` is of kind python: it has no namespace" in said
    assert "has no guest `aa`; did you mean `a`?" in run("exec", "aa", "--", "true", code=3).stderr


@pytest.mark.usefixtures("namespaces", "tun_device")
def test_programs_in_namespaces_reach_each_other(
    bring_up: Callable[[str], Path], program: Callable[[str], str]
) -> None:
    """The kernel's own ping across vbnet, with the program's exit code passed on."""
    bring_up(NAMESPACES)

    said = run("exec", "one", "--", program("ping"), "-n", "-c", "2", "-i", "0.2", "10.10.0.2").stdout
    run("exec", "one", "--", "sh", "-c", "exit 7", code=7)
    run("exec", "one", "--", "no-such-program", code=127)
    run("exec", "one", "--", "/etc/passwd", code=126)

    assert " 0% packet loss" in said


@pytest.mark.usefixtures("namespaces", "tun_device")
def test_a_namespace_is_configured_as_the_file_says(
    bring_up: Callable[[str], Path], program: Callable[[str], str]
) -> None:
    """Address, MTU, MAC and the loopback are there, and nothing of it is on the machine itself."""
    bring_up(NAMESPACES)

    links = json.loads(run("exec", "two", "--", program("ip"), "-j", "addr").stdout)
    found = {link["ifname"]: link for link in links}

    assert {"lo", "eth0"} == set(found)
    assert "UP" in found["lo"]["flags"]
    assert (9000, rows("ps")[1]["mac"][0]) == (found["eth0"]["mtu"], found["eth0"]["address"])
    assert "10.10.0.2" in [address["local"] for address in found["eth0"]["addr_info"]]


def test_everything_works_after_the_supervisor_was_killed(bring_up: Callable[[str], Path]) -> None:
    """``kill -9`` of the supervisor takes its guests along; ps says so, and down removes the rest."""
    folder = bring_up(LAB)
    lab = state.read_state(folder)
    everybody = [*lab.identities(), *process.marked_processes(lab.instance)]

    process.send_signal(lab.supervisor, signal.SIGKILL)

    assert all(process.wait_ended(identity, vbnet_program.LIMIT_S) for identity in everybody)
    assert {"dead"} == {row["state"] for row in rows("ps")}
    assert [("t", "folder")] == [(row["lab"], row["kind"]) for row in rows("clean", "--dry-run")]
    assert [{"lab": "t", "result": "cleaned"}] == rows("down")


@pytest.mark.parametrize("victim", ["host", "all"])
def test_killing_host_or_everything_leaves_nothing(bring_up: Callable[[str], Path], victim: str) -> None:
    """The host's death ends the lab by itself; after everybody's death, clean is enough."""
    folder = bring_up(LAB)
    lab = state.read_state(folder)
    everybody = [*lab.identities(), *process.marked_processes(lab.instance)]
    assert lab.host is not None
    assert lab.host.identity is not None

    for identity in [lab.host.identity] if victim == "host" else everybody:
        process.send_signal(identity, signal.SIGKILL)

    assert all(process.wait_ended(identity, vbnet_program.LIMIT_S) for identity in everybody)
    run("clean")
    assert not folder.exists()


def test_a_guest_that_cannot_start_fails_up_with_its_reason(tmp_path: Path, run_dir: Path) -> None:
    """In the background too, the reason and the log's last lines come to the terminal."""
    file = tmp_path / "lab.yaml"
    file.write_text("name: t\nguests:\n  a: {kind: python, run: 'no_such_module:main'}\n", encoding="utf-8")

    said = run("up", str(file), "-d", code=1).stderr

    assert "guest a did not get ready: there is no module `no_such_module`" in said
    assert [] == list(run_dir.iterdir())


@pytest.mark.usefixtures("tun_device", "makes_links")
def test_a_tap_that_was_there_before_the_lab_is_brought_up_and_left(
    bring_up: Callable[[str], Path], program: Callable[[str], str], tmp_path: Path
) -> None:
    """An address that it does not have is refused with the line that wants it, not left out silently."""
    if os.geteuid() != 0:
        pytest.skip("making a TAP on the machine itself needs root")
    ip, tap = program("ip"), f"vbu{os.getpid() % 100000}"
    text = (
        "name: t\nswitches: {lan: }\nguests: {a: {kind: stack, nics: [{switch: lan, ip: 10.213.78.1/24}]}}\nuplinks:\n"
    )
    text += f"  - {{switch: lan, tap: {tap}, ip: 10.213.78.254/24}}\n"
    subprocess.run([ip, "tuntap", "add", tap, "mode", "tap"], check=True)
    try:
        file = tmp_path / "wrong.yaml"
        file.write_text(text, encoding="utf-8")
        refused = run("validate", "--here", str(file), code=2).stderr
        subprocess.run([ip, "addr", "add", "10.213.78.254/24", "dev", tap], check=True)
        bring_up(text)
        subprocess.run([program("ping"), "-n", "-c", "2", "-i", "0.2", "10.213.78.1"], check=True, capture_output=True)
        run("down", "--all")
        is_there = Path("/sys/class/net", tap).exists()
    finally:
        subprocess.run([ip, "link", "delete", tap], check=True)

    assert f"{file}:5: `{tap}` is there already, without the address 10.213.78.254/24" in refused
    assert f"ip addr add 10.213.78.254/24 dev {tap}" in refused
    assert is_there


@pytest.mark.usefixtures("tun_device", "makes_links")
def test_an_uplink_joins_the_machine_itself_and_goes_with_the_lab(
    bring_up: Callable[[str], Path], program: Callable[[str], str]
) -> None:
    """The kernel outside pings a namespace through a TAP that is gone afterwards, also when all was killed."""
    if os.geteuid() != 0:
        pytest.skip("making a TAP on the machine itself needs root")
    tap = f"vbt{os.getpid() % 100000}"
    text = NAMESPACES.replace("10.10.0.", "10.213.77.")
    folder = bring_up(f"{text}uplinks: [{{switch: lan, tap: {tap}, ip: 10.213.77.254/24}}]\n")

    subprocess.run([program("ping"), "-n", "-c", "2", "-i", "0.2", "10.213.77.1"], check=True, capture_output=True)
    lab = state.read_state(folder)
    for identity in [*lab.identities(), *process.marked_processes(lab.instance)]:
        process.send_signal(identity, signal.SIGKILL)
        process.wait_ended(identity, vbnet_program.LIMIT_S)

    assert {("tap", tap), ("folder", str(folder))} == {(row["kind"], row["name"]) for row in rows("clean")}
    assert not Path("/sys/class/net", tap).exists()


def test_a_host_node_by_itself_runs_and_stops(run_dir: Path) -> None:
    """Without a lab: run, info, stop; a second one of that name is refused, and nothing is left."""
    with subprocess.Popen([*vbnet_program.COMMAND, "host", "run", "solo"], stderr=subprocess.PIPE, text=True) as host:
        assert host.stderr is not None
        assert "host node solo is ready" in host.stderr.readline()

        run("host", "run", "solo", code=5)
        run("switch", "create", "lan")
        assert host.pid == rows("host", "info")["pid"]
        run("host", "stop", "--node", "solo")

        assert 0 == host.wait(timeout=vbnet_program.LIMIT_S)
    run("host", "info", code=3)
    assert [] == list(run_dir.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_host_node_that_is_told_to_end_leaves_nothing(run_dir: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM are as good as `vbnet host stop`."""
    with subprocess.Popen([*vbnet_program.COMMAND, "host", "run", "solo"], stderr=subprocess.PIPE, text=True) as host:
        assert host.stderr is not None
        assert "host node solo is ready" in host.stderr.readline()
        host.send_signal(number)

        assert 0 == host.wait(timeout=vbnet_program.LIMIT_S)
    assert [] == list(run_dir.iterdir())


def test_keys_are_made_shown_and_allowed(tmp_path: Path) -> None:
    """The public key is printed, the secret never."""
    keys = ("--keys", str(tmp_path / "keys"))

    public = run("keys", "make", *keys).stdout.strip()
    run("keys", "make", *keys, code=5)
    run("keys", "allow", public, "laptop", *keys)

    shown = rows("keys", "show", *keys)
    assert {
        "public": public,
        "folder": str(tmp_path / "keys"),
        "allowed": [{"name": "laptop", "public": public}],
    } == shown
    run("keys", "forbid", "laptop", *keys)
    assert [] == rows("keys", "show", *keys)["allowed"]

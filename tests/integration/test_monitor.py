"""`vbnet monitor` with a real Prometheus: it scrapes a lab, and whatever ends it, nothing of it is left.

Grafana is not packaged where the tests run, so a stand-in takes its place: a program that reads what Grafana would
(its arguments, its ini file, the provisioning it names), fails loudly where Grafana would, and answers `/api/health`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import reaper
from tests.support.real_lab import RealLab, lab_files, real_lab
from tests.support.waiting import eventually

PATIENCE = 40.0
LAB = """
name: t
switches: {lan: }
guests:
  web: {kind: stack, nics: [{switch: lan, ip: 10.10.0.10/24}]}
"""
STAND_IN = '''#!{python}
"""Stands in for Grafana: takes its arguments and files as it would, and answers /api/health."""
import argparse, configparser, http.server, json, os, pathlib, subprocess, sys
import yaml
parser = argparse.ArgumentParser()
parser.add_argument("verb", choices=["server"])
parser.add_argument("--homepath", required=True)
parser.add_argument("--config", required=True)
chosen = parser.parse_args()
ini = configparser.ConfigParser(interpolation=None)
assert ini.read(chosen.config)
folder = pathlib.Path(ini["paths"]["provisioning"])
[source] = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
[provider] = yaml.safe_load((folder / "dashboards" / "vbnet.yaml").read_text())["providers"]
dashboards = sorted(pathlib.Path(os.path.expandvars(provider["options"]["path"])).glob("*.json"))
helper = subprocess.Popen(["sleep", "600"], start_new_session=True)
said = dict(
    ini={{name: dict(section) for name, section in ini.items()}},
    url=os.path.expandvars(source["url"]),
    dashboards=[json.loads(path.read_text())["uid"] for path in dashboards],
    environment=sorted(name for name in os.environ if name.startswith("GF_")),
    helper=helper.pid,
)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({{"database": "ok", **said}}).encode()
        self.send_response(200 if self.path == "/api/health" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = ini["server"]
http.server.HTTPServer((server["http_addr"], int(server["http_port"])), Handler).serve_forever()
'''

ANSWERS_ONCE = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        ready.append(self.path)
    def log_message(self, *_):
        pass
ready = []
[port] = [part.rpartition(":")[2] for part in sys.argv if "listen-address" in part]
server = http.server.HTTPServer(("127.0.0.1", int(port)), Handler)
while not any("alerts" in path for path in ready):
    server.handle_request()
sys.exit(9)
"""


def get(url: str) -> Any:
    """What an address of this machine answers, as JSON."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
        return json.loads(answer.read())


def query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """Samples of an expression now."""
    found = get(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
    assert "success" == found["status"]
    result: list[dict[str, Any]] = found["data"]["result"]
    return result


@contextmanager
def monitoring(lab: RealLab, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A `vbnet monitor` that is ready, and its addresses by program."""
    process = lab.start("monitor", "--format", "json", *arguments, stderr=subprocess.PIPE)
    try:
        yield process, {row["program"]: row["address"] for row in first_document(process)}
    finally:
        process.kill()
        process.communicate()


def first_document(process: subprocess.Popen[str]) -> Any:
    """The JSON list that the process prints."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("]"):
            return json.loads("".join(lines))
    assert process.stderr is not None
    raise AssertionError("".join(lines) + process.stderr.read())


def first_words(lab: RealLab) -> str:
    """What Prometheus said once it was started: whole lines."""
    log = lab.root / ".monitor" / "logs" / "prometheus.log"

    def said() -> str:
        text = log.read_text() if log.is_file() else ""
        return text if text.endswith("\n") else ""

    return eventually(said, "Prometheus says something", PATIENCE)


def descendants(pid: int) -> set[int]:
    """Everything that a process started and that still runs."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1]) if entry.name.isdigit() else 0
        except OSError:
            continue
        if parent == pid:
            found |= {int(entry.name)} | descendants(int(entry.name))
    return found


def living(pids: set[int]) -> set[int]:
    """Those that have not ended."""
    return {pid for pid in pids if Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in status(pid)}


def status(pid: int) -> str:
    """What the kernel says of a process; nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


@pytest.fixture
def fake_prometheus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have a program of our own be Prometheus, and no Grafana."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def become(program: str) -> None:
        path = tmp_path / "prometheus"
        path.write_text(f"#!{sys.executable}\n{program}\n")
        path.chmod(0o755)

    return become


@pytest.fixture
def real_prometheus(program: Callable[[str], str]) -> None:
    """Skip the test where Prometheus is not installed."""
    program("prometheus")


@pytest.fixture
def with_grafana(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-in on the path, and settings of some other Grafana in the environment."""
    program = tmp_path / "bin" / "grafana"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("GF_SECURITY_ADMIN_PASSWORD", "of another one")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("no_leaked_processes", "real_prometheus")
def test_lab_is_scraped_with_rules_loaded_until_ctrl_c_ends_all() -> None:
    """Prometheus finds the lab by itself, and after Ctrl-C neither a process nor a file is there."""
    with real_lab(LAB) as lab, monitoring(lab) as (process, addresses):
        up = eventually(lambda: query(addresses["prometheus"], "vbnet_node_up"), "the lab is scraped", PATIENCE)
        rules = get(f"{addresses['prometheus']}/api/v1/rules")["data"]["groups"]
        started = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        code = process.wait(PATIENCE)

        assert 0 == code
        assert set() == living(started)
        assert not (lab.root / ".monitor").exists()
    assert [("t", "1")] == [(sample["metric"]["lab"], sample["value"][1]) for sample in up]
    assert {"alerting", "recording"} == {rule["type"] for group in rules for rule in group["rules"]}


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("no_leaked_processes", "real_prometheus", "with_grafana")
def test_kill_nine_leaves_no_process_and_clean_removes_the_data() -> None:
    """Prometheus, Grafana and what Grafana started end with the monitor, which could do nothing about it."""
    with real_lab(LAB) as lab:
        with monitoring(lab) as (process, _):
            started = descendants(process.pid)
            process.kill()
            process.wait()
            eventually(lambda: not living(started), "all of it has ended", PATIENCE)
        folder = lab.root / ".monitor"
        was_left = folder.is_dir()
        found = lab.rows("clean")

        assert len(started) > 5, "exporter, two keepers, Prometheus, Grafana, its helper"
        assert was_left
        assert [("monitor", str(folder))] == [(row["kind"], row["name"]) for row in found]
        assert not folder.exists()


@pytest.mark.usefixtures("no_leaked_processes")
def test_program_that_does_not_start_is_told_with_its_last_words(fake_prometheus: Callable[[str], None]) -> None:
    """Its exit code and the end of its log, and nothing is left."""
    fake_prometheus("import sys; sys.exit('no room on the disk')")
    with lab_files(LAB) as lab:
        process = lab.start("monitor", stderr=subprocess.PIPE)
        _, said = process.communicate(timeout=PATIENCE)

        assert 4 == process.returncode
        assert "prometheus ended (exit code 1) instead of starting: no room on the disk" in said.splitlines()[-1]
        assert [] == list(lab.root.iterdir())


@pytest.mark.usefixtures("no_leaked_processes")
def test_ctrl_c_is_heard_while_programs_start(fake_prometheus: Callable[[str], None]) -> None:
    """A program that never answers holds nobody up."""
    fake_prometheus("import threading; print('thinking', flush=True); threading.Event().wait()")
    with lab_files(LAB) as lab:
        process = lab.start("monitor", stderr=subprocess.PIPE)
        first_words(lab)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)

        assert 130 == process.returncode
        assert "stopped before prometheus answered" in said
        assert [] == list(lab.root.iterdir())


@pytest.mark.usefixtures("no_leaked_processes")
def test_program_that_ends_later_ends_the_monitor(fake_prometheus: Callable[[str], None]) -> None:
    """Nobody looks at dashboards that stand still without being told."""
    fake_prometheus(ANSWERS_ONCE)
    with lab_files(LAB) as lab, monitoring(lab) as (process, _):
        _, said = process.communicate(timeout=PATIENCE)

    assert 7 == process.returncode
    assert "vbnet: prometheus ended (exit code 9): " in said


@pytest.mark.usefixtures("no_leaked_processes")
def test_monitors_that_start_at_the_same_time_take_different_ports(fake_prometheus: Callable[[str], None]) -> None:
    """Also while the program of the first does not listen yet."""
    fake_prometheus("import sys, threading; print(*sys.argv, flush=True); threading.Event().wait()")
    with lab_files(LAB) as one, lab_files(LAB) as other:
        processes = [lab.start("monitor", stderr=subprocess.DEVNULL) for lab in (one, other)]
        logs = [first_words(lab) for lab in (one, other)]
        for process in processes:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE)
    ports = {part for said in logs for part in said.split() if part.startswith("--web.listen-address=")}

    assert 2 == len(ports)


@pytest.mark.usefixtures("no_leaked_processes")
def test_keeper_that_is_killed_takes_its_program_along(fake_prometheus: Callable[[str], None]) -> None:
    """The kernel ends the program, and the monitor tells that it has ended."""
    fake_prometheus(ANSWERS_ONCE.replace('"alerts" in path', "False"))
    with lab_files(LAB) as lab, monitoring(lab) as (process, _):
        keepers = {pid for pid in descendants(process.pid) if "vbnet.cluster.keeper" in reaper.command_line(pid)}
        [keeper] = {pid for pid in keepers if descendants(pid)}
        [program] = descendants(keeper)
        os.kill(keeper, signal.SIGKILL)
        _, said = process.communicate(timeout=PATIENCE)

        assert set() == living({program})
    assert 7 == process.returncode
    assert "vbnet: prometheus ended (exit code -9): " in said


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("no_leaked_processes", "real_prometheus", "with_grafana")
def test_grafana_gets_prometheus_dashboards_and_visitors_without_rights() -> None:
    """Checked by the stand-in, from the files that Grafana would read."""
    with lab_files(LAB) as lab, monitoring(lab) as (process, addresses):
        told = get(f"{addresses['grafana']}/api/health")
        process.terminate()
        code = process.wait(PATIENCE)

        assert 0 == code
        assert set() == living({told["helper"]})
    assert addresses["prometheus"] == told["url"]
    assert "vbnet-overview" in told["dashboards"]
    assert [] == told["environment"]
    ini = told["ini"]
    assert "127.0.0.1" == ini["server"]["http_addr"]
    assert {"enabled": "true", "org_role": "Viewer"} == ini["auth.anonymous"]
    assert "true" == ini["auth"]["disable_login_form"]
    assert Path(ini["dashboards"]["default_home_dashboard_path"]).is_file()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("no_leaked_processes", "real_prometheus")
def test_data_is_kept_where_asked_and_one_monitor_uses_it_at_a_time(tmp_path: Path) -> None:
    """A second one says so in a line, and the next one finds what the first had stored."""
    data = tmp_path / "data"
    with real_lab(LAB) as lab:
        with monitoring(lab, "--data", str(data)) as (process, addresses):
            [seen] = eventually(lambda: query(addresses["prometheus"], "vbnet_node_up"), "the lab is scraped", PATIENCE)
            second = lab.start("monitor", "--data", str(data), stderr=subprocess.PIPE)
            _, said = second.communicate(timeout=PATIENCE)
            owner = process.pid
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)
        with monitoring(lab, "--data", str(data)) as (process, addresses):
            stored = query(addresses["prometheus"], f"vbnet_node_up @ {seen['value'][0]:.3f}")
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)

    told = [line for line in said.splitlines() if "grafana is not installed" not in line]
    assert 5 == second.returncode
    assert 1 == len(told)
    assert told[0].startswith(f"vbnet: a `vbnet monitor` (process {owner}) uses {data} already; ")
    assert ["t"] == [sample["metric"]["lab"] for sample in stored]
    assert 0o700 == data.stat().st_mode & 0o777


@pytest.mark.slow
@pytest.mark.usefixtures("real_prometheus")
def test_mistakes_are_told_with_their_exit_codes(tmp_path: Path) -> None:
    """A port that is taken, a folder with something else in it, a lab and an exporter that are not there."""
    (tmp_path / "letter").touch()
    with lab_files(LAB) as lab, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = [
            (5, ("--prometheus-port", str(port)), f"port {port} of 127.0.0.1 is taken"),
            (2, ("--data", str(tmp_path)), "holds something else"),
            (3, ("nolab",), "there is no lab or host node `nolab`"),
            (3, ("--exporter", "127.0.0.1:1"), "no exporter answers at http://127.0.0.1:1/sd"),
        ]
        for code, arguments, told in cases:
            process = lab.start("monitor", *arguments, stderr=subprocess.PIPE)
            _, said = process.communicate(timeout=PATIENCE)

            assert code == process.returncode, said
            assert told in said.splitlines()[-1]
        assert [] == list(lab.root.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("no_leaked_processes")
def test_what_is_missing_is_said_and_the_rest_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Prometheus and Grafana there is the exporter, and one line each on how to get the others."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with lab_files(LAB) as lab:
        lab.root.rmdir()
        with monitoring(lab) as (process, addresses):
            targets = get(f"{addresses['exporter']}/sd")
            mode = lab.root.stat().st_mode & 0o777
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE)

    assert 0o700 == mode, "as host nodes want it"
    assert ["exporter"] == list(addresses)
    assert [] == targets
    assert "prometheus is not installed: on Debian or Ubuntu `apt-get install prometheus`" in said
    assert "grafana is not installed: " in said

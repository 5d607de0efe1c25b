"""The exporter as a process: by itself, beside a host node, beside a lab; and what is left when somebody is killed."""

import os
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import vbnet_program
from tests.support.certificates import Certificate
from tests.support.lab import Lab
from tests.support.real_lab import lab_files
from tests.support.waiting import PATIENCE, eventually
from vbnet.cluster.process import Identity, identify, is_alive, wait_ended
from vbnet.telemetry.serve import ExporterProcess

ADDRESS = re.compile(r"127\.0\.0\.1:[0-9]+")


def fetch(address: str, path: str = "/metrics") -> str:
    """Ask an exporter."""
    with urllib.request.urlopen(f"http://{address}{path}", timeout=PATIENCE) as answer:
        text: str = answer.read().decode()
    return text


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start ``vbnet``; gives the process and the address it names when it is ready. Killed at the end."""
    process = subprocess.Popen([*vbnet_program.COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        told = ADDRESS.search(process.stderr.readline())
        assert told is not None
        yield process, told[0]
    finally:
        process.kill()
        process.communicate()


def exporters_of(parent: int) -> list[Identity]:
    """Exporters that a process started."""
    children = Path(f"/proc/{parent}/task").glob("*/children")
    pids = [int(pid) for listed in children for pid in listed.read_text().split()]
    found = [identify(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text() == "vbnet-metrics\n"]
    return [identity for identity in found if identity is not None]


def test_exporter_serves_nodes_that_stand_still_and_that_died(own_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another process than the node, and asks the node nothing. SIGTERM ends it, well."""
    monkeypatch.setenv("VBNET_RUN_DIR", str(own_lab.run_dir.path.parent))

    with started("metrics", "serve", "--listen", "127.0.0.1:0") as (process, address):
        at_work = fetch(address)
        own_lab.host.pause()
        still = fetch(address)
        own_lab.host.resume()
        own_lab.host.kill()
        dead = fetch(address, "/metrics?node=host")
        process.terminate()
        code = process.wait(PATIENCE)

    assert 0 == code
    for text, is_up in ((at_work, "1.0"), (still, "1.0"), (dead, "0.0")):
        assert f"\nvbnet_node_up {is_up}\n" in text
        assert "\nvbnet_guest_sessions_total " in text


def test_mistakes_are_told_with_their_exit_codes(run_dir: Path, tmp_path: Path) -> None:
    """A port that is taken, an address for everybody, a configuration that is none, a node that is none."""
    assert run_dir.parent
    config = tmp_path / "web.yml"
    config.write_text("tls_config: {}\n")
    serve = ("metrics", "serve")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answers = [
            vbnet_program.run(*serve, "--listen", f"127.0.0.1:{port}", code=5),
            vbnet_program.run(*serve, "--listen", f"0.0.0.0:{port}", code=4),
            vbnet_program.run(*serve, "--listen", "nonsense", code=2),
            vbnet_program.run(*serve, "--web-config", str(config), code=2),
            vbnet_program.run(*serve, "--node", "nobody", code=3),
        ]

    for answer, told in zip(
        answers, (f"127.0.0.1:{port} already", "--web-config", "ADDRESS:PORT", f"{config}:1: ", "`nobody`"), strict=True
    ):
        assert told in answer.stderr
        assert 1 == len(answer.stderr.splitlines())


def test_exporter_takes_a_renewed_certificate_and_tells(
    own_lab: Lab, tmp_path: Path, program: Callable[[str], str]
) -> None:
    """As the child of somebody: what it tells is in its log; what it refuses is there once."""
    old, new = (Certificate(program("openssl"), tmp_path, name) for name in ("old", "new"))
    old.install(tmp_path)
    config, log = tmp_path / "web.yml", tmp_path / "log"
    text = "tls_server_config: {cert_file: node.crt, key_file: node.key}\n"
    config.write_text(text)
    root = own_lab.run_dir.path.parent

    with ExporterProcess("127.0.0.1:0", web_config=config, node=None, root=root, log=log) as exporter:
        exporter.wait_ready()
        url = f"https://{exporter.address}/metrics"
        for certificate, changed in ((old, text), (old, "nonsense: 1\n"), (old, "nonsense: 1\n"), (new, text)):
            config.write_text(changed)
            if certificate is new:
                new.install(tmp_path)
            with urllib.request.urlopen(url, timeout=PATIENCE, context=certificate.trusting) as answer:
                assert b"vbnet_node_up 1.0" in answer.read()

    taken = f"vbnet metrics: the changed web configuration {config} is in use"
    refused = [line for line in log.read_text().splitlines() if line != taken]
    assert taken in log.read_text()
    assert ["nonsense" in line and "is refused" in line for line in refused] in ([True], [True, True])


def test_host_node_brings_its_exporter_and_takes_it_along(run_dir: Path) -> None:
    """It is started again when it is killed, and ended with the host."""
    assert run_dir.parent

    with started("host", "run", "solo", "--metrics", "127.0.0.1:0") as (host, address):
        first = fetch(address)
        (exporter,) = exporters_of(host.pid)
        os.kill(exporter.pid, signal.SIGKILL)
        again = fetch(address)
        eventually(lambda: [exporter] != exporters_of(host.pid) != [], "there is another exporter")
        (other,) = exporters_of(host.pid)
        host.terminate()
        code = host.wait(PATIENCE)

    assert 0 == code
    assert "\nvbnet_node_up 1.0\n" in first
    assert "\nvbnet_node_up 1.0\n" in again
    assert not is_alive(other)


def test_exporter_that_stands_still_dies_with_a_host_that_is_killed(run_dir: Path) -> None:
    """Nothing is left behind, whatever state it was in."""
    assert run_dir.parent

    with started("host", "run", "solo", "--metrics", "127.0.0.1:0") as (host, address):
        assert fetch(address)
        (exporter,) = exporters_of(host.pid)
        os.kill(exporter.pid, signal.SIGSTOP)
        host.kill()

        assert wait_ended(exporter, PATIENCE)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_lab_brings_its_exporter_and_takes_it_along() -> None:
    """The file says where it listens; it shows that lab, and is gone with it, also when the supervisor is killed."""
    port = free_port()
    text = "name: t\nswitches: {lan: {}}\nguests:\n  s: {kind: stack, nics: [{switch: lan, ip: 10.10.0.10/24}]}\n"

    with lab_files(f"{text}metrics: {{listen: 127.0.0.1:{port}}}\n") as lab:
        lab.vbnet("up", str(lab.file), "-d")
        served = fetch(f"127.0.0.1:{port}")
        listed = fetch(f"127.0.0.1:{port}", "/sd")
        supervisor = lab.state().supervisor
        (exporter,) = exporters_of(supervisor.pid)
        lab.vbnet("down")
        is_left = is_alive(exporter)

        lab.vbnet("up", str(lab.file), "-d")
        everybody = [*lab.everybody(), *exporters_of(lab.state().supervisor.pid)]
        os.kill(lab.state().supervisor.pid, signal.SIGKILL)
        ended = [wait_ended(identity, PATIENCE) for identity in everybody]
        lab.vbnet("clean")

    assert 'vbnet_device_receive_packets_total{guest="s",device="s.eth0",switch="lan"}' in served
    assert '"lab": "t"' in listed
    assert not is_left
    assert all(ended)

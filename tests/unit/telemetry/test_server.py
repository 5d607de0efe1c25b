"""The exporter over HTTP: what it answers, to whom, and how little a bad client can do."""

import asyncio
import base64
import http.client
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self

import bcrypt
import pytest

from tests.support.certificates import Certificate
from vbnet._native import CounterFile
from vbnet.bus.rundir import HostRecord, RunDir, start_ticks
from vbnet.hostnode.metrics import HOST
from vbnet.telemetry import Exposition
from vbnet.telemetry import server as server_module
from vbnet.telemetry.server import CONNECTIONS_MAX, Listen, MetricsServer, check_exposure
from vbnet.telemetry.webconfig import WebConfigFile

TLS = Path(__file__).parents[2] / "support" / "tls"
PATIENCE = 20.0


class Site:
    """Run directories and an exporter of all of them, on a thread; a context manager."""

    def __init__(self, root: Path, web: WebConfigFile | None = None, node: str | None = None) -> None:
        self.root = root
        self.listening = Listen("127.0.0.1", 0).open()
        self.port = self.listening.getsockname()[1]
        self.server = MetricsServer(self.listening, web or WebConfigFile(), node, root)
        self._loop = asyncio.new_event_loop()
        self._files: list[object] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        self._task = self._loop.create_task(self.server.serve())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def node(self, name: str, ticks: int | None = None, sessions: int = 1) -> RunDir:
        """A node that this process is, unless ``ticks`` says that it was another one."""
        run_dir = RunDir.for_node(name, self.root)
        run_dir.create()
        file = CounterFile.create(run_dir.counters / "host.counters")
        block = file.allocate(HOST.kind, "", HOST.words)
        block.set(HOST.index("guest_sessions"), sessions)
        self._files += [file, block]
        pid = os.getpid()
        run_dir.write_host(HostRecord(pid, "now", "9", 1, 2, "4", start_ticks(pid) if ticks is None else ticks))
        return run_dir

    def ask(
        self, path: str, method: str = "GET", tls: ssl.SSLContext | None = None, **headers: str
    ) -> tuple[int, str, dict[str, str]]:
        """Status, body and headers of an answer."""
        kind = http.client.HTTPConnection
        with ExitStack() as stack:
            if tls is None:
                connection = kind("127.0.0.1", self.port, timeout=PATIENCE)
            else:
                connection = http.client.HTTPSConnection("localhost", self.port, timeout=PATIENCE, context=tls)
            stack.callback(connection.close)
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), {name.lower(): text for name, text in answer.getheaders()}

    def raw(self, data: bytes) -> socket.socket:
        """A client that sends something and does not hang up."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        client.sendall(data)
        return client


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An exporter of every node below a folder."""
    with Site(tmp_path) as site:
        yield site


def test_the_only_node_is_served_without_being_named(site: Site) -> None:
    """Text by default, OpenMetrics for who wants it."""
    site.node("one")

    status, text, headers = site.ask("/metrics")
    _, openmetrics, open_headers = site.ask("/metrics", Accept="application/openmetrics-text;version=1.0.0")

    assert (200, "text/plain; version=0.0.4; charset=utf-8") == (status, headers["content-type"])
    assert "\nvbnet_guest_sessions_total 1\n" in text
    assert open_headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.endswith("\n# EOF\n")


def test_several_nodes_are_targets_of_their_own(site: Site) -> None:
    """What ``/sd`` lists is what ``/metrics`` serves."""
    for name, sessions in (("one", 1), ("two", 2)):
        site.node(name, sessions=sessions)

    status, listed, headers = site.ask("/sd")

    assert (200, "application/json") == (status, headers["content-type"])
    groups = json.loads(listed)
    assert ["one", "two"] == [group["labels"]["lab"] for group in groups]
    assert {f"127.0.0.1:{site.port}"} == {target for group in groups for target in group["targets"]}
    for group, sessions in zip(groups, (1, 2), strict=True):
        path = f"{group['labels']['__metrics_path__']}?node={group['labels']['__param_node']}"
        assert f"\nvbnet_guest_sessions_total {sessions}\n" in site.ask(path)[1]
    assert 404 == site.ask("/metrics")[0]
    assert "/metrics?node=one /metrics?node=two" in site.ask("/metrics")[1]


def test_node_that_is_chosen_is_the_only_one(tmp_path: Path) -> None:
    """An exporter of one lab does not show the others."""
    with Site(tmp_path, node="one") as site:
        site.node("one")
        site.node("two")

        answers = [site.ask(path)[0] for path in ("/metrics", "/metrics?node=one", "/metrics?node=two")]
        listed = json.loads(site.ask("/sd")[1])

    assert [200, 200, 404] == answers
    assert ["one"] == [group["labels"]["lab"] for group in listed]


def test_readiness_is_that_of_the_nodes(site: Site) -> None:
    """The exporter is healthy without a node; it is ready when all are up."""
    before = [site.ask(path)[0] for path in ("/healthz", "/readyz")]
    site.node("one")
    up = site.ask("/readyz")
    site.node("two", ticks=1)
    down = site.ask("/readyz")

    assert [200, 503] == before
    assert (200, "up: one\n") == up[:2]
    assert (503, "not up: two\n") == down[:2]
    assert 200 == site.ask("/readyz?node=one")[0]
    assert "vbnet_node_up 0.0" in site.ask("/metrics?node=two")[1]


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "GET", 200),
        ("/metrics", "HEAD", 200),
        ("/metrics", "POST", 405),
        ("/nothing", "GET", 404),
        ("/metrics?node=../one", "GET", 404),
        ("/metrics?node=%00", "GET", 404),
        ("/../../etc/passwd", "GET", 404),
    ],
)
def test_paths_and_methods(site: Site, path: str, method: str, status: int) -> None:
    """What is not there is not there."""
    site.node("one")

    found, body, headers = site.ask(path, method)

    assert status == found
    assert (method == "HEAD") == (not body)
    assert "close" == headers["connection"]


def test_names_are_escaped_on_the_page(site: Site) -> None:
    """A folder's name is no markup."""
    (site.root / "<b>x" / "counters").mkdir(parents=True)

    assert "&lt;b&gt;x" in site.ask("/")[1]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"a" * 70_000, b"431"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", b"405"),
        (b"GET / HTTP/1.0\r\n\r\n", b"200"),
    ],
    ids=["lines", "nonsense", "tls", "no host", "long header", "body", "old"],
)
def test_malformed_requests_are_refused_and_cost_nobody_else(site: Site, data: bytes, status: bytes) -> None:
    """The next client is served."""
    site.node("one")
    with site.raw(data) as client:
        client.shutdown(socket.SHUT_WR)
        first = client.recv(4096)

    assert status in first[:13]
    assert 200 == site.ask("/metrics")[0]


def test_clients_that_do_nothing_are_bounded_and_sent_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, the exporter answers again once their time is over."""
    monkeypatch.setattr(server_module, "EXCHANGE_DEADLINE_S", 0.5)
    site.node("one")
    clients = [site.raw(b"GET /metr") for _ in range(CONNECTIONS_MAX)]

    with site.raw(b"GET /healthz HTTP/1.0\r\n\r\n") as late:
        assert b"" == _received(late)
    assert [b""] * CONNECTIONS_MAX == [_received(client) for client in clients]
    text = site.ask("/metrics")[1]
    assert 'vbnet_exporter_connections_drop_total{reason="too_many"} 1.0' in text
    assert f'vbnet_exporter_connections_drop_total{{reason="too_slow"}} {CONNECTIONS_MAX}.0' in text
    for client in clients:
        client.close()


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(100)
    except ConnectionError:
        return b""


def test_slow_reader_is_cut_off(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks for much and reads nothing does not keep what was made for it."""
    monkeypatch.setattr(server_module, "EXCHANGE_DEADLINE_S", 0.5)
    monkeypatch.setattr(Exposition, "render", lambda _self, **_format: b"x" * (64 << 20))
    site.node("one")

    with site.raw(b"GET /metrics HTTP/1.0\r\n\r\n") as client:
        while site.server._connections or not site.server._expositions:
            client.getpeername()

    assert 200 == site.ask("/healthz")[0]


def test_password_and_tls_are_needed_where_they_are_asked_for(tmp_path: Path) -> None:
    """Every path needs both; a real client with both reads."""
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    config = tmp_path / "web.yml"
    config.write_text(
        f"tls_server_config: {{cert_file: {TLS}/localhost.crt, key_file: {TLS}/localhost.key}}\n"
        f"basic_auth_users: {{prometheus: {hashed}}}\n"
    )
    trusting = ssl.create_default_context(cafile=str(TLS / "localhost.crt"))

    def basic(text: str) -> str:
        return f"Basic {base64.b64encode(text.encode()).decode()}"

    with Site(tmp_path / "root", WebConfigFile(config)) as site:
        site.node("one")
        refused = [
            site.ask("/metrics", tls=trusting, **headers)
            for headers in (
                {},
                {"Authorization": basic("prometheus:wrong")},
                {"Authorization": basic("nobody:secret")},
                {"Authorization": "Basic !!!"},
                {"Authorization": "Bearer secret"},
            )
        ]
        paths = [site.ask(path, tls=trusting)[0] for path in ("/", "/healthz", "/readyz", "/sd", "/nothing")]
        served = site.ask("/metrics", tls=trusting, Authorization=basic("prometheus:secret"))
        listed = json.loads(site.ask("/sd", tls=trusting, Authorization=basic("prometheus:secret"))[1])
        with pytest.raises(ssl.SSLCertVerificationError):
            site.ask("/metrics", tls=ssl.create_default_context())
        with site.raw(b"GET /metrics HTTP/1.0\r\n\r\n") as plain:
            assert b"200" not in _received(plain)

    assert [401] * 5 == [status for status, _, _ in refused]
    assert refused[0][2]["www-authenticate"].startswith("Basic ")
    assert [401] * 5 == paths
    assert 200 == served[0]
    assert 'vbnet_exporter_connections_drop_total{reason="unauthorized"} 10.0' in served[1]
    assert "https" == listed[0]["labels"]["__scheme__"]


class Guarded:
    """A site whose certificate and users are files that a test changes; a context manager."""

    def __init__(self, folder: Path, openssl: str) -> None:
        self.folder = folder
        self.config = folder / "web.yml"
        self.first, self.second = (Certificate(openssl, folder, name) for name in ("first", "second"))
        self.told: list[str] = []
        self.first.install(folder)
        self.write_config("one")
        self.site = Site(folder / "root", WebConfigFile(self.config, tell=self.told.append))

    def __enter__(self) -> Self:
        self.site.__enter__()
        self.site.node("node")
        return self

    def __exit__(self, *exc: object) -> None:
        self.site.__exit__(*exc)

    def write_config(self, user: str) -> None:
        """Let in one user, with the password ``secret``."""
        hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
        tls = "tls_server_config: {cert_file: node.crt, key_file: node.key}"
        self.config.write_text(f"{tls}\nbasic_auth_users: {{{user}: {hashed}}}\n")

    def ask(self, certificate: Certificate, user: str = "one") -> tuple[int, str]:
        """Status and body, for a client that trusts one certificate."""
        password = base64.b64encode(f"{user}:secret".encode()).decode()
        status, text, _ = self.site.ask("/metrics", tls=certificate.trusting, Authorization=f"Basic {password}")
        return status, text

    def changes(self, certificate: Certificate) -> tuple[int, int]:
        """Changes that were taken and refused so far, as they are exported."""
        _, text = self.ask(certificate)
        family = "vbnet_exporter_web_config_changes_total"
        taken, refused = (
            next(line for line in text.splitlines() if line.startswith(f'{family}{{result="{result}"}} '))
            for result in ("taken", "refused")
        )
        return int(float(taken.split()[1])), int(float(refused.split()[1]))


@pytest.fixture
def guarded(tmp_path: Path, program: Callable[[str], str]) -> Iterator[Guarded]:
    """A site with TLS and one user."""
    with Guarded(tmp_path, program("openssl")) as guarded:
        yield guarded


def test_renewed_certificate_is_used_from_the_next_connection_on(guarded: Guarded) -> None:
    """Without a restart; who trusts the old one alone is not served any more."""
    before = guarded.ask(guarded.first)[0]

    guarded.second.install(guarded.folder)

    with pytest.raises(ssl.SSLCertVerificationError):
        guarded.ask(guarded.first)
    assert (200, (1, 0)) == (before, guarded.changes(guarded.second))
    assert [f"the changed web configuration {guarded.config} is in use"] == guarded.told


def test_certificate_that_came_before_its_key_is_refused_until_the_key_is_there(guarded: Guarded) -> None:
    """The old pair is used meanwhile; it is told once, not at every connection."""
    guarded.second.install_file(guarded.folder)
    between = [guarded.changes(guarded.first) for _ in range(3)]
    guarded.second.key.rename(guarded.folder / "node.key")

    assert [(0, 1)] * 3 == between
    assert (1, 1) == guarded.changes(guarded.second)
    assert 2 == len(guarded.told)
    assert guarded.told[0].startswith(
        f"the changed web configuration is refused, the one before stays in use: {guarded.config}:1: cannot use "
    )


@pytest.mark.parametrize("content", ["tls_server_config: [\n", "nonsense: 1\n", None], ids=["yaml", "key", "gone"])
def test_broken_configuration_leaves_the_one_before_in_use(guarded: Guarded, content: str | None) -> None:
    """TLS and the password stay; the mended file is taken again."""
    if content is None:
        guarded.config.unlink()
    else:
        guarded.config.write_text(content)
    broken = guarded.changes(guarded.first)
    stranger = guarded.ask(guarded.first, "two")[0]
    guarded.write_config("one")

    assert ((0, 1), 401) == (broken, stranger)
    assert (1, 1) == guarded.changes(guarded.first)
    assert ["is refused" in line for line in guarded.told] == [True, False]


def test_changed_users_are_let_in_and_removed_ones_are_not(guarded: Guarded) -> None:
    """Also who was let in before."""
    before = [guarded.ask(guarded.first, user)[0] for user in ("one", "two")]
    guarded.write_config("two")
    after = [guarded.ask(guarded.first, user)[0] for user in ("one", "two")]

    assert [200, 401] == before
    assert [401, 200] == after


def test_folder_behind_a_link_that_is_exchanged_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes renews what it mounts: the file is a link into a folder that is a link itself."""
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    for user in ("one", "two"):
        (tmp_path / user).mkdir()
        (tmp_path / user / "web.yml").write_text(f"basic_auth_users: {{{user}: {hashed}}}\n")
    (tmp_path / "data").symlink_to("one")
    (tmp_path / "web.yml").symlink_to("data/web.yml")
    web = WebConfigFile(tmp_path / "web.yml", tell=lambda _line: None)
    before = web.has_changed()

    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "data")
    after = web.has_changed()
    web.refresh()

    assert (False, True) == (before, after)
    assert ["two"] == list(web.current.users)


def test_changed_configuration_is_held_to_the_rule_about_other_machines(tmp_path: Path) -> None:
    """Taking TLS away where others can reach it is refused, and TLS stays."""
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    users = f"basic_auth_users: {{one: {hashed}}}\n"
    config = tmp_path / "web.yml"
    config.write_text(f"tls_server_config: {{cert_file: {TLS}/localhost.crt, key_file: {TLS}/localhost.key}}\n{users}")
    told: list[str] = []
    web = WebConfigFile(config, partial(check_exposure, Listen.parse("192.0.2.1:1")), told.append)

    config.write_text(users)
    web.refresh()

    assert web.current.tls is not None
    assert {"refused": 1} == web.changes
    assert "there is no TLS" in told[0]

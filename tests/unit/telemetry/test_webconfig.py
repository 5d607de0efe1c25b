"""The web configuration: what is understood, and what is refused with its line."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from vbnet.errors import NotPermittedError, UsageError
from vbnet.telemetry.exposition import Format
from vbnet.telemetry.server import Listen, check_exposure, preferred
from vbnet.telemetry.webconfig import Doorkeeper, WebConfig, WebConfigFile

TLS = Path(__file__).parents[2] / "support" / "tls"
HASH = "$2b$04$xMFe1TyVwAv5Ane6Waa8weZHSzUfbEorUn1/bMsAw2KTK9hFebuW2"
"""Of `secret`, made once: tests have the same names in every process."""


def write(folder: Path, text: str) -> Path:
    """A configuration beside a certificate and its key."""
    for name in ("localhost.crt", "localhost.key"):
        (folder / name).write_bytes((TLS / name).read_bytes())
    path = folder / "web.yml"
    path.write_text(text)
    return path


def test_tls_and_users_are_read(tmp_path: Path) -> None:
    """Files are found beside the configuration."""
    path = write(
        tmp_path,
        "tls_server_config:\n  cert_file: localhost.crt\n  key_file: localhost.key\n  min_version: TLS13\n"
        f"basic_auth_users:\n  prometheus: {HASH}\n",
    )

    web = WebConfigFile(path).current

    assert web.tls is not None
    assert {"prometheus": HASH.encode()} == web.users


def test_empty_file_is_no_protection(tmp_path: Path) -> None:
    """As Prometheus' own exporters have it."""
    assert WebConfig() == WebConfigFile(write(tmp_path, "# nothing yet\n")).current


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("tls_server_config:\n  cert_file: localhost.crt\n  client_ca_file: ca.crt\n", 3, "no key 'client_ca_file'"),
        ("http_server_config: {}\n", 1, "no key 'http_server_config'"),
        ("tls_server_config:\n  cert_file: localhost.crt\n", 2, "needs key_file"),
        ("tls_server_config:\n  cert_file: nowhere.crt\n  key_file: localhost.key\n", 2, "is not there"),
        ("tls_server_config:\n  cert_file: localhost.key\n  key_file: localhost.key\n", 2, "cannot use"),
        (
            "tls_server_config:\n  cert_file: localhost.crt\n  key_file: localhost.key\n  min_version: TLS10\n",
            4,
            "TLS12, TLS13",
        ),
        ("basic_auth_users:\n  a: plain\n", 2, "no bcrypt hash"),
        (f"basic_auth_users:\n  a: {HASH}\n  a: {HASH}\n", 3, "twice"),
        (f"basic_auth_users:\n  'a:b': {HASH}\n", 2, "no colon"),
        ("basic_auth_users: [a]\n", 1, "a mapping"),
        ("- a\n", 1, "a mapping"),
        ("a: b\n c: [\n", 2, ""),
    ],
)
def test_what_is_not_understood_is_told_with_its_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    """Nobody relies on a protection that is not there."""
    path = write(tmp_path, text)

    with pytest.raises(UsageError) as caught:
        WebConfigFile(path)

    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert what in str(caught.value)


def test_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With its path."""
    with pytest.raises(UsageError, match=r"cannot read .*web.yml"):
        WebConfigFile(tmp_path / "web.yml")


def test_only_users_with_their_password_are_let_in() -> None:
    """Once right, always right; a wrong one never is."""
    door = Doorkeeper({"prometheus": HASH.encode()})

    tried = [("prometheus", b"secret"), ("prometheus", b"secret"), ("prometheus", b"Secret"), ("nobody", b"secret")]
    long = ("prometheus", b"secret" + bytes(100))

    assert [True, True, False, False, False] == [door.lets_in(*each) for each in (*tried, long)]


@pytest.mark.parametrize(
    ("listen", "has_tls", "has_users", "is_fine"),
    [
        ("127.0.0.1:1", False, False, True),
        ("127.9.9.9:1", False, False, True),
        ("[::1]:1", False, False, True),
        ("localhost:1", False, False, True),
        (":1", False, False, True),
        ("0.0.0.0:1", False, False, False),
        ("[::]:1", True, False, False),
        ("10.0.0.1:1", False, True, False),
        ("example.org:1", True, False, False),
        ("0.0.0.0:1", True, True, True),
    ],
)
def test_other_machines_read_with_tls_and_a_password_only(
    tmp_path: Path, listen: str, has_tls: bool, has_users: bool, is_fine: bool
) -> None:
    """Names of guests are nobody else's business."""
    tls = "tls_server_config: {cert_file: localhost.crt, key_file: localhost.key}\n" if has_tls else ""
    users = f"basic_auth_users: {{a: {HASH}}}\n" if has_users else ""
    web = WebConfigFile(write(tmp_path, tls + users + "# end\n")).current

    with nullcontext() if is_fine else pytest.raises(NotPermittedError, match="--web-config"):
        check_exposure(Listen.parse(listen), web)


@pytest.mark.parametrize("text", ["", "9617", "127.0.0.1", "::1:9617", "127.0.0.1:99999", "host:port", "a b:1"])
def test_what_is_no_address_is_told(text: str) -> None:
    """With an example."""
    with pytest.raises(UsageError, match="ADDRESS:PORT like"):
        Listen.parse(text)


_PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding="
_OPENMETRICS = "application/openmetrics-text"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", Format.TEXT),
        ("*/*", Format.TEXT),
        ("text/plain", Format.TEXT),
        (_OPENMETRICS, Format.OPENMETRICS),
        (f"{_OPENMETRICS};version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", Format.OPENMETRICS),
        (f"{_OPENMETRICS};q=0.1, text/plain", Format.TEXT),
        (f"{_OPENMETRICS};q=0", Format.TEXT),
        (f"{_OPENMETRICS};q=x", Format.TEXT),
        (f"{_PROTOBUF}delimited,{_OPENMETRICS};version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5", Format.PROTOBUF),
        (f"{_PROTOBUF}delimited;q=0.3,{_OPENMETRICS};q=0.8", Format.OPENMETRICS),
        (f"{_PROTOBUF}compact-text,text/plain;q=0.5", Format.TEXT),
        ("application/vnd.google.protobuf;proto=another.Message", Format.TEXT),
        ("application/vnd.google.protobuf", Format.PROTOBUF),
    ],
)
def test_client_gets_the_format_that_it_likes_best(accept: str, wanted: Format) -> None:
    """As its header says."""
    assert wanted == preferred(accept)

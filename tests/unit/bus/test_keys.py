"""Keys: private files, an allow-list, nobody in without both."""

from pathlib import Path

import pytest

from vbnet.bus.keys import KeyStore, TcpAddress
from vbnet.errors import ExistsError, NotFoundError, NotPermittedError, UsageError

PEER = "k" * 40


def test_a_key_is_made_once_and_read_back(run_root: Path) -> None:
    """The secret is private and is not lost by accident."""
    store = KeyStore(run_root / "keys")

    made = store.make()

    assert made == store.load()
    assert (store.path / "secret").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ExistsError):
        store.make()


def test_a_secret_that_others_can_read_is_refused(run_root: Path) -> None:
    """A key that may have been copied is no key."""
    store = KeyStore(run_root / "keys")
    store.make()
    (store.path / "secret").chmod(0o640)

    with pytest.raises(NotPermittedError):
        store.load()


def test_a_secret_behind_a_link_is_refused(run_root: Path) -> None:
    """The file itself is looked at, not where it points."""
    store = KeyStore(run_root / "keys")
    store.make()
    (store.path / "secret").rename(run_root / "moved")
    (store.path / "secret").symlink_to(run_root / "moved")

    with pytest.raises(NotPermittedError):
        store.load()


def test_no_secret_reaches_a_log(run_root: Path) -> None:
    """A key pair shows its public half only."""
    made = KeyStore(run_root / "keys").make()

    assert f"KeyPair({made.public})" == repr(made)
    assert made.secret not in f"{made!r} {made}"


def test_peers_are_allowed_and_forbidden_by_name_or_key(run_root: Path) -> None:
    """The list holds who may come."""
    store = KeyStore(run_root / "keys")
    store.allow(PEER, "laptop")
    store.allow("#" * 40, "tower")

    store.forbid("laptop")

    assert store.allowed() == {"#" * 40: "tower"}
    with pytest.raises(NotFoundError):
        store.forbid("laptop")
    with pytest.raises(ExistsError):
        store.allow("#" * 40, "again")


@pytest.mark.parametrize(
    ("key", "name"), [("short", "a"), ("k" * 41, "a"), ("k" * 39 + "'", "a"), (PEER, "a b"), (PEER, "")]
)
def test_a_malformed_peer_is_refused(run_root: Path, key: str, name: str) -> None:
    """Nothing malformed reaches the list."""
    with pytest.raises(UsageError):
        KeyStore(run_root / "keys").allow(key, name)


def test_a_malformed_line_is_named(run_root: Path) -> None:
    """An edited list says where it is wrong."""
    store = KeyStore(run_root / "keys")
    store.allow(PEER, "laptop")
    with (store.path / "allowed").open("a") as file:
        file.write("nonsense\n")

    with pytest.raises(UsageError, match="allowed:2"):
        store.allowed()


def test_a_list_others_can_change_is_refused(run_root: Path) -> None:
    """Whoever can write the list decides who comes in."""
    store = KeyStore(run_root / "keys")
    store.allow(PEER, "laptop")
    (store.path / "allowed").chmod(0o666)

    with pytest.raises(NotPermittedError):
        store.allowed()


def test_an_address_names_three_ports() -> None:
    """Guests, operators and listeners each have a port."""
    address = TcpAddress.parse("tcp://10.0.0.1:7400")

    assert [address.endpoint(above) for above in range(3)] == [
        "tcp://10.0.0.1:7400",
        "tcp://10.0.0.1:7401",
        "tcp://10.0.0.1:7402",
    ]


@pytest.mark.parametrize(
    "text", ["10.0.0.1:7400", "tcp://x", "tcp://x:0", "tcp://x:65534", "tcp://x:99999", "tcp://:1", "tcp://a b:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """The reader sees an example."""
    with pytest.raises(UsageError, match="tcp://10"):
        TcpAddress.parse(text)

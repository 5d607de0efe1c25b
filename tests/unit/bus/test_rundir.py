"""The run directory: private, found, locked, cleaned."""

import os
from pathlib import Path

import pytest

from vbnet.bus.rundir import HostRecord, RunDir, run_root
from vbnet.errors import BusyError, NotFoundError, NotPermittedError, UsageError


def test_the_environment_chooses_the_root() -> None:
    """VBNET_RUN_DIR wins over every default."""
    assert Path("/x/y") == run_root({"VBNET_RUN_DIR": "/x/y", "XDG_RUNTIME_DIR": "/z"})


@pytest.mark.parametrize(
    ("uid", "environ", "expected"),
    [(0, {}, "/run/vbnet"), (1000, {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/user/1000/vbnet"), (1000, {}, None)],
)
def test_each_user_has_a_default_root(
    monkeypatch: pytest.MonkeyPatch, uid: int, environ: dict[str, str], expected: str | None
) -> None:
    """Root, a user with a session and a user without one each get a place of their own."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)

    found = run_root(environ)

    assert (expected or "vbnet-1000") == (str(found) if expected else found.name)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 65, "a\nb"])
def test_a_node_name_is_one_folder_name(name: str) -> None:
    """Nobody leaves the root by a name."""
    with pytest.raises(UsageError):
        RunDir.for_node(name)


def test_what_is_created_is_private(run_root: Path) -> None:
    """Every folder is this user's alone."""
    run_dir = RunDir.for_node("a", run_root / "root")

    run_dir.create()

    folders = (run_dir.path.parent, run_dir.path, run_dir.logs, run_dir.counters)
    assert {0o700} == {folder.stat().st_mode & 0o777 for folder in folders}


def test_a_link_in_place_of_the_folder_is_refused(run_root: Path) -> None:
    """A folder prepared by someone else is not used."""
    (run_root / "elsewhere").mkdir(mode=0o700)
    (run_root / "a").symlink_to(run_root / "elsewhere")

    with pytest.raises(NotPermittedError):
        RunDir.for_node("a", run_root).create()


def test_a_folder_open_to_others_is_refused(run_root: Path) -> None:
    """Access to the folder is access to the bus."""
    run_dir = RunDir.for_node("a", run_root)
    run_dir.create()
    run_dir.path.chmod(0o750)

    with pytest.raises(NotPermittedError):
        run_dir.check()


def test_a_path_too_long_for_sockets_is_refused_before_anything_is_made(run_root: Path) -> None:
    """The reader learns which variable to set, not errno 22."""
    run_dir = RunDir.for_node("a", run_root / ("x" * 100))

    with pytest.raises(UsageError, match="VBNET_RUN_DIR"):
        run_dir.create()

    assert list(run_root.iterdir()) == []


def test_only_one_host_holds_the_folder(run_root: Path) -> None:
    """The second is told; after the first let go it may."""
    run_dir = RunDir.for_node("a", run_root)
    run_dir.create()
    first = run_dir.lock()

    with pytest.raises(BusyError):
        run_dir.lock()
    first.release()

    run_dir.lock().release()


def test_sockets_of_a_killed_host_are_replaced(run_root: Path) -> None:
    """What a dead process left does not stop the next."""
    run_dir = RunDir.for_node("a", run_root)
    run_dir.create()
    run_dir.bus_socket.touch()
    run_dir.host_file.touch()

    lock = run_dir.lock()

    assert not run_dir.bus_socket.exists()
    assert not run_dir.host_file.exists()
    lock.release()


def test_the_host_says_who_it_is(run_root: Path) -> None:
    """What was written is read."""
    run_dir = RunDir.for_node("a", run_root)
    run_dir.create()
    record = HostRecord(1, "2026-01-01T00:00:00+00:00", "1.0", 1, 1, "4.3.5")

    run_dir.write_host(record)

    assert record == run_dir.read_host()


def test_without_a_host_there_is_nobody(run_root: Path) -> None:
    """A missing folder and a missing record both say that no host runs."""
    run_dir = RunDir.for_node("a", run_root)

    with pytest.raises(NotFoundError):
        run_dir.check()
    with pytest.raises(NotFoundError):
        run_dir.read_host()

"""The run directory: one private folder for each host node, holding its sockets, its identity and its logs.

    <root>/<node>/bus.sock       ZeroMQ ROUTER for guest processes        admin.sock   ZeroMQ ROUTER for operators
                  attach.sock    Unix SEQPACKET for guests' descriptors   operate.sock the same, for operators'
                  events.sock    ZeroMQ PUB for whoever listens
                  vhost-user-PORT.sock   Unix STREAM for front ends of vhost-user
                  host.json      pid, start time, versions                host.lock    held while a host node runs
                  counters/      one mapped file a process; in programs/ one a guest whose program counts
                  logs/          one file a process
                  events.jsonl   the last events (events.1.jsonl: before) errors.log   distinct errors, mapped

The folder is the access control: mode 0700, owned by the user who runs the node, never reached through a symbolic
link in its last two parts. The lock dies with its process, so sockets left by a killed host are replaced by the next
one.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from vbnet.bus.filelock import hold, is_held
from vbnet.errors import BusyError, NotFoundError, NotPermittedError, PeerFault, ResourceError, UsageError

__all__ = [
    "DEFAULT_NODE",
    "HOST_LOCK",
    "HostRecord",
    "RunDir",
    "RunLock",
    "counted_nodes",
    "host_lives",
    "run_folders",
    "run_root",
    "start_ticks",
]

DEFAULT_NODE = "default"
HOST_LOCK = "host.lock"
"""Held in a run directory while a host node runs there."""
_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_MAX_SOCKET_PATH_BYTES = 107
_FRONT_END = "vhost-user-"


class HostRecord(msgspec.Struct, frozen=True):
    """What ``host.json`` says about the host node that runs here, or ran last."""

    pid: int
    started_at: str
    vbnet: str
    protocol: int
    abi: int
    libzmq: str
    start_ticks: int = 0
    """When its process started, in clock ticks since boot: with ``pid`` it names one process."""

    def is_alive(self) -> bool:
        """Whether exactly that process is there; one that hangs or is stopped is."""
        return self.start_ticks != 0 and start_ticks(self.pid) == self.start_ticks


def host_lives(folder: Path) -> bool:
    """Say whether a living host node holds this run directory."""
    return is_held(folder / HOST_LOCK) is True


def start_ticks(pid: int) -> int:
    """When the process ``pid`` started, in clock ticks since boot; 0: there is none, or it has ended."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if after_name[0] in {b"Z", b"X"} else int(after_name[19])


def run_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Where run directories live: ``$VBNET_RUN_DIR``, else by user as described in docs/wire/bus.md."""
    if configured := environ.get("VBNET_RUN_DIR"):
        return Path(configured)
    if os.geteuid() == 0:
        return Path("/run/vbnet")
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "vbnet"
    return Path(tempfile.gettempdir()) / f"vbnet-{os.geteuid()}"


def run_folders(root: Path) -> list[Path]:
    """What is below the folder of run directories, by name; nothing where that folder is not there yet.

    Raises:
        ResourceError: it cannot be read.
    """
    try:
        return sorted(root.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ResourceError(
            f"cannot read the run directory {root}: {error.strerror}; VBNET_RUN_DIR may name another",
            errno=error.errno or 0,
            path=str(root),
        ) from error


def counted_nodes(root: Path) -> list[str]:
    """The names of the host nodes that left counters below ``root``, running or not.

    Raises:
        ResourceError: it cannot be read.
    """
    return [entry.name for entry in run_folders(root) if (entry / "counters").is_dir()]


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths of one host node; making one touches nothing on disk."""

    path: Path

    @classmethod
    def for_node(cls, node: str = DEFAULT_NODE, root: Path | None = None) -> RunDir:
        """The run directory of the node with this name.

        Raises:
            UsageError: the name would not be one folder name.
        """
        if not _NODE_NAME.match(node):
            raise UsageError(f"node name {node!r} must be letters, digits, '.', '_', '-', at most 64", name=node)
        return cls((run_root() if root is None else root) / node)

    @property
    def bus_socket(self) -> Path:
        """Where guest processes connect."""
        return self.path / "bus.sock"

    @property
    def admin_socket(self) -> Path:
        """Where operators connect."""
        return self.path / "admin.sock"

    @property
    def events_socket(self) -> Path:
        """Where events are published."""
        return self.path / "events.sock"

    @property
    def operate_socket(self) -> Path:
        """Where operators give and take descriptors."""
        return self.path / "operate.sock"

    @property
    def attach_socket(self) -> Path:
        """Where guests' descriptors change hands."""
        return self.path / "attach.sock"

    def front_end_socket(self, port: str) -> Path:
        """Where front ends of vhost-user connect to the port of this name, unless its operator said where."""
        return self.path / f"{_FRONT_END}{port}.sock"

    def endpoint(self, service: int) -> str:
        """The ZeroMQ endpoint for guests (0), operators (1) or listeners to events (2)."""
        return f"ipc://{(self.bus_socket, self.admin_socket, self.events_socket)[service]}"

    @property
    def counters(self) -> Path:
        """Folder of the mapped counter files."""
        return self.path / "counters"

    def process_counters(self, process: str) -> Path:
        """The counters file of a guest process of this name, removed by whoever started it when it has ended."""
        return self.counters / f"process-{process}.counters"

    @property
    def programs(self) -> Path:
        """Folder of the counters files of guests' own programs."""
        return self.counters / "programs"

    def program_counters(self, guest: str) -> Path:
        """What the program of the guest of this name counts; removed by the host when the guest has ended."""
        return self.programs / f"{quote(guest, safe='')}.counters"

    @property
    def logs(self) -> Path:
        """Folder of the log files."""
        return self.path / "logs"

    @property
    def events_file(self) -> Path:
        """The last events, one a line."""
        return self.path / "events.jsonl"

    @property
    def old_events_file(self) -> Path:
        """The events before those."""
        return self.path / "events.1.jsonl"

    @property
    def errors_file(self) -> Path:
        """The distinct errors."""
        return self.path / "errors.log"

    @property
    def host_file(self) -> Path:
        """The host's identity."""
        return self.path / "host.json"

    def create(self) -> None:
        """Make the folders, or check those that are there.

        Raises:
            NotPermittedError: a folder is a link, another user's, or open to others.
            ResourceError: the file system refused.
            UsageError: the path is too long for a socket.
        """
        longest = max(len(os.fsencode(path)) for path in (self.admin_socket, self.events_socket, self.operate_socket))
        if longest > _MAX_SOCKET_PATH_BYTES:
            raise UsageError(
                f"{self.path} is too long: sockets need at most {_MAX_SOCKET_PATH_BYTES} bytes; set VBNET_RUN_DIR",
                got=longest,
                limit=_MAX_SOCKET_PATH_BYTES,
            )
        self.path.parent.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.path.parent, self.path, self.counters, self.programs, self.logs):
            _make_private(folder)

    def check(self) -> None:
        """Check that the folder is there and private, without making it.

        Raises:
            NotFoundError: no host node ever ran here.
            NotPermittedError: a link, another user's, or open to others.
        """
        _check_private(self.path)

    def lock(self) -> RunLock:
        """Take the folder for this process, and clear what a killed host left.

        Raises:
            BusyError: a host node runs here.
        """
        lock = RunLock(self)
        for stale in (
            self.bus_socket,
            self.admin_socket,
            self.events_socket,
            self.attach_socket,
            self.operate_socket,
            self.host_file,
            *self.path.glob(f"{_FRONT_END}*.sock"),
            *self.programs.glob("*.counters"),
        ):
            stale.unlink(missing_ok=True)
        return lock

    def read_host(self) -> HostRecord:
        """Who runs here, or ran last.

        Raises:
            NotFoundError: no host node runs here.
            PeerFault: the file is damaged.
        """
        try:
            return msgspec.json.decode(self.host_file.read_bytes(), type=HostRecord)
        except FileNotFoundError:
            raise NotFoundError(f"no host node runs in {self.path}", path=str(self.path)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PeerFault(f"{self.host_file} cannot be understood: {error}", rule="host.json") from error

    def write_host(self, record: HostRecord) -> None:
        """Publish the host's identity, whole or not at all."""
        fresh = self.host_file.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(record))
        fresh.replace(self.host_file)


class RunLock:
    """The run directory is this process's until ``release``, or until the process ends in any way."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        fd = hold(run_dir.path / HOST_LOCK)
        if fd is None:
            raise BusyError(f"a host node runs in {run_dir.path} already", path=str(run_dir.path))
        self._fd = fd

    def release(self) -> None:
        """Remove the sockets and give the folder back."""
        if self._fd < 0:
            return
        directory = self._run_dir
        for name in (
            directory.bus_socket,
            directory.admin_socket,
            directory.events_socket,
            directory.attach_socket,
            directory.operate_socket,
            directory.host_file,
        ):
            name.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        raise NotPermittedError(f"{folder} is not a folder; it was not used", path=str(folder)) from None
    except OSError as error:
        raise ResourceError(f"cannot make {folder}: {error.strerror}", errno=error.errno or 0) from error
    _check_private(folder)


def _check_private(folder: Path) -> None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"no host node runs in {folder}", path=str(folder)) from None
    except OSError as error:
        raise NotPermittedError(
            f"{folder} is a link or no folder ({error.strerror}); it was not used", path=str(folder)
        ) from error
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        raise NotPermittedError(
            f"{folder} belongs to user {status.st_uid}; it was not used", path=str(folder), owner=status.st_uid
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise NotPermittedError(
            f"{folder} is open to others (mode {stat.S_IMODE(status.st_mode):o}); run chmod 700 on it",
            path=str(folder),
            mode=stat.S_IMODE(status.st_mode),
        )

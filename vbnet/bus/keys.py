"""Keys for other machines: CURVE key pairs in private files, an allow-list, and the desk that checks it.

A key folder holds ``secret`` (mode 0600, two lines: public, secret), ``public`` (one line) and ``allowed`` (one line
a peer: key, then a name). Without a line in ``allowed`` nobody connects over tcp. The desk answers libzmq's own
question (ZAP, RFC 27) before the first byte of a stranger reaches us; it is bound before any tcp socket, because
libzmq lets everyone in while there is no desk.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq
import zmq.utils.z85

from vbnet.bus.transport import ZmqPort
from vbnet.errors import ExistsError, NotFoundError, NotPermittedError, ResourceError, UsageError

__all__ = ["CurveServer", "KeyPair", "KeyStore", "TcpAddress", "secure_client"]

_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}\Z")
_PEER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
_ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
_ZAP_DOMAIN: Final = b"vbnet"
_ZAP_PARTS: Final = 9
_HEARTBEAT_MS: Final = 5000
_HANDSHAKE_MS: Final = 5000
_MAX_PORT: Final = 65533


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Where a host listens for other machines: guests at ``port``, operators one above, events two above."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> TcpAddress:
        """Read ``tcp://HOST:PORT``.

        Raises:
            UsageError: it is nothing of the kind.
        """
        found = re.fullmatch(r"tcp://(\[[0-9a-fA-F:.%a-z]+\]|[A-Za-z0-9._*-]+):(\d{1,5})", text)
        if found is None or not 0 < int(found[2]) <= _MAX_PORT:
            raise UsageError(f"{text!r} is not an address like tcp://10.0.0.1:7400", got=text, limit=_MAX_PORT)
        return cls(found[1], int(found[2]))

    def endpoint(self, above: int) -> str:
        """The endpoint ``above`` ports up."""
        return f"tcp://{self.host}:{self.port + above}"


@dataclass(frozen=True, slots=True, repr=False)
class KeyPair:
    """A CURVE key pair, both halves in Z85 (40 characters). Never shown by ``repr``."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair({self.public})"


def _new_pair() -> tuple[str, str]:
    """Make a public and a secret key. A public one that begins with ``-`` would be an option to every command."""
    while True:
        public, secret = (half.decode() for half in zmq.curve_keypair())
        if not public.startswith("-"):
            return public, secret


class KeyStore:
    """A key folder; nothing is read or written until asked.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self, *, replace: bool = False) -> KeyPair:
        """Make this node's own key pair.

        Args:
            replace: whether an existing one may be lost.

        Raises:
            ExistsError: there is one. NotPermittedError: the folder is not private.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(self.path, forbidden=0o022)
        if (self.path / "secret").exists() and not replace:
            raise ExistsError(f"{self.path} holds a key already; peers that know it would be locked out")
        public, secret = _new_pair()
        _write(self.path / "secret", f"{public}\n{secret}\n", 0o600)
        _write(self.path / "public", f"{public}\n", 0o644)
        return KeyPair(public, secret)

    def load(self) -> KeyPair:
        """This node's own key pair.

        Raises:
            NotFoundError: none was made. NotPermittedError: others could read it. UsageError: it is damaged.
        """
        path = self.path / "secret"
        try:
            _check_owner(path, forbidden=0o077)
            halves = path.read_text(encoding="ascii").split()
        except FileNotFoundError:
            raise NotFoundError(f"there is no key in {self.path}; run 'vbnet keys make'", path=str(path)) from None
        if len(halves) != 2 or not all(_KEY.match(half) for half in halves):  # noqa: PLR2004 - public, secret
            raise UsageError(f"{path} is damaged; make the key again", path=str(path))
        return KeyPair(*halves)

    def allow(self, public: str, name: str) -> None:
        """Let the holder of ``public`` in, from now on.

        Raises:
            UsageError: key or name is malformed. ExistsError: it is allowed already.
        """
        check_public_key(public)
        if not _PEER_NAME.match(name):
            raise UsageError(f"peer name {name!r} must be letters, digits, '.', '_', '@', '-'", name=name)
        peers = self.allowed()
        if public in peers:
            raise ExistsError(f"this key is allowed already, as {peers[public]!r}", name=peers[public])
        self._write_allowed({**peers, public: name})

    def forbid(self, name_or_key: str) -> None:
        """Let a peer in no more; connections it has now last until it leaves.

        Raises:
            NotFoundError: it was not allowed.
        """
        peers = self.allowed()
        kept = {key: name for key, name in peers.items() if name_or_key not in (key, name)}
        if len(kept) == len(peers):
            raise NotFoundError(f"{name_or_key!r} is not allowed anyway", name=name_or_key)
        self._write_allowed(kept)

    def allowed(self) -> dict[str, str]:
        """Key → name of everyone who may connect.

        Raises:
            NotPermittedError: others could change the list. UsageError: a line is malformed.
        """
        path = self.path / "allowed"
        try:
            _check_owner(path, forbidden=0o022)
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        peers = {}
        for number, line in enumerate(lines, start=1):
            key, _, name = line.partition(" ")
            if not _KEY.match(key) or not _PEER_NAME.match(name.strip()):
                raise UsageError(f"{path}:{number}: expected a key of 40 characters and a name", line=number)
            peers[key] = name.strip()
        return peers

    def _write_allowed(self, peers: dict[str, str]) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(self.path / "allowed", "".join(f"{key} {name}\n" for key, name in peers.items()), 0o600)


def check_public_key(public: str) -> None:
    """Raise UsageError unless ``public`` is a CURVE key in Z85."""
    if not _KEY.match(public):
        raise UsageError("a public key is 40 characters of Z85, as 'vbnet keys show' prints it", got=len(public))


class CurveServer:
    """Guards the tcp sockets of one context.

    Args:
        context: whose sockets are guarded; it asks this desk about every newcomer.
        keys: own key and allow-list; the list is read again for each newcomer.

    Raises:
        NotFoundError: no key was made, or nobody is allowed. NotPermittedError: files open to others.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: KeyStore) -> None:
        self._keys = keys
        self._pair = keys.load()
        if not keys.allowed():
            raise NotFoundError(
                f"nobody may connect: {keys.path}/allowed is empty; run 'vbnet keys allow'", path=str(keys.path)
            )
        self._stamp: tuple[int, int] = (0, 0)
        self._peers: dict[str, str] = {}
        socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(_ZAP_ENDPOINT)
        self._port = ZmqPort(socket, parts=_ZAP_PARTS, on_message=self._asked)

    def protect(self, socket: zmq.Socket[bytes]) -> None:
        """Let only allowed keys connect to ``socket``; call before binding it."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret.encode())
        socket.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)

    def close(self) -> None:
        """Answer no more; nobody new gets in."""
        self._port.close()

    def _asked(self, parts: list[bytes], surplus: int) -> None:
        """One newcomer: ``[peer, "", version, request, domain, address, identity, mechanism, key]``."""
        if len(parts) < _ZAP_PARTS or surplus:
            return
        peer, _, version, request, domain, _address, _identity, mechanism, key = parts
        name = self._name_of(key) if (version, domain, mechanism) == (b"1.0", _ZAP_DOMAIN, b"CURVE") else None
        verdict = (b"400", b"not on the allow-list", b"") if name is None else (b"200", b"", name.encode())
        self._port.send_nowait(peer, b"", b"1.0", request, *verdict, b"")

    def _name_of(self, key: bytes) -> str | None:
        if len(key) != 32:  # noqa: PLR2004 - a CURVE key before Z85
            return None
        public = zmq.utils.z85.encode(key).decode()
        try:
            status = (self._keys.path / "allowed").stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._peers, self._stamp = self._keys.allowed(), stamp
        except (OSError, UsageError, NotPermittedError):
            return None
        return self._peers.get(public)


def secure_client(socket: zmq.Socket[bytes], keys: KeyPair, server_public: str) -> None:
    """Make ``socket`` speak CURVE as ``keys`` to the server that holds ``server_public``, and to no other."""
    check_public_key(server_public)
    socket.setsockopt(zmq.CURVE_SERVERKEY, server_public.encode())
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)


def _write(path: Path, text: str, mode: int) -> None:
    """Replace a file whole; it never exists with more rights than ``mode``."""
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}", errno=error.errno or 0) from error


def _check_owner(path: Path, *, forbidden: int) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise NotPermittedError(f"{path} is a link; it was not used", path=str(path))
    if status.st_uid not in (os.geteuid(), 0):
        raise NotPermittedError(f"{path} belongs to user {status.st_uid}; it was not used", path=str(path))
    if stat.S_IMODE(status.st_mode) & forbidden:
        raise NotPermittedError(
            f"{path} has mode {stat.S_IMODE(status.st_mode):o}, others could use it; run chmod go= on it",
            path=str(path),
        )

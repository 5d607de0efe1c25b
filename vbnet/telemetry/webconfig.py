"""Who may read metrics over the network: TLS and passwords, from the file that Prometheus' own exporters use.

    tls_server_config:
      cert_file: node.crt                 # relative to this file
      key_file: node.key
      min_version: TLS13                  # or TLS12, the default
    basic_auth_users:
      prometheus: $2y$10$...              # bcrypt; `htpasswd -nB prometheus` makes one

A key that is not understood is refused with its line: somebody may rely on what it would have done. A file that
changes while it is in use, or a certificate or key that does, is taken for the next connection; one that is refused
changes nothing.
Source: the web configuration of Prometheus' exporter-toolkit.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import ssl
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import bcrypt
import yaml

from vbnet.errors import UsageError, VbnetError

__all__ = ["Doorkeeper", "WebConfig", "WebConfigFile"]


_VERSIONS: Final = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_PASSWORD_BYTES_MAX: Final = 72
"""More than that bcrypt does not look at."""
_REMEMBERED_MAX: Final = 128


@dataclass(frozen=True)
class WebConfig:
    """What the file says.

    Attributes:
        tls: None: plain HTTP.
        users: bcrypt hash by name; none: everybody may read.
    """

    tls: ssl.SSLContext | None = None
    users: Mapping[str, bytes] = field(default_factory=dict)

    @cached_property
    def door(self) -> Doorkeeper:
        """Who checks these users' passwords."""
        return Doorkeeper(self.users)


class _Reader:
    """Reads one file; every mistake is told with its line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.stamps: dict[Path, _Stamp] = {}
        """Of each file that was looked into, as it was just before."""

    def wrong(self, node: yaml.Node | None, what: str) -> UsageError:
        """A mistake where ``node`` begins."""
        line = 1 if node is None else node.start_mark.line + 1
        return UsageError(f"{self._path}:{line}: {what}", path=str(self._path), line=line)

    def load(self) -> WebConfig:
        """Read it all."""
        self.stamps[self._path] = _stamp(self._path)
        try:
            root = yaml.compose(self._path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except OSError as error:
            raise UsageError(f"cannot read {self._path}: {error.strerror}", path=str(self._path)) from error
        except UnicodeDecodeError:
            raise self.wrong(None, "this is no text") from None
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
            raise UsageError(f"{self._path}:{line}: {error.problem}", path=str(self._path), line=line) from error
        except yaml.YAMLError as error:
            raise self.wrong(None, f"this is no YAML: {error}") from error
        if root is None:
            return WebConfig()
        parts = self._mapping(root, "the file", ("tls_server_config", "basic_auth_users"))
        tls = users = None
        if (node := parts.get("tls_server_config")) is not None:
            tls = self._tls(node)
        if (node := parts.get("basic_auth_users")) is not None:
            users = self._users(node)
        return WebConfig(tls, users or {})

    def _mapping(self, node: yaml.Node, what: str, known: tuple[str, ...] | None) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(node, f"{what} must be a mapping")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self._text(key, f"a key of {what}")
            if known is not None and name not in known:
                raise self.wrong(key, f"{what} has no key {name!r} here; known: {', '.join(known)}")
            if name in found:
                raise self.wrong(key, f"{name!r} is there twice")
            found[name] = value
        return found

    def _text(self, node: yaml.Node, what: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise self.wrong(node, f"{what} must be text")
        return str(node.value)

    def _tls(self, node: yaml.Node) -> ssl.SSLContext:
        parts = self._mapping(node, "tls_server_config", ("cert_file", "key_file", "min_version"))
        files = []
        for name in ("cert_file", "key_file"):
            if name not in parts:
                raise self.wrong(node, f"tls_server_config needs {name}")
            path = self._path.parent / self._text(parts[name], name)
            self.stamps[path] = _stamp(path)
            if not path.is_file():
                raise self.wrong(parts[name], f"{name} {path} is not there")
            files.append(path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        version = self._text(parts["min_version"], "min_version") if "min_version" in parts else "TLS12"
        if version not in _VERSIONS:
            raise self.wrong(parts["min_version"], f"min_version is one of {', '.join(_VERSIONS)}; got {version!r}")
        context.minimum_version = _VERSIONS[version]
        try:
            context.load_cert_chain(files[0], files[1], password=b"")
        except (OSError, ssl.SSLError) as error:
            raise self.wrong(node, f"cannot use {files[0]} with {files[1]}: {error}") from error
        return context

    def _users(self, node: yaml.Node) -> dict[str, bytes]:
        users = {}
        for name, value in self._mapping(node, "basic_auth_users", None).items():
            if ":" in name:
                raise self.wrong(value, f"a user's name has no colon; got {name!r}")
            hashed = self._text(value, f"the password of {name!r}").encode()
            try:
                bcrypt.checkpw(b"", hashed)
            except ValueError:
                raise self.wrong(value, f"the password of {name!r} is no bcrypt hash like $2y$10$...") from None
            users[name] = hashed
        return users


_Stamp = tuple[int, int, int, int] | None


def _stamp(path: Path) -> _Stamp:
    """What differs when a file, or where a link leads, is another or has other content; None: it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _tell(line: str) -> None:
    sys.stderr.write(f"vbnet metrics: {line}\n")
    sys.stderr.flush()


class WebConfigFile:
    """A web configuration in use, which follows its files.

    Args:
        path: the file; None: there is none, so everybody may read, in the clear.
        check: raises VbnetError for a configuration that must not be used here.
        tell: given one line for each change.

    Raises:
        UsageError: it cannot be read, or says something that is not understood; with file and line.
        VbnetError: ``check`` refused.
    """

    def __init__(
        self,
        path: Path | None = None,
        check: Callable[[WebConfig], None] = lambda _config: None,
        tell: Callable[[str], None] = _tell,
    ) -> None:
        self.path = path
        self.changes: Counter[str] = Counter()
        self._check = check
        self._tell = tell
        self._stamps: dict[Path, _Stamp] = {}
        self._is_reading = threading.Lock()
        self.current = self._read()

    def has_changed(self) -> bool:
        """Whether any of the files is not what it was; costs a look at each."""
        return any(_stamp(path) != stamp for path, stamp in self._stamps.items())

    def refresh(self) -> None:
        """Take the files as they are now, or leave all as it is if they are not usable; both are told and counted.

        Takes a tenth of a second for each user. While another thread does it, this one returns at once.
        """
        if not self._is_reading.acquire(blocking=False):
            return
        try:
            self.current = self._read()
        except VbnetError as error:
            self.changes["refused"] += 1
            self._tell(f"the changed web configuration is refused, the one before stays in use: {error}")
        else:
            self.changes["taken"] += 1
            self._tell(f"the changed web configuration {self.path} is in use")
        finally:
            self._is_reading.release()

    def _read(self) -> WebConfig:
        config = WebConfig()
        if self.path is not None:
            reader = _Reader(self.path)
            try:
                config = reader.load()
            finally:
                self._stamps = reader.stamps
        self._check(config)
        return config


class Doorkeeper:
    """Checks names and passwords, one at a time: guessing costs the guesser's time and little of ours.

    What was right once is remembered as a keyed hash, so that a scrape does not cost a tenth of a second each time.
    """

    def __init__(self, users: Mapping[str, bytes]) -> None:
        self._users = users
        self._key = secrets.token_bytes(32)
        self._remembered: OrderedDict[bytes, None] = OrderedDict()
        self._one_at_a_time = threading.Lock()
        self._nobody = bcrypt.hashpw(secrets.token_hex().encode(), bcrypt.gensalt(10)) if users else b""

    def lets_in(self, name: str, password: bytes) -> bool:
        """Say whether this is a user; takes a tenth of a second for a wrong one, also for a name that is not there."""
        if len(password) > _PASSWORD_BYTES_MAX:
            return False
        hashed = self._users.get(name)
        token = hmac.new(self._key, b"\0".join((name.encode(), hashed or b"", password)), hashlib.sha256).digest()
        with self._one_at_a_time:
            if token in self._remembered:
                return True
            is_right = bcrypt.checkpw(password, hashed or self._nobody) and hashed is not None
            if is_right:
                self._remembered[token] = None
                if len(self._remembered) > _REMEMBERED_MAX:
                    self._remembered.popitem(last=False)
            return is_right

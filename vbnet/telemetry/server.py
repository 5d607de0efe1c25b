"""The exporter: metrics of this user's host nodes over HTTP, in a process of its own.

    GET /metrics            one node as text       /metrics?node=NAME    of several, that one
        /sd                 every node, as a list of targets for Prometheus' HTTP service discovery
        /healthz  /readyz   this process answers; the nodes it serves are there

    client ──▶ accept, counted ──▶ TLS ──▶ one request ──▶ password ──▶ a thread reads the files ──▶ answer, close

It reads run directories and asks no node, so a node that hangs costs nobody a scrape. One request a connection, at most
``CONNECTIONS_MAX`` at once, and every one is over within ``EXCHANGE_DEADLINE_S``, whatever the client does or omits.
Danger: what is listened at decides who can read. See ``check_exposure``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import errno
import html
import ipaddress
import json
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import h11

from vbnet._native import ExpositionPiece
from vbnet.bus.rundir import RunDir, counted_nodes, run_root
from vbnet.errors import BusyError, NotFoundError, NotPermittedError, ResourceError, UsageError, VbnetError
from vbnet.telemetry.exposition import Exposition, Format
from vbnet.telemetry.node import read_facts
from vbnet.telemetry.own import ServerCounts
from vbnet.telemetry.webconfig import WebConfig, WebConfigFile

__all__ = ["CONNECTIONS_MAX", "EXCHANGE_DEADLINE_S", "Listen", "MetricsServer", "check_exposure"]

CONNECTIONS_MAX: Final = 32
EXCHANGE_DEADLINE_S: Final = 10.0
_REQUEST_BYTES_MAX: Final = 16 << 10
_READ_BYTES: Final = 4096
_WRITE_BYTES: Final = 256 << 10
"""Given to the connection at once: what the kernel does not take right away is copied to wait."""
_SMALL_BYTES: Final = 16 << 10
"""Pieces below this cost less to copy than to send one by one."""
_BACKLOG: Final = 64
_PORT_MAX: Final = 65535
_LISTEN: Final = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.%a-z]+)\]|(?P<four>[^\[\]:/\s]*)):(?P<port>[0-9]{1,5})")
_READERS: Final = 2
"""Files are read by so many threads at once: one slow disk or large node does not take all."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen: an address of this machine and a port, 0 for any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Listen:
        """Read ``ADDRESS:PORT``, ``[ADDRESS]:PORT`` or ``:PORT`` (loopback).

        Raises:
            UsageError: it is none of them.
        """
        found = _LISTEN.fullmatch(text)
        if found is None or int(found["port"]) > _PORT_MAX:
            raise UsageError(f"{text!r} is not ADDRESS:PORT like 127.0.0.1:9617 or [::1]:9617", listen=text)
        return cls(found["six"] or found["four"] or "127.0.0.1", int(found["port"]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def open(self) -> socket.socket:
        """Listen.

        Raises:
            BusyError: somebody else does. NotPermittedError: this user may not. UsageError: no such address here.
        """
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as error:
            raise UsageError(f"{self.host!r} is no address: {error}", listen=str(self)) from error
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen(_BACKLOG)
        except PermissionError as error:
            opened.close()
            raise NotPermittedError(f"not permitted to listen at {self}; choose a port above 1023") from error
        except OSError as error:
            opened.close()
            if error.errno == errno.EADDRINUSE:
                raise BusyError(f"somebody listens at {self} already; choose another port, or 0 for any") from error
            raise ResourceError(f"cannot listen at {self}: {error.strerror}", errno=error.errno or 0) from error
        return opened


def check_exposure(listen: Listen, web: WebConfig) -> None:
    """Hold to the rule: beyond this machine metrics are read with TLS and a password, or not at all.

    Raises:
        NotPermittedError: others could read, or listen in.
    """
    missing = [what for what, is_there in (("TLS", web.tls), ("users", web.users)) if not is_there]
    if missing and not listen.is_loopback:
        raise NotPermittedError(
            f"{listen} is reached from other machines, and there is no {' and no '.join(missing)}: names of guests and "
            "what they do would be public. Listen at 127.0.0.1, or give --web-config with tls_server_config and "
            "basic_auth_users",
            listen=str(listen),
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    body: Sequence[bytes | ExpositionPiece]
    kind: str = "text/plain; charset=utf-8"
    headers: Sequence[tuple[str, str]] = ()


def _text(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> _Answer:
    return _Answer(status, [f"{text}\n".encode()], headers=headers)


@dataclass(slots=True)
class MetricsServer:
    """Serves run directories on one listening socket, inside a running asyncio loop.

    Args:
        listening: the socket; becomes the server's.
        web: TLS and users, as they are from connection to connection.
        node: the only node to serve; None: every node of ``root``.
        root: where run directories are; None: as everywhere.
    """

    listening: socket.socket
    web: WebConfigFile = field(default_factory=WebConfigFile)
    node: str | None = None
    root: Path | None = None
    _connections: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _expositions: dict[str, Exposition] = field(default_factory=dict, init=False)
    _counts: ServerCounts = field(init=False)
    _readers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_READERS), init=False)

    def __post_init__(self) -> None:
        self._counts = ServerCounts(changes=self.web.changes)

    async def serve(self) -> None:
        """Serve until cancelled; the socket is closed then."""
        loop = asyncio.get_running_loop()
        self.listening.settimeout(0)
        try:
            while True:
                try:
                    accepted, _ = await loop.sock_accept(self.listening)
                except OSError:  # out of descriptors, or the client is gone again: neither ends the exporter
                    await asyncio.sleep(0.05)
                    continue
                if len(self._connections) >= CONNECTIONS_MAX:
                    self._counts.drops["too_many"] += 1
                    accepted.close()
                    continue
                task = loop.create_task(self._converse(accepted))
                self._connections.add(task)
                task.add_done_callback(self._connections.discard)
        finally:
            self.listening.close()
            for task in list(self._connections):
                task.cancel()

    # ---- one connection ----------------------------------------------------------------------------------------------

    async def _converse(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        accepted.settimeout(0)
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(EXCHANGE_DEADLINE_S):
                reader = asyncio.StreamReader(_REQUEST_BYTES_MAX)
                protocol = asyncio.StreamReaderProtocol(reader)
                if self.web.has_changed():
                    await asyncio.to_thread(self.web.refresh)
                web = self.web.current
                transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted, ssl=web.tls)
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                await self._exchange(reader, writer, web)
                writer.close()
                await writer.wait_closed()
        except TimeoutError:
            self._counts.drops["too_slow"] += 1
        except OSError:
            pass  # the client is gone, or speaks no TLS
        finally:
            if transport is not None:
                transport.abort()
            accepted.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, web: WebConfig) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_REQUEST_BYTES_MAX)
        method = b"GET"
        try:
            request = await _next_request(connection, reader)
            if request is None:
                return
            method = request.method
            answer = await self._answer(request, web)
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint or HTTPStatus.BAD_REQUEST)
            answer = _text(status, "this is no HTTP request")
        except VbnetError as error:
            status = HTTPStatus.NOT_FOUND if isinstance(error, NotFoundError) else HTTPStatus.SERVICE_UNAVAILABLE
            answer = _text(status, str(error))
        headers = [
            ("Content-Type", answer.kind),
            ("Content-Length", str(sum(map(len, answer.body)))),
            ("Connection", "close"),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *answer.headers,
        ]
        if connection.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        head = connection.send(
            h11.Response(status_code=answer.status, headers=headers, reason=answer.status.phrase.encode())
        )
        writer.write(head or b"")
        if method != b"HEAD":
            for part in _parts(answer.body):
                writer.write(part)
                await writer.drain()
        await writer.drain()

    async def _answer(self, request: h11.Request, web: WebConfig) -> _Answer:
        headers = {name.lower(): value.decode("latin-1") for name, value in request.headers}
        if web.users and not await _is_let_in(web, headers.get(b"authorization", "")):
            self._counts.drops["unauthorized"] += 1
            challenge = ("WWW-Authenticate", 'Basic realm="vbnet", charset="UTF-8"')
            return _text(HTTPStatus.UNAUTHORIZED, "a name and a password are needed", challenge)
        target = urlsplit(request.target.decode("latin-1"))
        routes: dict[str, Callable[[dict[str, str], str | None], _Answer]] = {
            "/": self._index,
            "/metrics": self._metrics,
            "/healthz": lambda _headers, _node: _text(HTTPStatus.OK, "ok"),
            "/readyz": self._ready,
            "/sd": self._targets,
        }
        route = routes.get(target.path)
        if route is None:
            return _text(HTTPStatus.NOT_FOUND, f"nothing here; there is {' '.join(routes)}")
        if request.method not in {b"GET", b"HEAD"}:
            return _text(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only", ("Allow", "GET, HEAD"))
        asked = parse_qs(target.query).get("node", [None])[-1]
        async with self._readers:
            return await asyncio.to_thread(route, {name.decode(): value for name, value in headers.items()}, asked)

    # ---- what there is, on a reader's thread -------------------------------------------------------------------------

    def _nodes(self) -> list[str]:
        return [self.node] if self.node is not None else counted_nodes(self.root or run_root())

    def _chosen(self, asked: str | None) -> RunDir:
        nodes = self._nodes()
        if asked is None and len(nodes) == 1:
            asked = nodes[0]
        if asked is None:
            there = f"name one: {' '.join(f'/metrics?node={name}' for name in nodes)}" if nodes else "there is none"
            raise NotFoundError(f"this exporter serves every host node here; {there}")
        if asked not in nodes:
            raise NotFoundError(f"there is no host node {asked!r} here", node=asked)
        run_dir = RunDir.for_node(asked, self.root)
        run_dir.check()
        return run_dir

    def _metrics(self, headers: dict[str, str], asked: str | None) -> _Answer:
        run_dir = self._chosen(asked)
        for gone in self._expositions.keys() - set(self._nodes()):
            self._expositions.pop(gone, None)
        name = run_dir.path.name
        exposition = self._expositions.get(name)
        if exposition is None:
            # Two readers may make one at once: the first stays, as it counts.
            exposition = self._expositions.setdefault(name, Exposition(run_dir, server=self._counts))
        wanted = preferred(headers.get("accept", ""))
        return _Answer(HTTPStatus.OK, exposition.pieces(wanted), wanted)

    def _ready(self, _headers: dict[str, str], asked: str | None) -> _Answer:
        names = self._nodes() if asked is None else [asked]
        down = [name for name in names if not read_facts(self._chosen(name)).is_up]
        if down or not names:
            return _text(HTTPStatus.SERVICE_UNAVAILABLE, f"not up: {', '.join(down) or 'no host node is here'}")
        return _text(HTTPStatus.OK, f"up: {', '.join(names)}")

    def _targets(self, headers: dict[str, str], _asked: str | None) -> _Answer:
        here = self.listening.getsockname()
        own = str(Listen(here[0], here[1]))
        # Who listens at every address does not know by which it is reached; the client's own word is the best there is.
        address = headers.get("host", own) if ipaddress.ip_address(here[0]).is_unspecified else own
        scheme = {"__scheme__": "https"} if self.web.current.tls is not None else {}
        groups = [
            {
                "targets": [address],
                "labels": {"lab": name, "__metrics_path__": "/metrics", "__param_node": name, **scheme},
            }
            for name in self._nodes()
        ]
        return _Answer(HTTPStatus.OK, [json.dumps(groups, indent=1).encode(), b"\n"], "application/json")

    def _index(self, _headers: dict[str, str], _asked: str | None) -> _Answer:
        links = "".join(
            f'<li><a href="/metrics?node={name}">{name}</a></li>' for name in map(html.escape, self._nodes())
        )
        page = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>vbnet</title><h1>vbnet metrics</h1>'
            f"<p>Host nodes:</p><ul>{links}</ul>"
            '<p><a href="/sd">targets for Prometheus</a> <a href="/readyz">ready</a>'
            ' <a href="/healthz">health</a></p>\n'
        )
        return _Answer(HTTPStatus.OK, [page.encode()], "text/html; charset=utf-8")


def _parts(pieces: Iterable[bytes | ExpositionPiece]) -> Iterator[bytes | memoryview]:
    """What is written at once: small pieces put together, large ones where they lie, in parts."""
    small: list[bytes | ExpositionPiece] = []
    for piece in pieces:
        if len(piece) < _SMALL_BYTES:
            small.append(piece)
            continue
        yield b"".join(small)
        small.clear()
        whole = memoryview(piece)
        for start in range(0, len(whole), _WRITE_BYTES):
            yield whole[start : start + _WRITE_BYTES]
    yield b"".join(small)


async def _is_let_in(web: WebConfig, authorization: str) -> bool:
    scheme, _, encoded = authorization.partition(" ")
    try:
        name, separator, password = base64.b64decode(encoded, validate=True).partition(b":")
        user = name.decode()
    except (binascii.Error, UnicodeDecodeError):
        return False
    if scheme.lower() != "basic" or not separator:
        return False
    return await asyncio.to_thread(lambda: web.door.lets_in(user, password))


async def _next_request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """The request with its end, whose body is thrown away; None: the client left."""
    request = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(_READ_BYTES)
            if not data and request is None and connection.trailing_data == (b"", False):
                return None
            connection.receive_data(data)
        elif isinstance(event, h11.Request):
            request = event
            if any(name == b"expect" for name, _ in event.headers):
                raise h11.RemoteProtocolError("no body is wanted", error_status_hint=HTTPStatus.EXPECTATION_FAILED)
        elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
            return request


def preferred(accept: str) -> Format:
    """Say which format a client that accepts this would rather have; of equals the richer one."""
    weights = dict.fromkeys((Format.PROTOBUF, Format.OPENMETRICS, Format.TEXT), 0.0)
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        for known in weights:
            if kind == known.partition(";")[0] and _is_served(known, parameters):
                weights[known] = max(weights[known], _weight(parameters))
    best = max(weights, key=lambda known: weights[known])
    return best if weights[best] > 0 else Format.TEXT


def _is_served(known: Format, parameters: Sequence[str]) -> bool:
    """Protocol buffers come in several encodings, of which one is spoken here; whoever names none takes that."""
    if known is not Format.PROTOBUF:
        return True
    spoken = {"proto": "io.prometheus.client.metricfamily", "encoding": "delimited"}
    asked = dict(piece.partition("=")[::2] for piece in parameters)
    return all(asked.get(name, value) == value for name, value in spoken.items())


def _weight(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            with contextlib.suppress(ValueError):
                return float(value)
            return 0.0
    return 1.0

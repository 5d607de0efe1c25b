"""The screen of ``vbnet top`` in a browser, by textual-serve: one process of ``vbnet top`` for each page that is open.

A page's process ends with the page, and with the server, however that ends: the kernel kills it then.

Danger: a page of any other site may ask a browser to connect to an address of this machine. So on a loopback address
only requests for a loopback name are answered, and a socket only to a page that came from here. The pages ask for
nothing from elsewhere: the browser is told to refuse it. There is no password; whoever may reach the address sees
everything that the screen shows, and can change nothing.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from vbnet.bus.rundir import RunDir
from vbnet.cli import output
from vbnet.cli.top import SERVER_VARIABLE
from vbnet.errors import ResourceError, UnsupportedError, UsageError

try:
    import aiohttp_jinja2
    from aiohttp import web
    from textual_serve.server import Server
except ImportError as error:
    raise UnsupportedError(
        f"--web needs textual-serve, which is not there ({error}); install it beside vbnet: pip install 'vbnet[web]'"
    ) from error

__all__ = ["serve"]

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "font-src 'self' data:; img-src 'self' data:; connect-src 'self' ws:; frame-ancestors 'none'"
)
_FAREWELL_S = 1.0
"""How long open pages may take to go when the server ends."""
_SESSIONS_MAX = 16
"""Pages at once: each is a process."""


def serve(run_dir: RunDir, interval_s: float, tab: str | None, listen: str) -> None:
    """Serve until Ctrl-C.

    Args:
        run_dir: of the node.
        interval_s: time between looks, seconds.
        tab: to begin with.
        listen: ``HOST:PORT``; port 0 takes a free one.

    Raises:
        UsageError: ``listen`` is none. ResourceError: it cannot be listened to.
    """
    host, port = _address(listen)
    command = [
        sys.executable,
        "-m",
        "vbnet.cli.main",
        "top",
        "--node",
        run_dir.path.name,
        "--interval",
        f"{interval_s}",
    ]
    if tab is not None:
        command += ["--tab", tab]
    with closing(_listening(host, port, listen)) as sock:
        port = sock.getsockname()[1]
        output.say(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
        if host not in _LOOPBACK:
            output.note("this address is not only this machine's: everybody who reaches it sees the node")
        server = _Server(f"exec {shlex.join(command)}", host, port, title=f"vbnet top {run_dir.path.name}")
        os.environ[SERVER_VARIABLE] = str(os.getpid())
        web.run_app(server.application(), sock=sock, print=None, shutdown_timeout=_FAREWELL_S)


def _address(listen: str) -> tuple[str, int]:
    parts = urlsplit(f"//{listen}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None or parts.path:
        raise UsageError(f"--listen {listen!r} is not HOST:PORT, as 127.0.0.1:8010 is", got=listen)
    return host, port


def _listening(host: str, port: int, listen: str) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ResourceError(f"cannot listen on {listen}: {error.strerror}", errno=error.errno or 0) from error


class _Server(Server):
    """textual-serve with an eye on who asks."""

    _open = 0

    async def application(self) -> web.Application:
        app = await self._make_app()
        app.middlewares.append(self._guarded)
        return app

    async def on_startup(self, app: web.Application) -> None:
        """Say nothing: the address was printed."""

    # The page's addresses are those that it was asked for under, so that localhost is as good as 127.0.0.1.
    @aiohttp_jinja2.template("app_index.html")
    async def handle_index(self, request: web.Request) -> dict[str, Any]:
        return {
            "font_size": 14,
            "app_websocket_url": f"ws://{request.host}/ws",
            "config": {"static": {"url": "/static/"}},
            "application": {"name": self.title},
        }

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        if self._open >= _SESSIONS_MAX:
            raise web.HTTPServiceUnavailable(text=f"{_SESSIONS_MAX} pages are open already; close one\n")
        self._open += 1
        try:
            return await super().handle_websocket(request)
        finally:
            self._open -= 1

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Any) -> web.StreamResponse:  # noqa: ANN401 -- aiohttp's
        asked = urlsplit(f"//{request.host}").hostname
        origin = request.headers.get("Origin")
        if self.host in _LOOPBACK and asked not in _LOOPBACK:
            raise web.HTTPForbidden(text="this serves this machine only\n")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text="another site's page may not look in here\n")
        response: web.StreamResponse = await handler(request)
        if not response.prepared:
            response.headers["Content-Security-Policy"] = _POLICY
        return response

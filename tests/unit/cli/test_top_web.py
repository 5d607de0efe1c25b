"""Who may look at the screen of `vbnet top` over the web, and how many at once; no process is started for a page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from vbnet.cli.top import web

Client = TestClient[Any, Any]


def asked(work: Callable[[Client], Coroutine[Any, Any, int]], host: str = "127.0.0.1") -> int:
    """Let ``work`` ask a server that listens at ``host``, as far as it knows."""

    async def main() -> int:
        server = web._Server("false", host, 0, title="vbnet top lab")
        server._open = web._SESSIONS_MAX
        async with TestClient(TestServer(await server.application())) as client:
            return await work(client)

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("listens", "host", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8010", 200),
        ("127.0.0.1", "localhost:8010", 200),
        ("::1", "[::1]:8010", 200),
        ("127.0.0.1", "evil.example", 403),
        ("127.0.0.1", "127.0.0.1.evil.example:8010", 403),
        ("192.0.2.1", "lab.example:8010", 200),
    ],
)
def test_on_a_loopback_address_only_its_names_are_answered(listens: str, host: str, status: int) -> None:
    """A name that another site's owner lets lead here does not help that site; elsewhere any name may be ours."""

    async def work(client: Client) -> int:
        async with client.get("/", headers={"Host": host}) as page:
            return page.status

    assert status == asked(work, listens)


@pytest.mark.parametrize(("origin", "status"), [("http://127.0.0.1:8010", 503), ("http://evil.example", 403)])
def test_pages_of_other_sites_are_refused_and_so_are_too_many_of_ours(origin: str, status: int) -> None:
    """Each open page is a process, so there is an end to them."""

    async def work(client: Client) -> int:
        async with client.get("/ws", headers={"Host": "127.0.0.1:8010", "Origin": origin}) as answer:
            return answer.status

    assert status == asked(work)


def test_page_calls_its_socket_where_it_was_asked_for_itself() -> None:
    """So localhost is as good as 127.0.0.1; and the browser is told to load nothing from elsewhere."""

    async def work(client: Client) -> int:
        async with client.get("/", headers={"Host": "localhost:8010"}) as page:
            text = await page.text()
        assert "ws://localhost:8010/ws" in text
        assert "connect-src 'self' ws:" in page.headers["Content-Security-Policy"]
        async with client.get("/static/js/textual.js", headers={"Host": "localhost:8010"}) as script:
            return script.status

    assert 200 == asked(work)

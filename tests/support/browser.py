"""A headless Chromium with one page, told what to do over its debugging socket (the Chrome DevTools Protocol).

Its profile is in a folder that the test gives. The sandbox is off, because root may not use it; the pages are ours.
"""

from __future__ import annotations

import asyncio
import base64
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.waiting import PATIENCE

__all__ = ["Page", "browser"]

OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--remote-debugging-port=0", "--window-size=1000,600", "about:blank",
)  # fmt: skip


class Page:
    """One page.

    Attributes:
        answered: addresses from which it got something.
        got: what came through its web sockets.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.answered: set[str] = set()
        self.got = b""

    async def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Tell the browser something, and wait for what it says to that."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = await self._next()
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    async def go(self, address: str) -> None:
        """Open an address."""
        await self.tell("Network.enable")
        await self.tell("Page.navigate", url=address)

    async def press(self, letter: str) -> None:
        """Press a key."""
        await self.tell("Input.dispatchKeyEvent", type="keyDown", text=letter, key=letter)
        await self.tell("Input.dispatchKeyEvent", type="keyUp", key=letter)

    async def click(self, x: int, y: int) -> None:
        """Click there."""
        for what in ("mousePressed", "mouseReleased"):
            await self.tell("Input.dispatchMouseEvent", type=what, x=x, y=y, button="left", clickCount=1)

    async def picture(self) -> bytes:
        """What one sees, as PNG."""
        return base64.b64decode((await self.tell("Page.captureScreenshot", format="png"))["data"])

    async def wait_for(self, expression: str) -> None:
        """Wait until an expression is true in the page."""
        async with asyncio.timeout(PATIENCE):
            while not await self._is_true(expression):  # noqa: ASYNC110 - only asking tells
                await asyncio.sleep(0)

    async def wait_for_bytes(self, wanted: bytes) -> None:
        """Wait until these bytes came through a web socket."""
        async with asyncio.timeout(PATIENCE):
            while wanted not in self.got:
                await self._next()

    async def _is_true(self, expression: str) -> bool:
        return bool((await self.tell("Runtime.evaluate", expression=expression))["result"].get("value"))

    async def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = await self._socket.receive_json(timeout=PATIENCE)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Network.responseReceived":
                self.answered.add(parameters["response"]["url"])
            case "Network.webSocketFrameReceived":
                frame = parameters["response"]
                data: str = frame["payloadData"]
                self.got += base64.b64decode(data) if frame["opcode"] == aiohttp.WSMsgType.BINARY else data.encode()
        return message


@asynccontextmanager
async def browser(program: str, profile: Path) -> AsyncIterator[Page]:
    """Start a browser; it has ended when this has."""
    command = [program, *OPTIONS[:-1], f"--user-data-dir={profile}", OPTIONS[-1]]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: ASYNC220
        try:
            port = await _eventually(lambda: _first_line(profile / "DevToolsActivePort"))
            async with aiohttp.ClientSession() as session:
                address = await _page_address(session, f"http://127.0.0.1:{port}/json/list")
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    yield Page(socket)
        finally:
            process.terminate()


async def _page_address(session: aiohttp.ClientSession, address: str) -> str:
    async with asyncio.timeout(PATIENCE):
        while True:
            async with session.get(address) as answer:
                pages = [target for target in await answer.json() if target["type"] == "page"]
            if pages:
                found: str = pages[0]["webSocketDebuggerUrl"]
                return found


async def _eventually(look: Callable[[], str]) -> str:
    async with asyncio.timeout(PATIENCE):
        while not (found := look()):  # noqa: ASYNC110 - a file appears
            await asyncio.sleep(0)
    return found


def _first_line(path: Path) -> str:
    return path.read_text().partition("\n")[0] if path.exists() else ""

"""`vbnet top` on real nodes: at work, stopped, killed and gone; in a terminal, and in a browser."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests import reaper
from tests.support import vbnet_program
from tests.support.browser import browser
from tests.support.counted_node import CountedNode
from tests.support.lab import Lab
from tests.support.waiting import PATIENCE, eventually
from vbnet.cli.top.screen import TopApp
from vbnet.errors import PeerGone
from vbnet.telemetry.watch.viewer import Viewer

GUESTS = 1000
REFRESHES = 30


@pytest.fixture(autouse=True)
def _nothing_left(no_leaked_processes: None) -> None:
    """Every test here ends with nothing running."""


@pytest.fixture
def commands_find(own_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A host process of the test's own, which commands find without being told its name."""
    monkeypatch.setenv("VBNET_RUN_DIR", str(own_lab.run_dir.path.parent))
    return own_lab


def once(*arguments: str) -> dict[str, Any]:
    """What `vbnet top --once` says."""
    document: dict[str, Any] = vbnet_program.rows("top", "--once", "--interval", "0.1", *arguments)
    return document


# --- a node that does not answer ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_node_that_is_stopped_and_then_killed_is_still_shown(commands_find: Lab) -> None:
    """Nothing is asked of it: the tables come as quickly as ever, and say how it is."""
    lab = commands_find
    with suppress(PeerGone), lab.net() as net:  # taking the net down asks a host that is gone
        station = net.station("venet-loopback")
        station.nic.send([station.to(station)] * 5, 10)
        station.wait_given(5)
        working = once()
        lab.host.pause()
        stopped = once()
        text = vbnet_program.run("top", "--once", "--interval", "0.1").stdout
        lab.host.kill()
    killed = once("--tab", "ports")

    assert ["up", "stopped", "dead"] == [document["state"] for document in (working, stopped, killed)]
    assert "host stopped: process" in text
    assert station.guest.name in [row["guest"] for row in stopped["guests"]]
    (port,) = [row for row in killed["ports"] if row["device"] == station.port]
    assert 0.0 == port["receive_packets_per_second"]


# --- a thousand guests --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_refresh_costs_no_more_a_guest_with_a_thousand_than_with_a_hundred(tmp_path: Path) -> None:
    """Looking, keeping, counting, sorting, drawing: all rows, though one sees forty. CPU time, the best of many."""
    few, many = (best_refresh_s(tmp_path / f"{guests}", guests) for guests in (GUESTS // 10, GUESTS))

    assert many < 10 * few


def best_refresh_s(folder: Path, guests: int) -> float:
    """Return the processor time of the cheapest of several refreshes, every guest's counters moving in between."""
    node = CountedNode(folder)
    ports = [node.guest(f"guest-{number}") for number in range(guests)]
    viewer = Viewer(node.watcher, now_s=lambda: node.now_s)
    taken: list[float] = []

    async def main() -> None:
        app = TopApp(viewer, is_ticking=False)
        async with app.run_test(size=(120, 40)) as pilot:
            for number in range(REFRESHES):
                for place, port in enumerate(ports):
                    port.add("receive_frames", place + number)
                node.now_s += 1
                node.beat()
                begin = time.process_time()
                app.look()
                await pilot.pause()
                taken.append(time.process_time() - begin)
            assert f"guest-{guests - 1}" in app.grid.lines[1]

    asyncio.run(main())

    assert viewer.history.bytes < 8 << 20
    return min(taken)


# --- in a terminal ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_terminal_shows_a_running_node_and_that_it_ended(
    commands_find: Lab, program: Callable[[str], str], lab_root: Path
) -> None:
    """In a real terminal of tmux: keys work, the node's end is told, q leaves it as it was."""
    tmux = [program("tmux"), "-S", str(lab_root / "tmux"), "-f", "/dev/null"]

    def screen() -> str:
        return subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True).stdout

    def press(*keys: str) -> None:
        subprocess.run([*tmux, "send-keys", *keys], check=True)

    # Where these say how large a terminal is, nobody asks the terminal.
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    shell = [*tmux, "new-session", "-d", "-x", "80", "-y", "24", "sh"]
    subprocess.run(shell, check=True, env={**environment, "TERM": "xterm-256color", "PS1": "$ "})
    try:
        press(f"{' '.join(vbnet_program.COMMAND)} top --interval 0.2", "Enter")
        eventually(lambda: "live" in screen(), "the screen is there")
        press("7")
        eventually(lambda: "[workers]" in screen() and "AWAKE" in screen(), "the workers are shown")
        subprocess.run([*tmux, "resize-window", "-x", "120", "-y", "30"], check=True)
        eventually(lambda: "[7 workers]" in screen(), "the screen has become wider")
        commands_find.host.kill()
        eventually(lambda: "dead: the host node's process" in screen(), "its death is told")
        shutil.rmtree(commands_find.run_dir.path)
        eventually(lambda: "last picture" in screen() and "AWAKE" in screen(), "its end is told")
        press("q")
        eventually(lambda: "last picture" not in screen(), "the shell is back")
    except TimeoutError as late:
        late.add_note(screen())
        raise
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)


# --- in a browser -------------------------------------------------------------------------------------------------


@contextmanager
def served(end: signal.Signals = signal.SIGINT) -> Iterator[str]:
    """`vbnet top --web` on a free port; gives its address, and ends it by a signal."""
    command = [*vbnet_program.COMMAND, "top", "--interval", "0.2", "--web", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.send_signal(end)
            server.wait(PATIENCE)


@pytest.mark.slow
@pytest.mark.usefixtures("commands_find")
def test_web_page_is_for_this_machine_and_for_its_own_page_only() -> None:
    """Another name in the address, or another site's page, gets nothing; ours is told to load nothing from there."""

    async def ask(address: str) -> None:
        async with aiohttp.ClientSession() as session:
            async with session.get(address) as page:
                assert 200 == page.status
                assert "default-src 'self'" in page.headers["Content-Security-Policy"]
            async with session.get(address, headers={"Host": "example.org"}) as page:
                assert 403 == page.status
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(f"{address}ws", headers={"Origin": "http://example.org"})
            async with session.ws_connect(
                f"{address}ws?width=80&height=24", timeout=aiohttp.ClientWSTimeout(9)
            ) as ours:
                seen = b""
                while b"guests" not in seen:
                    message = await ours.receive(PATIENCE)
                    assert message.type in {aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT}
                    seen += message.data if isinstance(message.data, bytes) else b""

    with served() as address:
        asyncio.run(ask(address))


@pytest.mark.slow
@pytest.mark.usefixtures("commands_find")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_process_of_an_open_page_ends_with_the_server(end: signal.Signals) -> None:
    """Also when the server is killed while the page is shown: the kernel sees to it."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session, AsyncExitStack() as stack:
            address = stack.enter_context(served(end))
            page = await session.ws_connect(f"{address}ws")
            await page.receive_bytes(timeout=PATIENCE)
            pages = [
                pid
                for pid in reaper.started_by(os.environ[reaper.MARK_VARIABLE], os.getpid())
                if "top --node host" in reaper.command_line(pid)
            ]
            assert 1 == len(pages)
            await stack.aclose()
            assert set() == reaper.wait_gone(set(pages), PATIENCE)

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.usefixtures("commands_find")
def test_browser_shows_the_screen_and_its_keys_work(program: Callable[[str], str], tmp_path: Path) -> None:
    """A real one: what it got and drew is the screen, a digit changes the table, nothing came from elsewhere."""
    chromium = program("chromium")

    async def look(address: str) -> tuple[bytes, bytes, set[str]]:
        async with browser(chromium, tmp_path / "profile") as page:
            await page.go(address)
            await page.wait_for("document.body.classList.contains('-first-byte')")
            await page.wait_for_bytes(b"1 guests")
            first = await page.picture()
            await page.click(500, 300)
            await page.press("7")
            await page.wait_for_bytes(b"AWAKE")
            return first, await page.picture(), page.answered

    with served() as address:
        first, second, answered = asyncio.run(look(address))

    assert first.startswith(b"\x89PNG")
    assert first != second
    assert {True} == {url.startswith(address) for url in answered}

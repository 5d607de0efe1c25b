"""Who may capture at the operate socket, how much, and what ends it."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from vbnet.bus import fdpass
from vbnet.bus.capture import CaptureEnds, CaptureLink
from vbnet.bus.limits import Limits
from vbnet.bus.messages import MessageFault
from vbnet.errors import NotFoundError, PeerGone, ResourceError
from vbnet.testing.lab import Lab, eventually
from vbnet.testing.processes import count_own_fds

T = TypeVar("T")


async def on_thread(work: Callable[..., T], *arguments: Any, **more: Any) -> T:
    """Run what blocks beside the host's loop."""
    return await asyncio.to_thread(work, *arguments, **more)


async def linked(lab: Lab) -> CaptureLink:
    """A connection to the lab's host."""
    return await on_thread(CaptureLink, lab.run_dir)


def with_port(lab: Lab, name: str = "web.eth0") -> None:
    """Give the lab's fabric a port."""
    with contextlib.suppress(Exception):
        lab.fabric.switch_create("lan")
    lab.fabric.add_port("lan", name, "venet")


async def test_a_capture_reaches_the_fabric_as_it_was_asked(run_root: Path) -> None:
    """Ring and doorbell come back, and all that was said arrives."""
    async with Lab.open(run_root) as lab:
        with_port(lab)
        link = await linked(lab)

        ends = await on_thread(link.capture, "web.eth0", bytes(16), snap_bytes=64, ring_bytes=1 << 18, trace_frames=3)

        assert isinstance(ends, CaptureEnds)
        assert [True, True] == [os.fstat(fd).st_mode > 0 for fd in (ends.ring_fd, ends.bell_fd)]
        expected = {
            "port": "web.eth0",
            "program": bytes(16),
            "snap_bytes": 64,
            "ring_bytes": 1 << 18,
            "trace_frames": 3,
        }
        assert {ends.capture: expected} == lab.fabric.watches
        link.close()
        await eventually(lambda: not lab.fabric.watches)


async def test_captures_end_with_their_connection_and_leave_no_descriptor(run_root: Path) -> None:
    """Hanging up is enough; other connections' captures go on."""
    async with Lab.open(run_root) as lab:
        with_port(lab)
        stays = await linked(lab)
        kept = await on_thread(stays.capture, "web.eth0")
        before = count_own_fds()
        link = await linked(lab)
        await on_thread(link.capture, "web.eth0")
        await on_thread(link.capture, "web.eth0")

        link.close()
        await eventually(lambda: [kept.capture] == list(lab.fabric.watches))

        await eventually(lambda: before == count_own_fds())
        stays.close()


async def test_a_port_that_is_not_there_is_refused_with_the_closest_one(run_root: Path) -> None:
    """Nothing is watched, and the connection can ask again."""
    async with Lab.open(run_root) as lab:
        with_port(lab)
        link = await linked(lab)

        with pytest.raises(NotFoundError, match=r"did you mean `web\.eth0`"):
            await on_thread(link.capture, "wub.eth0")

        assert {} == lab.fabric.watches
        await on_thread(link.capture, "web.eth0")
        link.close()


@pytest.mark.parametrize(
    ("limits", "ring_bytes"),
    [(Limits(captures_per_connection=2), 1 << 18), (Limits(capture_bytes=5 << 18), 1 << 19)],
)
async def test_captures_are_bounded_in_number_and_memory(run_root: Path, limits: Limits, ring_bytes: int) -> None:
    """The third is refused here, whichever bound it is."""
    async with Lab.open(run_root, limits=limits) as lab:
        with_port(lab)
        link = await linked(lab)
        for _ in range(2):
            await on_thread(link.capture, "web.eth0", ring_bytes=ring_bytes)

        with pytest.raises(ResourceError, match="already"):
            await on_thread(link.capture, "web.eth0", ring_bytes=ring_bytes)

        assert 2 == len(lab.fabric.watches)
        link.close()


async def test_a_host_that_ends_is_seen_and_said(run_root: Path) -> None:
    """The connection becomes readable, and further requests say that the host is gone."""
    async with Lab.open(run_root) as lab:
        with_port(lab)
        link = await linked(lab)
        await on_thread(link.capture, "web.eth0")

    with pytest.raises(PeerGone):
        await on_thread(link.capture, "web.eth0")
    link.close()


def test_a_program_too_long_for_a_packet_is_malformed() -> None:
    """448 instructions fit beside the longest name, one more is refused."""
    name = "x" * 96
    longest = fdpass.encode_packet(1, fdpass.Capture(name, bytes(3584), 1, 1, 1))
    longer = fdpass.encode_packet(1, fdpass.Capture(name, bytes(3592), 1, 1, 1))

    assert fdpass.MAX_PACKET_BYTES > len(longest)
    assert 1 == fdpass.decode_attach(longest)[0]
    with pytest.raises(MessageFault):
        fdpass.decode_attach(longer)

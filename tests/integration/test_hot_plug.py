"""Devices come and go through the command line while iperf3 runs between two other guests, which notice nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.support.machine import LIMIT_S
from tests.support.real_lab import RealLab, real_lab
from tests.support.waiting import eventually

FUNCTIONS = '''
"""A guest of the tests."""

from vbnet.errors import PeerGone


async def greet(guest):
    """Take every network card that comes and send a frame on it; when it is unplugged, wait for the next."""
    while True:
        nic = await guest.nic("hot", 3600)
        await nic.send_async([b"\\xff" * 6 + nic.mac.octets + bytes.fromhex("88b5") + bytes(46)])
        print("came", flush=True)
        try:
            while True:
                await nic.recv_async(1, 3600)
        except PeerGone:
            print("went", flush=True)
'''
LAB = """
name: t
switches: {lan: }
guests:
  one: {kind: netns, nics: [{switch: lan, ip: 10.10.0.1/24}]}
  two: {kind: netns, nics: [{switch: lan, ip: 10.10.0.2/24}]}
  app: {kind: python, run: "functions.py:greet"}
"""
# So slow that no queue can fill even when the machine is busy: what is lost was lost to the plugging.
LOAD = ("-u", "-b", "2M", "-l", "500", "-t", "10")

pytestmark = pytest.mark.usefixtures("namespaces", "tun_device", "no_leaked_processes", "no_leaked_links")


@pytest.fixture
def lab(program: Callable[[str], str]) -> Iterator[RealLab]:
    """Two namespaces that talk, and a guest whose cards come and go."""
    program("iperf3")
    with real_lab(LAB, files={"functions.py": FUNCTIONS}) as up:
        yield up


def said(lab: RealLab) -> list[str]:
    """What the guest with the cards printed so far."""
    return "".join(lab.logs("app")).split()


def come_and_go(lab: RealLab) -> None:
    """Make a card, plug it, see it used, unplug it, see it missed, delete it."""
    before = said(lab)
    lab.vbnet("device", "create", "hot", "type=venet", "switch=lan")
    lab.vbnet("device", "plug", "hot", "app")
    eventually(lambda: [*before, "came"] == said(lab), "the guest uses its new card")
    assert "hot" in {row["name"] for row in lab.rows("port", "list")}
    lab.vbnet("device", "unplug", "hot", "app")
    eventually(lambda: [*before, "came", "went"] == said(lab), "the guest knows that its card is gone")
    lab.vbnet("device", "delete", "hot")


@pytest.mark.slow
def test_plugging_under_load_disturbs_nobody(lab: RealLab) -> None:
    """Cards come, work and go, again and again; the two who talk lose not one of five thousand datagrams."""
    with lab.start_inside("two", "iperf3", "-s", "-1", "--forceflush") as server:
        assert server.stdout is not None
        while "listening" not in server.stdout.readline():
            pass
        with lab.start_inside("one", "iperf3", "-c", "10.10.0.2", "-J", *LOAD) as client:
            times = 0
            while client.poll() is None:
                come_and_go(lab)
                times += 1
            end = json.loads(client.communicate(timeout=LIMIT_S)[0])["end"]["sum"]
        server.communicate(timeout=LIMIT_S)

    assert times >= 2
    assert end["packets"] > 1000
    assert 0 == end["lost_packets"]
    assert ["came", "went"] * times == said(lab)
    assert {"one.eth0", "two.eth0"} == {row["name"] for row in lab.rows("port", "list")}

"""Guests that break the rules of fastcalls, and ends that die in the middle of one: nobody else notices.

The hostile guests are of the test's own process, which owns their memory; those that are killed are processes. After
every attack an honest guest calls on, on a host that is alive.
"""

import os
import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.doorbells import blocking
from tests.support.lab import Net
from tests.support.waiting import PATIENCE, eventually
from vbnet import Guest
from vbnet.bus.operator import SyncOperator
from vbnet.devices.echo.wire import EchoFunction
from vbnet.devices.fastcall.driver import FastcallPool
from vbnet.errors import VbnetError
from vbnet.guestnode.sync import SyncOpenDevice
from vbnet.testing.processes import HostProcess, PythonProcess, count_fds

REQUEST_SEQUENCE, REQUEST_LENGTH, ANSWER_SEQUENCE, CALL_ENABLED = 0x80, 0x8C, 0x200, 0x500
SLOT_BYTES = 0x600
SHORT_S = 0.05

CALLER = """
import sys, threading
from vbnet import Guest

run_dir, name = sys.argv[1:]
guest = Guest(name, "board", address=run_dir)
echo = guest.open("echo0")

def call_for_ever(number):
    while True:
        assert echo.fastcall(0, bytes([number])) == bytes([number])

assert echo.fastcall(0, b"once") == b"once"
threads = [threading.Thread(target=call_for_ever, args=[number], daemon=True) for number in range(3)]
for thread in threads:
    thread.start()
print("calling", flush=True)
sys.stdin.readline()
"""
WAITER = """
import sys, threading
from vbnet import Guest
from vbnet.errors import PeerGone

guest = Guest("waiter", "board", address=sys.argv[1], deadline_s=60.0)
echo = guest.open("echo0")
outcomes = []

def call_until_gone():
    try:
        while True:
            echo.fastcall(0, b"x")
    except PeerGone:
        outcomes.append("gone")

assert echo.fastcall(0, b"once") == b"once"
threads = [threading.Thread(target=call_until_gone) for _ in range(3)]
for thread in threads:
    thread.start()
print("calling", flush=True)
for thread in threads:
    thread.join()
print(*outcomes, flush=True)
guest.close()
"""


class Caller:
    """A guest of this process with an echo and a fastcall device on a bus of its own, and one slot to break.

    Attributes:
        guest: of this process. name: of guest and bus. kick_fd, call_fd: its copies of the slot's doorbells.
    """

    def __init__(self, net: Net) -> None:
        self.name = net.bus(net.name())
        for kind in ("echo", "fastcall"):
            net.operator.device_plug(net.device(f"{self.name}.{kind}", kind), self.name)
        self._net = net
        self.guest: Guest = net.guest(self.name)
        self._echo: SyncOpenDevice = self.guest.open("echo0")
        self._echo.fastcall(EchoFunction.ECHO, b"first")
        pool: FastcallPool = self.guest.bind("fastcall0")
        self._offset = pool._slots[1][1].offset
        signal = pool._opened._signals[1]
        self.kick_fd, self.call_fd = signal.kick_fd, signal.call_fd

    def word(self, field: int, value: int) -> None:
        """Write a 32-bit word of the slot."""
        with memoryview(self.guest.session.ram.view(self._offset + field, 4)) as memory:
            memory[:] = struct.pack("<I", value & 0xFFFF_FFFF)

    def read(self, field: int) -> int:
        """Read one."""
        with memoryview(self.guest.session.ram.view(self._offset + field, 4)) as memory:
            return int.from_bytes(memory, "little")

    def kick(self) -> None:
        """Ring the host."""
        os.eventfd_write(self.kick_fd, 1)

    def call(self, data: bytes, deadline_s: float = PATIENCE) -> bytes:
        """Call as a guest does."""
        return self._echo.fastcall(EchoFunction.ECHO, data, deadline_s=deadline_s)


@pytest.fixture
def honest(net: Net) -> Iterator[Caller]:
    """A guest that calls before and after the attack, on a host that is alive."""
    honest = Caller(net)
    yield honest
    assert b"still here" == honest.call(b"still here")
    assert net.lab.host.is_alive
    assert net.operator.node_info().name == "test"


@pytest.mark.usefixtures("honest")
@pytest.mark.parametrize("jump", [-1, 2, 1 << 31], ids=["backwards", "two", "far"])
def test_count_that_jumps_is_told_and_its_slot_is_served_no_more(net: Net, jump: int) -> None:
    """There is no telling which call such a guest waits for."""
    hostile, events = Caller(net), net.events("guest.fault")

    hostile.word(REQUEST_SEQUENCE, hostile.read(REQUEST_SEQUENCE) + jump)
    hostile.kick()
    event = events.next("guest.fault", guest=hostile.name)

    assert "bad_size" == event["rule"]


@pytest.mark.usefixtures("honest")
def test_doorbell_that_blocks_is_told_and_its_slot_is_served_no_more(net: Net) -> None:
    """The service waits for it once, for some milliseconds."""
    hostile, events = Caller(net), net.events("guest.fault")

    with blocking(hostile.call_fd):
        hostile.word(CALL_ENABLED, 77)
        hostile.word(REQUEST_SEQUENCE, hostile.read(REQUEST_SEQUENCE) + 1)
        hostile.kick()
        event = events.next("guest.fault", guest=hostile.name)

    assert "doorbell_blocked" == event["rule"]


def test_request_that_changes_while_it_is_read_harms_nobody_else(net: Net, honest: Caller) -> None:
    """Every word of the slot takes every value, while the guest calls and rings."""
    hostile = Caller(net)
    dice = random.Random(1)  # noqa: S311 - a repeatable attack
    is_over = threading.Event()

    def scribble() -> None:
        while not is_over.is_set():
            field = dice.choice([REQUEST_LENGTH, ANSWER_SEQUENCE, *range(0x80, SLOT_BYTES, 4)])
            hostile.word(field, dice.getrandbits(32))
            hostile.kick()

    scribbler = threading.Thread(target=scribble)
    scribbler.start()
    answers = [honest.call(bytes([number])) for number in range(200)]
    for _ in range(3):
        try:
            hostile.call(b"mine", SHORT_S)
        except VbnetError:
            continue
    is_over.set()
    scribbler.join()

    assert [bytes([number]) for number in range(200)] == answers


def test_killed_caller_leaves_no_slot_behind(net: Net, honest: Caller) -> None:
    """Whatever its threads were doing; those that call at the same time go on."""
    net.bus("board")
    for kind in ("echo", "fastcall"):
        net.operator.device_plug(net.device(f"board.{kind}", kind), "board")
    before = count_fds(net.lab.host.pid)

    for turn in range(3):
        with PythonProcess(CALLER, [str(net.lab.run_dir.path), f"caller{turn}"]) as caller:
            assert "calling" == caller.line()
            caller.kill()
        assert b"on" == honest.call(b"on")
    slots = eventually(
        lambda: net.operator.device_get("board.fastcall").attributes["slots"] == "0", "slots of the dead are gone"
    )

    assert slots
    eventually(lambda: count_fds(net.lab.host.pid) <= before, "descriptors of the dead are closed")


def test_callers_whose_host_is_killed_hear_of_it_long_before_their_deadline(run_root: Path) -> None:
    """Spinning or asleep, all of them."""
    with HostProcess(run_root) as host, SyncOperator(host.run_dir) as operator:
        operator.bus_create("board")
        for kind in ("echo", "fastcall"):
            operator.device_create(kind, kind)
            operator.device_plug(kind, "board")
        with PythonProcess(WAITER, [str(host.run_dir.path)]) as waiter:
            assert "calling" == waiter.line()
            host.kill()

            assert ("gone gone gone", 0) == (waiter.line(), waiter.wait())

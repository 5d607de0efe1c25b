"""Fast handlers of device authors, asked by the native service on its own thread."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from vbnet._native import FASTCALL_SIGNAL_OFFSET, FASTCALL_SLOT_BYTES, FASTCALL_UNSERVED, FastHandler, FastSlot, Ram
from vbnet.errors import BusyError, PeerFault
from vbnet.hostnode import metrics
from vbnet.hostnode.device import SharedRegion, SignalEnds
from vbnet.hostnode.fastcalls import Fastcalls, SlotParams
from vbnet.hostnode.metrics import Tally
from vbnet.testing import ListLog
from vbnet.testing.lab import eventually

HANDLE = 7 << 32 | 0x1234
SERIAL = 7
SLOT = 4096
REQUEST_SEQUENCE = 0x80


class Host:
    """The fastcalls of a host without a bus.

    Attributes:
        faults: rules that guests broke.
        ram: the memory of the slot shown last. ends: its signal. number: as the service knows it.
    """

    ram: Ram
    ends: SignalEnds
    number: int

    def __init__(self) -> None:
        self.tally, self.log = Tally(), ListLog()
        self.fastcalls = Fastcalls(self.tally, self.log)
        self.faults: list[PeerFault] = []

    @contextmanager
    def slot(self, guest: str, params: SlotParams | None = None) -> Iterator[FastSlot]:
        """A slot that ``guest`` shows."""
        ram = Ram.create(8192)
        slot = FastSlot(ram, SLOT)
        ends = SignalEnds(*(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2)))
        region = SharedRegion(0, ram, SLOT, FASTCALL_SLOT_BYTES, 0, 0, 1, FASTCALL_SIGNAL_OFFSET, ends)
        number = self.fastcalls.attach(guest, "bus", region, params or SlotParams(), self.faults.append)
        slot.connect(ends.kick_fd, ends.call_fd)
        self.number, self.ram, self.ends = number, ram, ends
        yield slot
        self.fastcalls.detach(guest, number)
        slot.close()
        for fd in (ends.kick_fd, ends.call_fd):
            os.close(fd)
        ram.close()


@pytest.fixture
def host() -> Iterator[Host]:
    """Give a test fastcalls; they end with it."""
    host = Host()
    yield host
    host.fastcalls.close()


async def test_handler_runs_on_another_thread_and_answers_the_caller(host: Host) -> None:
    """What it gives is what the caller gets."""
    threads: list[int] = []

    def fast(function: int, data: bytes) -> bytes:
        threads.append(threading.get_ident())
        return data * function

    host.fastcalls.offer("web", HANDLE, fast, "echo")
    with host.slot("web") as slot:
        answer = slot.call(SERIAL, 2, b"ab")

    assert (0, b"abab") == answer
    assert threading.get_ident() not in threads


async def test_handler_offered_after_the_slot_was_shown_is_reached_too(host: Host) -> None:
    """Devices are opened before and after a guest calls for the first time."""
    with host.slot("web") as slot:
        before = slot.call(SERIAL, 0, b"x")
        host.fastcalls.offer("web", HANDLE, FastHandler.echo(), "echo")
        after = slot.call(SERIAL, 0, b"x")

    assert [(FASTCALL_UNSERVED, b""), (0, b"x")] == [before, after]


async def test_handler_of_another_guest_is_out_of_reach(host: Host) -> None:
    """The number of its handle means nothing in another session."""
    host.fastcalls.offer("web", HANDLE, FastHandler.echo(), "echo")
    with host.slot("stranger") as slot:
        answer = slot.call(SERIAL, 0, b"x")

    assert (FASTCALL_UNSERVED, b"") == answer


async def test_withdrawn_handler_is_not_called_any_more(host: Host) -> None:
    """Nor does it harm to withdraw what was never offered."""
    host.fastcalls.offer("web", HANDLE, FastHandler.echo(), "echo")
    with host.slot("web") as slot:
        host.fastcalls.withdraw("web", HANDLE)
        host.fastcalls.withdraw("web", HANDLE)
        host.fastcalls.withdraw("nobody", HANDLE)
        answer = slot.call(SERIAL, 0, b"x")

    assert (FASTCALL_UNSERVED, b"") == answer


async def test_guest_that_comes_back_under_its_name_does_not_inherit_handlers(host: Host) -> None:
    """Numbers of sessions are never used again."""
    host.fastcalls.offer("web", HANDLE, FastHandler.echo(), "echo")
    with host.slot("web"):
        pass
    host.fastcalls.withdraw("web", HANDLE)
    with host.slot("web") as slot:
        answer = slot.call(SERIAL, 0, b"x")

    assert (FASTCALL_UNSERVED, b"") == answer


async def test_refusal_of_a_handler_reaches_the_caller_by_number(host: Host) -> None:
    """As a refusal of ``call`` would."""

    def refuse(_function: int, _data: bytes) -> bytes:
        raise BusyError("not now")

    host.fastcalls.offer("web", HANDLE, refuse, "echo")
    with host.slot("web") as slot:
        answer = slot.call(SERIAL, 0, b"")

    assert (errno.EBUSY, b"not now") == answer
    assert host.tally.value(metrics.DEVICE_FAILURES) == 0


def _raise(_data: bytes) -> bytes:
    raise ZeroDivisionError


@pytest.mark.parametrize("bug", [_raise, lambda _data: "text", lambda _data: bytes(369)], ids=["raise", "type", "long"])
async def test_bug_of_a_handler_is_refused_counted_and_logged(host: Host, bug: Callable[[bytes], bytes]) -> None:
    """It costs its own call, and the service goes on."""
    host.fastcalls.offer("web", HANDLE, lambda function, data: bug(data) if function else data, "broken")
    with host.slot("web") as slot:
        failed = slot.call(SERIAL, 1, b"")
        answer = slot.call(SERIAL, 0, b"fine")

    await eventually(lambda: host.tally.value(metrics.DEVICE_FAILURES) == 1)
    assert failed is not None
    assert (errno.EIO, (0, b"fine")) == (failed[0], answer)
    assert ["device_failed"] == host.log.events()


async def test_slot_that_is_switched_off_sends_callers_the_ordinary_way(host: Host) -> None:
    """And serves them again when it is switched on."""
    host.fastcalls.offer("web", HANDLE, FastHandler.echo(), "echo")
    with host.slot("web", SlotParams(is_enabled=False)) as slot:
        off = slot.call(SERIAL, 0, b"x")
        host.fastcalls.set(host.number, SlotParams())
        on = slot.call(SERIAL, 0, b"x")

    assert [(FASTCALL_UNSERVED, b""), (0, b"x")] == [off, on]


async def test_region_that_is_no_slot_is_the_guests_fault(host: Host) -> None:
    """Zeroes are not what a slot begins with."""
    ram = Ram.create(8192)
    ends = SignalEnds(*(os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2)))
    region = SharedRegion(0, ram, SLOT, FASTCALL_SLOT_BYTES, 0, 0, 1, FASTCALL_SIGNAL_OFFSET, ends)

    with pytest.raises(PeerFault) as caught:
        host.fastcalls.attach("web", "bus", region, SlotParams(), host.faults.append)

    assert caught.value.fields["rule"] == "bad_header"
    for fd in (ends.kick_fd, ends.call_fd):
        os.close(fd)
    ram.close()


async def test_broken_rule_is_told_on_the_event_loop(host: Host) -> None:
    """Once, with the rule, whatever the guest does afterwards."""
    with host.slot("web"):
        memoryview(host.ram.view(SLOT + REQUEST_SEQUENCE, 4))[:] = b"jump"
        os.eventfd_write(host.ends.kick_fd, 1)
        await eventually(lambda: host.faults)

    assert ["bad_size"] == [fault.fields["rule"] for fault in host.faults]

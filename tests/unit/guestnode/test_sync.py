"""Guest and SyncOperator: the bus for plain functions."""

import asyncio
import threading
from pathlib import Path

import pytest

import vbnet
from vbnet.bus.operator import SyncOperator
from vbnet.devices.echo.driver import EchoDriver
from vbnet.errors import BusyError, ClosedError, DeadlineError, ExistsError, NotFoundError, PeerGone, UsageError
from vbnet.testing.processes import HostProcess

PATIENCE = 10.0


def test_a_plain_function_uses_the_bus(run_root: Path) -> None:
    """Open, call, share, bind, reset, leave: no await in sight."""
    with HostProcess(run_root) as host, SyncOperator(host.run_dir) as operator:
        operator.bus_create("lan")
        operator.device_create("e", "echo")
        operator.device_plug("e", "lan")
        with vbnet.Guest("app", "lan", address=host.run_dir) as guest:
            with guest.open("echo0") as echo:
                answer = echo.call(1, b"hello")
                with pytest.raises(BusyError):
                    echo.call(3)
            with guest.open("cell0") as cell:
                assert cell.shm(0, 4096, 64, signal_offset=0) is not None
            guest.reset()
            guest.register(EchoDriver())
            assert [device.name for device in guest.devices] == ["echo0", "cell0"]
            assert guest.list_devices() == [(1, "echo", "echo0"), (2, "echo-cell", "cell0")]
            assert guest.wait_device("echo0").abi_type == "echo"
            assert isinstance(guest.bind("echo0"), object)
            with pytest.raises(DeadlineError):
                guest.nic("eth0", timeout=0.01)
            with pytest.raises(ExistsError):
                vbnet.Guest("app", "lan", address=host.run_dir)

        assert answer == b"HELLO"
        with pytest.raises(ClosedError):
            guest.list_devices()
        guest.close()


def test_a_plain_function_awaits_what_drivers_offer(run_root: Path) -> None:
    """Signals are made, served on threads of their own, changed and destroyed; a handler may wait for the bus too."""
    with HostProcess(run_root) as host, SyncOperator(host.run_dir) as operator:
        operator.bus_create("lan")
        operator.device_create("irq", "intc")
        operator.device_plug("irq", "lan")
        with vbnet.Guest("app", "lan", address=host.run_dir) as guest:
            intc = guest.bind("intc0")
            first, second = threading.Event(), threading.Event()
            follow = guest.run(intc.create("follow", second.set, priority=7))

            def lead() -> None:
                guest.run(follow.raise_())
                first.set()

            guest.run(intc.create("lead", lead, priority=1))
            operator.signal_raise("app/lead")
            assert all(event.wait(PATIENCE) for event in (first, second))
            guest.run(follow.set_priority(3))

            listed = {row["name"]: row["priority"] for row in operator.signal_list()}
            assert {"follow": 3, "lead": 1} == listed


def test_what_takes_too_long_is_cancelled(run_root: Path) -> None:
    """The caller goes on with a DeadlineError, and nothing is left running."""
    with HostProcess(run_root) as host, vbnet.Guest("app", address=host.run_dir, ram_bytes=0) as guest:
        ended = threading.Event()

        async def endless() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        with pytest.raises(DeadlineError, match=r"0\.01 s"):
            guest.run(endless(), timeout=0.01)

        assert ended.is_set()


def test_a_deadline_of_the_work_itself_is_told_as_it_is(run_root: Path) -> None:
    """What the work was waiting for is worth more than that it took too long."""
    with (
        HostProcess(run_root) as host,
        vbnet.Guest("app", address=host.run_dir, ram_bytes=0) as guest,
        pytest.raises(DeadlineError, match="no-such-device"),
    ):
        guest.run(guest.session.wait_device("no-such-device", 0.01), timeout=PATIENCE)


def test_the_loop_does_not_wait_for_itself(run_root: Path) -> None:
    """A coroutine of the bus's own loop that uses the plain face is told so, and does not hang."""
    with HostProcess(run_root) as host, vbnet.Guest("app", address=host.run_dir, ram_bytes=0) as guest:

        async def mistaken() -> None:
            guest.list_devices()

        with pytest.raises(UsageError, match="does not wait for that loop"):
            guest.run(mistaken(), timeout=PATIENCE)


def test_the_end_of_the_host_is_a_clear_error(run_root: Path) -> None:
    """A plain program gets PeerGone, not a hang."""
    with HostProcess(run_root) as host, vbnet.Guest("app", address=host.run_dir, ram_bytes=0) as guest:
        host.kill()

        with pytest.raises(PeerGone):
            guest.list_devices()


def test_without_a_host_a_guest_is_told_at_once(run_root: Path) -> None:
    """No deadline has to pass."""
    with pytest.raises(NotFoundError):
        vbnet.Guest("app", address=run_root / "none")


def test_a_guest_counts_for_the_exporter_while_it_is_there(run_root: Path) -> None:
    """Its file appears with the first counter and goes with the guest; closed, it counts no more."""
    with HostProcess(run_root) as host:
        with vbnet.Guest("app:1", address=host.run_dir) as guest:
            before = list(host.run_dir.programs.iterdir())
            guest.counters.counter("orders", help="Orders taken.").add()
            during = list(host.run_dir.programs.iterdir())

        assert ([], [host.run_dir.program_counters("app:1")]) == (before, during)
        assert [] == list(host.run_dir.programs.iterdir())
        with pytest.raises(ClosedError):
            _ = guest.counters


def test_a_guest_in_a_sandbox_counts_for_itself(run_root: Path) -> None:
    """Where the folder is not to be reached, a program goes on as ever."""
    with HostProcess(run_root) as host, vbnet.Guest("app", address=host.run_dir) as guest:
        host.run_dir.programs.rmdir()

        orders = guest.counters.counter("orders", help="Orders taken.")
        orders.add(3)

        assert (3, False) == (orders.value, guest.counters.is_exported)

"""Guest and SyncOperator: the bus for plain functions."""

from pathlib import Path

import pytest

import vbnet
from vbnet.bus.operator import SyncOperator
from vbnet.devices.echo.driver import EchoDriver
from vbnet.errors import BusyError, ClosedError, DeadlineError, ExistsError, NotFoundError, PeerGone
from vbnet.testing.processes import HostProcess


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

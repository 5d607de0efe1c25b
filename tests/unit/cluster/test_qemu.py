"""What QEMU is told fits its version, and what it would not take is refused first."""

import re
from pathlib import Path

import pytest

from vbnet.cluster.qemu import card_arguments, memory_arguments, qemu_version
from vbnet.errors import UsageError

SOCKET = Path("/run/a,b.sock")


@pytest.mark.parametrize(
    ("version", "again", "has_vectors"),
    [((7, 2), "reconnect=1", False), ((8, 0), "reconnect=1", True), ((9, 2), "reconnect-ms=1000", True)],
)
def test_arguments_fit_the_version(version: tuple[int, int], again: str, has_vectors: bool) -> None:
    """An option that was renamed, and the vectors over which QEMU 7 falls."""
    arguments = card_arguments(SOCKET, version=version)

    assert ["-chardev", f"socket,id=vbnet0,path=/run/a,,b.sock,{again}"] == arguments[:2]
    assert ["-device", "virtio-net-pci,netdev=vbnet0" + ("" if has_vectors else ",vectors=0")] == arguments[4:]


def test_card_tells_how_long_packets_may_be() -> None:
    """Beside its address and its queues."""
    *_, card = card_arguments(SOCKET, mac="02:00:00:00:00:0a", queues=2, mtu=9000)

    assert "virtio-net-pci,netdev=vbnet0,mac=02:00:00:00:00:0a,mq=on,host_mtu=9000" == card


@pytest.mark.parametrize("size", ["1G", "1g", "512M", "1.5G", "1073741824", "0x40000000", "2097152B", "1024K", "1T"])
def test_sizes_that_qemu_reads_are_handed_on(size: str) -> None:
    """As they are written."""
    assert ["-object", f"memory-backend-memfd,id=vbnet-ram,size={size},share=on"] == memory_arguments(size)[:2]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("", "no size"),
        ("1GB", "no size"),
        ("1GiB", "no size"),
        ("-1G", "no size"),
        ("1.5", "no size"),
        ("1,5G", "no size"),
        ("1G,share=off", "no size"),
        ("1e9", "no size"),
        ("0x10M", "no size"),
        ("much", "no size"),
        ("1024", "write 1024M"),
        ("0G", "is 0 bytes"),
        ("4096P", "more memory"),
        ("2E", "more memory"),
    ],
)
def test_sizes_that_qemu_does_not_take_are_refused(size: str, said: str) -> None:
    """With what to write instead; a number alone is bytes to QEMU, which few mean."""
    with pytest.raises(UsageError, match=re.escape(said)):
        memory_arguments(size)


@pytest.mark.parametrize(
    ("program", "expected"),
    [("7.2", (7, 2)), ("10.0.3", (10, 0)), ("/nonexistent/qemu", None), ("/bin/true", None)],
)
def test_version_is_named_or_asked_for(program: str, expected: tuple[int, int] | None) -> None:
    """A program that is not there, or that tells none, has no version."""
    assert expected == qemu_version(program)

"""A process named so that the name cannot come to mean another one.

The kernel hands process numbers out again. A number together with the moment its process started (and the boot it
happened in) never repeats, so that is what the state file keeps, and nothing is signalled before it was compared.
Signals go through a pidfd, so the process cannot change between the comparison and the signal.

Descendants that escaped (a daemon started by `vbnet exec`) are found by a mark in their first environment.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

MARK = "VBNET_LAB_INSTANCE"
"""Environment variable that everything started for a lab inherits: its value is the lab's instance."""


class Identity(msgspec.Struct, frozen=True):
    """One process of one boot.

    Attributes:
        pid: its number.
        start: when it started, in clock ticks since boot (field 22 of ``/proc/PID/stat``).
        boot: the kernel's random name of this boot.
    """

    pid: int
    start: int
    boot: str


def boot_id() -> str:
    """Return the kernel's name of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def identify(pid: int) -> Identity | None:
    """Return who has the number ``pid`` now, or None when nobody has (a zombie is nobody)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    after_name = stat[stat.rindex(b")") + 2 :].split()
    if after_name[0] in {b"Z", b"X"}:
        return None
    return Identity(pid, int(after_name[19]), boot_id())


def is_alive(identity: Identity | None) -> bool:
    """Say whether exactly this process is still running."""
    return identity is not None and identify(identity.pid) == identity


def send_signal(identity: Identity, number: int) -> bool:
    """Signal exactly this process.

    Returns:
        False when it is not there any more (nothing was signalled).
    """
    try:
        pidfd = os.pidfd_open(identity.pid)
    except OSError:
        return False
    try:
        if identify(identity.pid) != identity:
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def wait_ended(identity: Identity, timeout_s: float) -> bool:
    """Wait until this process has ended (a zombie has), at most ``timeout_s``; say whether it has."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except OSError:
        return True
    try:
        if not is_alive(identity):
            return True
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(pidfd)


def marked_processes(instance: str) -> Iterator[Identity]:
    """Yield every living process of this user that was started for the lab ``instance``, the caller excepted."""
    needle = f"{MARK}={instance}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        environment = b""
        with suppress(OSError):
            environment = (entry / "environ").read_bytes()
        if needle in environment.split(b"\0"):
            identity = identify(int(entry.name))
            if identity is not None:
                yield identity

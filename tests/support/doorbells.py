"""What a hostile guest does to a doorbell it shares with the host."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["blocking"]


@contextmanager
def blocking(fd: int) -> Iterator[None]:
    """Fill an eventfd to the brim and have whoever writes to it wait."""
    with suppress(BlockingIOError):
        os.eventfd_read(fd)
    os.eventfd_write(fd, 0xFFFF_FFFF_FFFF_FFFE)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
    yield
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)

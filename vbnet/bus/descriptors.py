"""File descriptors as such: how many a node may hold, and what one refers to.

A guest costs both sides its memory's and two for each signal.
"""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

__all__ = ["is_eventfd", "raise_descriptor_limit"]


def is_eventfd(fd: int) -> bool:
    """Whether ``fd`` is open in this process, and an eventfd."""
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("anon_inode:[eventfd")
    except OSError:
        return False


def raise_descriptor_limit() -> int:
    """Allow this process as many descriptors as its user may allow it; gives the limit that holds now."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

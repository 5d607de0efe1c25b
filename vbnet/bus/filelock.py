"""A file that says whose a folder is, by a lock that the kernel takes away when its holder ends, however it ends.

Who holds it may let others inherit the descriptor: then it is held until the last of them is gone. A file that is a
link is never followed.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

__all__ = ["hold", "is_held"]


def hold(path: Path) -> int | None:
    """Make the file, if it is not there, and hold it; gives the descriptor that does, or None: somebody else holds it.

    Raises:
        OSError: the machine refused.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_held(path: Path) -> bool | None:
    """Say whether somebody living holds the file; None: there is none, or it cannot be opened."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False

"""File descriptors as such: how many a node may hold, and what one refers to.

A guest costs both sides its memory's and two for each signal.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from vbnet.errors import ResourceError

__all__ = ["is_eventfd", "opened_image", "opened_log", "raise_descriptor_limit"]


def is_eventfd(fd: int) -> bool:
    """Whether ``fd`` is open in this process, and an eventfd."""
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("anon_inode:[eventfd")
    except OSError:
        return False


@contextlib.contextmanager
def opened_image(path: str | os.PathLike[str], *, is_read_only: bool) -> Iterator[int]:
    """Open a file that is to become a disk, which is closed in the end; a pipe in its place is not waited for.

    Raises:
        ResourceError: the system refused; with its errno.
    """
    wish = "reading" if is_read_only else "reading and writing"
    with _opened(path, os.O_RDONLY if is_read_only else os.O_RDWR, "the disk image", wish) as fd:
        yield fd


@contextlib.contextmanager
def opened_log(path: str | os.PathLike[str]) -> Iterator[int]:
    """Open a file that is to become a console's log, made if it is not there, which is closed in the end.

    Raises:
        ResourceError: the system refused; with its errno.
    """
    with _opened(path, os.O_RDWR | os.O_CREAT, "the log", "writing") as fd:
        yield fd


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str], access: int, what: str, wish: str) -> Iterator[int]:
    try:
        fd = os.open(path, access | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
    except OSError as error:
        raise ResourceError(
            f"cannot open {what} {os.fspath(path)} for {wish}: {error.strerror}",
            errno=error.errno or 0,
            path=os.fspath(path),
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


def raise_descriptor_limit() -> int:
    """Allow this process as many descriptors as its user may allow it; gives the limit that holds now."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

"""Capture files as they grow: whole pcapng blocks only, whatever the disk or the reader does.

A file whose disk fills up is cut back to its last whole block, so what was captured before can be read. A pipe is
written to in small pieces, each only when there is room: a reader that does not read is waited for without blocking, so
that the capture can still be ended. Frames are secrets of their guests: files are made for their owner only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

from vbnet.errors import ExistsError, PeerGone, ResourceError

__all__ = ["BlockFile", "BlockPipe", "BlockSink", "whole_blocks"]

_PIECE_BYTES: Final = 4096
"""A pipe that can be written to takes at least so many (pipe(7))."""
_GRACE_MS: Final = 1000
"""How long a reader that does not read is waited for once the capture is to end."""
_HEAD: Final = struct.Struct("<II")


class BlockSink(Protocol):
    """Where blocks go."""

    def write(self, blocks: bytes) -> None:
        """Write whole blocks.

        Raises:
            ResourceError: the disk refused; its field ``blocks`` says how many of these a file has all the same.
            PeerGone: the reader ended. What was written before stays valid.
        """

    def finish(self) -> None:
        """Write what a file ends with, as far as that is possible, and close."""

    def names(self) -> list[str]:
        """Where it all went."""


class BlockFile:
    """A file of blocks, or several in turn.

    Args:
        path: of the file; with ``rotate_bytes`` a number is put before its suffix.
        head: what each file begins with.
        tail: gives what each file ends with, as of then.
        rotate_bytes: begin another file when one has so many bytes; 0: never.
        keep_files: remove the oldest file when there are more; 0: keep all.
        is_forced: overwrite files that are there.

    Raises:
        ExistsError: there is such a file. ResourceError: it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        head: bytes,
        tail: Callable[[], bytes],
        *,
        rotate_bytes: int = 0,
        keep_files: int = 0,
        is_forced: bool = False,
    ) -> None:
        self._path = path
        self._head = head
        self._tail = tail
        self._rotate_bytes = rotate_bytes
        self._keep_files = keep_files
        self._is_forced = is_forced
        self._files: deque[Path] = deque()
        self._number = 0
        self._bytes = 0
        self._fd = -1
        self._open()

    def names(self) -> list[str]:
        """Every file that is left, oldest first."""
        return [str(path) for path in self._files]

    def write(self, blocks: bytes) -> None:
        """See ``BlockSink``."""
        done = 0
        try:
            while done < len(blocks):
                if self._rotate_bytes and self._bytes >= self._rotate_bytes:
                    self.finish()
                    self._open()
                before = self._bytes
                try:
                    self._append(self._fitting(blocks[done:]))
                finally:
                    done += self._bytes - before
        except ResourceError as error:
            error.fields["blocks"] = sum(1 for _ in _ends(blocks[:done]))
            raise

    def finish(self) -> None:
        """See ``BlockSink``; harmless when finished already."""
        if self._fd < 0:
            return
        with contextlib.suppress(ResourceError):
            self._append(self._tail())
        os.close(self._fd)
        self._fd = -1

    def _fitting(self, blocks: bytes) -> bytes:
        """As many as belong into this file; the one that reaches the limit is its last."""
        room = self._rotate_bytes - self._bytes
        if not self._rotate_bytes or len(blocks) <= room:
            return blocks
        fits = whole_blocks(blocks[: max(0, room)])
        return blocks[: fits + _HEAD.unpack_from(blocks, fits)[1]]

    def _open(self) -> None:
        self._number += 1
        path = self._path
        if self._rotate_bytes:
            path = path.with_name(f"{path.stem}.{self._number:05}{path.suffix}")
        how = os.O_TRUNC if self._is_forced else os.O_EXCL
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o600)
        except FileExistsError as error:
            raise ExistsError(
                f"{path} is there already and was not touched; name another, or overwrite it with --force",
                path=str(path),
            ) from error
        except OSError as error:
            raise _refused(path, error, 0) from error
        self._files.append(path)
        self._bytes = 0
        while self._keep_files and len(self._files) > self._keep_files:
            with contextlib.suppress(FileNotFoundError):
                self._files.popleft().unlink()
        self._append(self._head)

    def _append(self, blocks: bytes) -> None:
        rest = memoryview(blocks)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self._bytes += whole_blocks(blocks[: len(blocks) - len(rest)])
            with contextlib.suppress(OSError):  # what cannot be cut, such as a pipe
                os.ftruncate(self._fd, self._bytes)
                os.lseek(self._fd, self._bytes, os.SEEK_SET)
            raise _refused(self._files[-1], error, self._bytes) from error
        self._bytes += len(blocks)


class BlockPipe:
    """A stream that somebody reads.

    Args:
        fd: where to write; stays the caller's.
        head: what it begins with.
        tail: gives what it ends with.
        stop_fd: readable once the capture is to end, also while the reader does not read.
    """

    def __init__(self, fd: int, head: bytes, tail: Callable[[], bytes], stop_fd: int) -> None:
        self._fd = fd
        self._tail = tail
        self._stop_fd = stop_fd
        self._is_over = False
        self.write(head)

    def names(self) -> list[str]:
        """A stream has no name."""
        return []

    def write(self, blocks: bytes) -> None:
        """See ``BlockSink``."""
        rest = memoryview(blocks)
        try:
            while rest:
                self._await_room()
                rest = rest[os.write(self._fd, rest[:_PIECE_BYTES]) :]
        except PeerGone:
            raise
        except BrokenPipeError as error:
            self._is_over = True
            raise PeerGone("whoever read the capture has ended; what it got until then is whole") from error
        except OSError as error:
            self._is_over = True
            raise ResourceError(f"the capture cannot be written: {error.strerror}", errno=error.errno or 0) from error

    def finish(self) -> None:
        """See ``BlockSink``."""
        if not self._is_over:
            with contextlib.suppress(PeerGone, ResourceError):
                self.write(self._tail())
            self._is_over = True

    def _await_room(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if poll.poll(0):
            return
        poll.register(self._stop_fd, select.POLLIN)
        ready = dict(poll.poll())
        if self._fd in ready:
            return
        poll.unregister(self._stop_fd)
        if not poll.poll(_GRACE_MS):
            self._is_over = True
            raise PeerGone("whoever reads the capture has stopped reading; its last frame is cut short")


def whole_blocks(blocks: bytes) -> int:
    """Return how many bytes of ``blocks``, which may end anywhere, are whole blocks."""
    return max(_ends(blocks), default=0)


def _ends(blocks: bytes) -> Iterator[int]:
    at = 0
    while len(blocks) - at >= _HEAD.size:
        _, length = _HEAD.unpack_from(blocks, at)
        if length > len(blocks) - at:
            return
        at += length
        yield at


def _refused(path: Path, error: OSError, kept: int) -> ResourceError:
    number = error.errno or errno.EIO
    state = f"; its first {kept} bytes are a whole capture" if kept else ""
    return ResourceError(f"{path} cannot be written: {os.strerror(number)}{state}", errno=number, path=str(path))

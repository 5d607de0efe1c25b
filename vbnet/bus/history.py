"""Events that have happened: the last of them, kept in the run directory so that they outlive a killed node.

    <run directory>/events.jsonl      one JSON object a line, oldest first; appended to
                    events.1.jsonl    the file before it

Who writes what: the host node appends, one write a line; anybody with the right to the folder reads, at any time. When
the file is full it takes the place of the one before, so both together hold ``2 * FILE_BYTES`` at most.

Danger: a node may be killed, or the disk be full, in the middle of a line. A reader takes whole lines only and counts
what is none; a writer never continues another's half line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from vbnet.bus.rundir import RunDir
from vbnet.errors import NotPermittedError, ResourceError

__all__ = ["FILE_BYTES", "LINE_BYTES", "EventHistory", "History", "encode_event", "read_history"]

FILE_BYTES: Final = 1 << 20
LINE_BYTES: Final = 8192

_encoder = msgspec.json.Encoder(enc_hook=repr)


def encode_event(event: Mapping[str, Any]) -> bytes:
    """Return an event as JSON without line breaks, at most ``LINE_BYTES`` long.

    Fields that JSON does not have are shown as Python would; of an event that is too long only the head is left, with
    its length in ``cut_bytes``.
    """
    data = _encoder.encode(event)
    if len(data) < LINE_BYTES:
        return data
    head = {name: event[name] for name in ("topic", "seq", "time", "severity") if name in event}
    return _encoder.encode({**head, "cut_bytes": len(data)})


class EventHistory:
    """The writing end.

    Args:
        run_dir: exists, and is this process's.
        file_bytes: how long a file may become, > ``LINE_BYTES``.

    Raises:
        ResourceError: the file cannot be opened.
    """

    def __init__(self, run_dir: RunDir, file_bytes: int = FILE_BYTES) -> None:
        self.lost = 0
        self._path, self._old = run_dir.events_file, run_dir.old_events_file
        self._file_bytes = file_bytes
        self._fd = -1
        self._length, self._is_at_start = 0, True
        self._open()

    def append(self, data: bytes) -> None:
        """Keep one event, as ``encode_event`` gave it. A full disk loses it, which is counted in ``lost``."""
        if self._fd < 0:
            return
        line = data + b"\n" if self._is_at_start else b"\n" + data + b"\n"
        try:
            if self._length + len(line) > self._file_bytes:
                self._rotate()
                line = data + b"\n"
            written = os.write(self._fd, line)
        except OSError:
            self.lost += 1
            return
        self._length += written
        self._is_at_start = written == len(line)
        self.lost += not self._is_at_start

    def close(self) -> None:
        """Write no more; the files stay."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise ResourceError(f"cannot open {self._path}: {error.strerror}", errno=error.errno or 0) from error
        self._length = os.fstat(self._fd).st_size
        self._is_at_start = self._length == 0 or os.pread(self._fd, 1, self._length - 1) == b"\n"

    def _rotate(self) -> None:
        self._path.replace(self._old)
        os.close(self._fd)
        self._fd = -1
        try:
            self._open()
        except ResourceError as error:
            raise OSError(error.errno, str(error)) from error


@dataclass(slots=True)
class History:
    """What was read.

    Attributes:
        events: oldest first.
        damaged: lines that were no events.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    damaged: int = 0


def read_history(run_dir: RunDir) -> History:
    """Read the events that a run directory keeps, whether its node lives or not; a half-written last line is not one.

    Raises:
        NotPermittedError: a file there is a link, or another user's to read.
    """
    found = History()
    for path in (run_dir.old_events_file, run_dir.events_file):
        for line in _lines(path):
            event: object = None
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                event = msgspec.json.decode(line)
            if isinstance(event, dict) and _has_head(event):
                found.events.append(event)
            else:
                found.damaged += bool(line)
    return found


def _has_head(event: dict[str, Any]) -> bool:
    return (
        isinstance(event.get("topic"), str)
        and isinstance(event.get("seq"), int)
        and isinstance(event.get("time"), (int, float))
    )


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the whole lines of a file; none when it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError as error:
        raise NotPermittedError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    with os.fdopen(fd, "rb") as file:
        *whole, _rest = file.read(2 * FILE_BYTES).split(b"\n")
    yield from whole

"""The distinct errors of a host node: each once, with how often, since when, and what it said last.

    <run directory>/errors.log     a mapped file of SLOTS + 1 slots of SLOT_BYTES bytes

    slot   = length (u32), CRC-32 of the payload (u32), payload (JSON, ``length`` bytes), zeroes
    slot 0 = the head: format, how many errors were evicted.   slots 1.. = one distinct error each, in no order

Who writes what: the host node alone, straight into the mapping; so whatever it noted before it hung or was killed can
be read. A reader copies a slot and believes it only if the checksum fits, so one that is just being written is read
again, and never half. Byte order is little-endian.

Bounds: when every slot is taken, the error that was counted least, and of those the one seen least recently, makes
room, and is counted as evicted: whoever makes up errors without end drives out their own. In spirit this is Aeron's
distinct error log; nothing of it was taken.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import msgspec

from vbnet.bus.rundir import RunDir
from vbnet.errors import NotFoundError, NotPermittedError, PeerFault, ResourceError

__all__ = ["SLOTS", "SLOT_BYTES", "SLOT_LAYOUT", "DistinctError", "ErrorLog", "Errors", "read_errors"]

SLOTS: Final = 256
SLOT_BYTES: Final = 1024
FORMAT: Final = "vbnet-errors-1"
TEXT_BYTES: Final = 400
NAME_BYTES: Final = 120
SLOT_LAYOUT: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {"length": (0, 4), "crc32": (4, 4), "payload": (8, SLOT_BYTES - 8)}
)
"""Where each field of a slot is: offset and size in bytes."""

_PREFIX: Final = struct.Struct("<II")
_FILE_BYTES: Final = (SLOTS + 1) * SLOT_BYTES
_TRIES: Final = 50
_WITHOUT_QUOTES: Final = str.maketrans({'"': "'", "\\": "/"})


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    evicted: int


class DistinctError(msgspec.Struct, forbid_unknown_fields=True):
    """One distinct error.

    Attributes:
        what: the topic, or which door refused: ``bus.refused``, ``attach.refused``, ``admin.refused``.
        whose: the guest, device or port that it came from.
        code: the rule that was broken, or the errno name of the refusal.
        first_s, last_s: when it was seen, seconds since 1970.
        count: how often.
        message: what it said last; one line.
    """

    what: str
    whose: str
    code: str
    first_s: float
    last_s: float
    count: int
    message: str


@dataclass(slots=True)
class Errors:
    """What was read.

    Attributes:
        errors: the latest first.
        evicted: how many made room for others.
        unreadable: slots that were damaged.
    """

    errors: list[DistinctError] = field(default_factory=list)
    evicted: int = 0
    unreadable: int = 0


class ErrorLog:
    """The writing end; what an earlier node of this run directory noted is kept.

    Args:
        run_dir: exists, and is this process's.
        now_s: tells the time, seconds since 1970.

    Raises:
        ResourceError: the file cannot be opened or mapped.
    """

    def __init__(self, run_dir: RunDir, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._entries: dict[tuple[str, str, str], tuple[int, DistinctError]] = {}
        path = run_dir.errors_file
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(path, flags, 0o600)
            try:
                os.ftruncate(fd, _FILE_BYTES)
                os.posix_fallocate(fd, 0, _FILE_BYTES)  # a disk that fills up later then cannot hurt the mapping
                self._map = mmap.mmap(fd, _FILE_BYTES)
            finally:
                os.close(fd)
        except OSError as error:
            raise ResourceError(f"cannot use {path}: {error.strerror}", errno=error.errno or 0) from error
        self._evicted = 0
        self._take_over()

    def note(self, what: str, whose: str, code: str, message: str) -> None:
        """Count an error; harmless when closed. Texts are cut to fit."""
        if self._map.closed:
            return
        what, whose, code = (_cut(text, NAME_BYTES) for text in (what, whose, code))
        now_s, text = self._now_s(), _cut(message, TEXT_BYTES)
        known = self._entries.get((what, whose, code))
        if known is not None:
            slot, entry = known
            entry.count += 1
            entry.last_s, entry.message = now_s, text
        else:
            slot, entry = self._room(), DistinctError(what, whose, code, now_s, now_s, 1, text)
            self._entries[what, whose, code] = slot, entry
        self._write(slot, entry)

    def close(self) -> None:
        """Note no more; the file stays."""
        self._map.close()

    def _take_over(self) -> None:
        """Go on with what is there, if it is ours to understand; else begin anew."""
        head = _decode_head(self._slot(0))
        if head is None:
            self._map[:] = bytes(_FILE_BYTES)
        else:
            self._evicted = head.evicted
            for slot in range(1, SLOTS + 1):
                entry = _decode_entry(self._slot(slot))
                if entry is not None:
                    self._entries[entry.what, entry.whose, entry.code] = slot, entry
        self._write(0, _Head(FORMAT, self._evicted))

    def _room(self) -> int:
        if len(self._entries) < SLOTS:
            taken = {slot for slot, _ in self._entries.values()}
            return next(slot for slot in range(1, SLOTS + 1) if slot not in taken)
        least = min(self._entries, key=self._weight)
        slot, _ = self._entries.pop(least)
        self._evicted += 1
        self._write(0, _Head(FORMAT, self._evicted))
        return slot

    def _weight(self, key: tuple[str, str, str]) -> tuple[int, float]:
        entry = self._entries[key][1]
        return entry.count, entry.last_s

    def _slot(self, slot: int) -> bytes:
        return self._map[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]

    def _write(self, slot: int, record: msgspec.Struct) -> None:
        payload = msgspec.json.encode(record)
        start = slot * SLOT_BYTES
        filled = _PREFIX.pack(len(payload), zlib.crc32(payload)) + payload
        self._map[start : start + SLOT_BYTES] = filled.ljust(SLOT_BYTES, b"\0")


def read_errors(run_dir: RunDir) -> Errors:
    """Read the distinct errors that a run directory keeps, whether its node works, hangs or is dead.

    Raises:
        NotFoundError: no node has kept any there.
        NotPermittedError: the file is a link, or not ours to read.
        PeerFault: it is cut short, or no such file, or of another version.
    """
    path = run_dir.errors_file
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise NotFoundError(f"no host node has kept errors in {run_dir.path}", path=str(path)) from None
    except OSError as error:
        raise NotPermittedError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    try:
        length = os.fstat(fd).st_size
        if length != _FILE_BYTES:
            raise PeerFault(
                f"{path} is no log of distinct errors: it has {length} bytes, not {_FILE_BYTES}",
                rule="length",
                got=length,
                limit=_FILE_BYTES,
            )
        slots = [_stable(fd, slot) for slot in range(SLOTS + 1)]
    finally:
        os.close(fd)
    head = _decode_head(slots[0])
    found = Errors(evicted=head.evicted if head is not None else 0, unreadable=int(head is None))
    for data in slots[1:]:
        entry = _decode_entry(data)
        if entry is not None:
            found.errors.append(entry)
        else:
            found.unreadable += any(data)
    if head is None and not found.errors:
        raise PeerFault(f"{path} is no log of distinct errors, or of another version: nothing in it fits", rule="head")
    found.errors.sort(key=lambda entry: -entry.last_s)
    return found


def _stable(fd: int, slot: int) -> bytes:
    """A copy of a slot that is whole; after some tries, whatever is there."""
    data = b""
    for _ in range(_TRIES):
        data = os.pread(fd, SLOT_BYTES, slot * SLOT_BYTES).ljust(SLOT_BYTES, b"\0")
        if not any(data) or _payload(data) is not None:
            break
    return data


def _payload(data: bytes) -> bytes | None:
    length, checksum = _PREFIX.unpack_from(data)
    payload = data[_PREFIX.size : _PREFIX.size + length]
    is_whole = 0 < length <= SLOT_LAYOUT["payload"][1] and zlib.crc32(payload) == checksum
    return payload if is_whole else None


def _decode_head(data: bytes) -> _Head | None:
    payload = _payload(data)
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        head = msgspec.json.decode(payload or b"", type=_Head)
        return head if head.format == FORMAT else None
    return None


def _decode_entry(data: bytes) -> DistinctError | None:
    payload = _payload(data)
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(payload or b"", type=DistinctError)
    return None


def _cut(text: str, limit: int) -> str:
    """A text on one line that takes at most ``limit`` bytes, also as JSON, where quotes would take two."""
    line = "".join(c if c.isprintable() else " " for c in text[:limit]).translate(_WITHOUT_QUOTES)
    return line.encode(errors="replace")[:limit].decode(errors="ignore")

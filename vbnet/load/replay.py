"""A capture as traffic: its frames and the gaps between them.

pcap and pcapng, as tcpdump, Wireshark and vbnet write them. The danger: the file is somebody's. It is read once, with a
limit on frames and bytes, and a file that ends in the middle of a frame is refused rather than replayed in part: what
is replayed is what the file's author meant.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final

import dpkt

from vbnet.errors import UsageError

__all__ = ["Recording", "load_recording"]

FRAMES_MAX: Final = 1_000_000
BYTES_MAX: Final = 512 << 20
_HEADER_BYTES: Final = 14
_ETHERNET: Final = 1


@dataclass(frozen=True, slots=True)
class Recording:
    """Frames of a capture.

    Attributes:
        frames: whole frames, header included.
        gaps_ns: nanoseconds from each frame to the next; after the last, the mean of all.
    """

    frames: list[bytes]
    gaps_ns: list[int]

    def faster(self, speed: float) -> Recording:
        """Return the same with every gap divided by ``speed``."""
        return Recording(self.frames, [round(gap / speed) for gap in self.gaps_ns])


def load_recording(path: Path, *, longest: int) -> Recording:
    """Read a capture.

    Args:
        path: the file.
        longest: bytes of the longest frame that the sending device carries.

    Raises:
        UsageError: no capture, cut short, not Ethernet, too much, or with a frame that cannot be sent.
    """
    stamps: list[float] = []
    frames: list[bytes] = []
    total = 0
    try:
        with path.open("rb") as stream:
            reader = dpkt.pcap.UniversalReader(_Whole(stream))
            if reader.datalink() != _ETHERNET:
                raise UsageError(f"{path}: its link type is {reader.datalink()}, only Ethernet (1) can be replayed")
            for stamp, frame in reader:
                total += len(frame)
                if len(frames) >= FRAMES_MAX or total > BYTES_MAX:
                    raise UsageError(
                        f"{path} holds more than {FRAMES_MAX} frames or {BYTES_MAX >> 20} MiB; cut it with `editcap -c`"
                    )
                _check(path, len(frames) + 1, frame, longest)
                stamps.append(float(stamp))
                frames.append(frame)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, dpkt.Error, struct.error, EOFError) as error:
        raise UsageError(f"{path} is no capture, or was cut short after {len(frames)} frames ({error})") from error
    if len(frames) < 2:  # noqa: PLR2004 - one gap at least
        raise UsageError(f"{path} has {len(frames)} frames; a replay needs two at least")
    return Recording(frames, _gaps(path, stamps))


class _Whole:
    """A file whose reads give all they were asked for, or nothing at its end: the library takes less for a frame."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.name = stream.name

    def read(self, size: int) -> bytes:
        """Read exactly so many bytes, or none."""
        content = self._stream.read(size)
        if content and len(content) < size:
            raise EOFError(f"it ends {size - len(content)} bytes too early")
        return content

    def seek(self, offset: int) -> int:
        """Go to a place."""
        return self._stream.seek(offset)

    def fileno(self) -> int:
        """Its descriptor."""
        return self._stream.fileno()


def _check(path: Path, number: int, frame: bytes, longest: int) -> None:
    if not _HEADER_BYTES <= len(frame) <= longest:
        raise UsageError(
            f"{path}: frame {number} has {len(frame)} bytes, a device here carries {_HEADER_BYTES} to {longest}; "
            "raise `mtu`, or capture without a snap length"
        )


def _gaps(path: Path, stamps: list[float]) -> list[int]:
    """Gaps in nanoseconds; a clock that was set back while capturing gives gaps of 0."""
    gaps = [max(0, round((later - earlier) * 1e9)) for earlier, later in pairwise(stamps)]
    if not any(gaps):
        raise UsageError(f"{path}: all frames have the same time, so there is no timing to replay")
    return [*gaps, round(sum(gaps) / len(gaps))]

"""Captures as traffic: those of both formats, and those that cannot be replayed."""

import struct
from pathlib import Path

import dpkt
import pytest

from vbnet.errors import UsageError
from vbnet.load.replay import load_recording

FRAMES = [bytes([number]) * size for number, size in enumerate([60, 1514, 100])]
STAMPS = [1000.0, 1000.000250, 1000.5]


def capture(path: Path, frames: list[bytes], stamps: list[float], link: int = 1, *, is_new: bool = False) -> Path:
    """Write a capture: pcap, or pcapng."""
    with path.open("wb") as stream:
        if is_new:
            writer = dpkt.pcapng.Writer(stream, idb=dpkt.pcapng.InterfaceDescriptionBlockLE(linktype=link))
        else:
            writer = dpkt.pcap.Writer(stream, linktype=link)
        for frame, stamp in zip(frames, stamps, strict=True):
            writer.writepkt(frame, stamp)
    return path


@pytest.mark.parametrize("is_new", [False, True])
def test_frames_and_gaps_are_those_of_the_capture(tmp_path: Path, is_new: bool) -> None:
    """After the last frame comes the mean gap."""
    recording = load_recording(capture(tmp_path / "c", FRAMES, STAMPS, is_new=is_new), longest=1518)

    assert FRAMES == recording.frames
    assert [250, 499_750, 250_000] == [round(gap / 1000) for gap in recording.gaps_ns]
    assert [125, 249_875, 125_000] == [round(gap / 1000) for gap in recording.faster(2).gaps_ns]


def test_a_clock_that_was_set_back_makes_no_gap(tmp_path: Path) -> None:
    """It is taken for 0."""
    recording = load_recording(capture(tmp_path / "c", FRAMES, [5.0, 4.0, 6.0]), longest=1518)

    assert recording.gaps_ns[0] == 0


def test_truncated_pcap_is_refused(tmp_path: Path) -> None:
    """In the middle of the last frame, of its header, and of the file's."""
    path = capture(tmp_path / "c.pcap", FRAMES, STAMPS)
    whole = path.read_bytes()
    for length in (len(whole) - 10, len(whole) - len(FRAMES[2]) - 5, 10):
        path.write_bytes(whole[:length])

        with pytest.raises(UsageError, match=r"is no capture, or was cut short"):
            load_recording(path, longest=1518)


@pytest.mark.parametrize(
    ("frames", "stamps", "link", "message"),
    [
        (FRAMES, STAMPS, 101, r"its link type is 101, only Ethernet"),
        (FRAMES[:1], STAMPS[:1], 1, "has 1 frames; a replay needs two"),
        ([FRAMES[0], b"short"], STAMPS[:2], 1, "frame 2 has 5 bytes, a device here carries 14 to 1518"),
        ([FRAMES[0], bytes(1519)], STAMPS[:2], 1, "frame 2 has 1519 bytes"),
        (FRAMES[:2], [1.0, 1.0], 1, "all frames have the same time"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    tmp_path: Path, frames: list[bytes], stamps: list[float], link: int, message: str
) -> None:
    """The message says what, and which frame."""
    path = capture(tmp_path / "c.pcap", frames, stamps, link)

    with pytest.raises(UsageError, match=message):
        load_recording(path, longest=1518)


def test_what_is_no_capture_is_refused(tmp_path: Path) -> None:
    """Nor what is not there, nor a folder."""
    (tmp_path / "text").write_text("hello, this is no capture at all")

    for path in (tmp_path / "text", tmp_path / "missing", tmp_path):
        with pytest.raises(UsageError):
            load_recording(path, longest=1518)


def test_a_frame_that_claims_to_be_huge_takes_no_memory(tmp_path: Path) -> None:
    """Four gigabytes, says its header."""
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    (tmp_path / "c").write_bytes(header + struct.pack("<IIII", 1, 0, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(100))

    with pytest.raises(UsageError):
        load_recording(tmp_path / "c", longest=1518)

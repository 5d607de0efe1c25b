"""A guest that remembers, on its disk, how often it was started."""

import io

import vbnet

LINE = 32


def write(guest: vbnet.Guest) -> None:
    """Read the diary, add a line, and have it on the disk for good."""
    with io.BufferedRandom(guest.disk("disk0")) as disk:
        starts = 0
        while disk.read(LINE).strip(b"\0"):
            starts += 1
        disk.seek(starts * LINE)
        disk.write(f"start {starts + 1}".encode().ljust(LINE - 1) + b"\n")
    print(f"started {starts + 1} times, on a disk of {disk.raw.size} bytes", flush=True)  # type: ignore[attr-defined]

"""Where a run is written down as it happens: samples line by line, reports at the end.

    DIR/samples.jsonl     one line an interval, at once: a run that is killed keeps it
    DIR/trials.jsonl      one line a step of a search
    DIR/result.json       everything
    DIR/report.md, report.html

A folder without space ends the writing, not the run: what went wrong is told once, and the result is still printed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import msgspec

from vbnet.errors import ExistsError, ResourceError
from vbnet.load.report import html_page, markdown
from vbnet.load.result import Result, Sample, Trial

__all__ = ["ReportFolder", "Store", "as_json"]


class ReportFolder:
    """A folder of lines that are added and files that are replaced whole.

    Args:
        folder: made here; it must not be there, or be empty.
        first: the lines that it begins with.
        goes_on: it is there, and lines are added to those in it. One that was cut short is removed first.

    Attributes:
        problem: why nothing is written any more; None: all was.

    Raises:
        ExistsError: there is something in it. ResourceError: it cannot be made or written into.
    """

    def __init__(self, folder: Path, *, first: str = "samples", goes_on: bool = False) -> None:
        self.folder = folder
        self.problem: ResourceError | None = None
        self._goes_on = goes_on
        self._files: dict[str, BinaryIO] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not goes_on and any(folder.iterdir()):
                raise ExistsError(f"{folder} is not empty; name another folder, or remove it", path=str(folder))
            self._open(first)
        except OSError as error:
            raise _refused(folder, error) from error

    def open(self, name: str) -> None:
        """Begin ``name.jsonl``, so that adding to it later takes no other descriptor."""
        if self.problem is None and name not in self._files:
            try:
                self._open(name)
            except OSError as error:
                self.problem = _refused(self.folder, error)

    def append(self, name: str, record: msgspec.Struct) -> None:
        """Add a line to ``name.jsonl``, at once."""
        if self.problem is not None:
            return
        try:
            file = self._files.get(name) or self._open(name)
            file.write(msgspec.json.encode(record) + b"\n")
            file.flush()
        except OSError as error:
            self.problem = _refused(self.folder, error)

    def replace(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all: one that was cut short would be believed."""
        if self.problem is not None:
            return
        try:
            part = self.folder / f".{name}.part"
            part.write_bytes(content)
            part.replace(self.folder / name)
        except OSError as error:
            self.problem = _refused(self.folder, error)

    def close(self) -> None:
        """Close what is open; what was written stays."""
        for file in self._files.values():
            try:
                file.close()
            except OSError as error:
                self.problem = self.problem or _refused(self.folder, error)
        self._files.clear()

    def _open(self, name: str) -> BinaryIO:
        path = self.folder / f"{name}.jsonl"
        if self._goes_on and path.exists():
            content = path.read_bytes()
            os.truncate(path, content.rfind(b"\n") + 1)
        self._files[name] = file = path.open("ab" if self._goes_on else "wb")
        return file


class Store(ReportFolder):
    """Writes one load run into a new folder."""

    def sample(self, sample: Sample) -> None:
        """Add a sample."""
        self.append("samples", sample)

    def trial(self, trial: Trial) -> None:
        """Add a step of a search."""
        self.append("trials", trial)

    def finish(self, result: Result) -> None:
        """Write the reports."""
        self.replace("result.json", as_json(result))
        self.replace("report.md", markdown(result).encode())
        self.replace("report.html", html_page(result).encode())
        self.close()


def as_json(record: msgspec.Struct) -> bytes:
    """Return JSON that people can read."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2)


def _refused(folder: Path, error: OSError) -> ResourceError:
    said = error.strerror or os.strerror(error.errno or 0)
    return ResourceError(f"cannot write results into {folder}: {said}", errno=error.errno or 0, path=str(folder))

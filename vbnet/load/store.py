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

__all__ = ["Store"]


class Store:
    """Writes one run into a new folder.

    Args:
        folder: made here; it must not be there, or be empty.

    Raises:
        ExistsError: there is something in it. ResourceError: it cannot be made or written into.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problem: ResourceError | None = None
        self._files: dict[str, BinaryIO] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise ExistsError(f"{folder} is not empty; name another folder, or remove it", path=str(folder))
            self._files["samples"] = (folder / "samples.jsonl").open("wb")
        except OSError as error:
            raise _refused(folder, error) from error

    def sample(self, sample: Sample) -> None:
        """Add a sample."""
        self._append("samples", sample)

    def trial(self, trial: Trial) -> None:
        """Add a step of a search."""
        self._append("trials", trial)

    def finish(self, result: Result) -> None:
        """Write the reports."""
        contents = {
            "result.json": msgspec.json.format(msgspec.json.encode(result), indent=2),
            "report.md": markdown(result).encode(),
            "report.html": html_page(result).encode(),
        }
        for name, content in contents.items():
            if self.problem is None:
                try:
                    # Whole or not at all: a report that was cut short would be believed.
                    part = self.folder / f".{name}.part"
                    part.write_bytes(content)
                    part.replace(self.folder / name)
                except OSError as error:
                    self.problem = _refused(self.folder, error)
        self.close()

    def close(self) -> None:
        """Close what is open; what was written stays."""
        for file in self._files.values():
            try:
                file.close()
            except OSError as error:
                self.problem = self.problem or _refused(self.folder, error)
        self._files.clear()

    def _append(self, name: str, record: Sample | Trial) -> None:
        if self.problem is not None:
            return
        try:
            if name not in self._files:
                self._files[name] = (self.folder / f"{name}.jsonl").open("wb")
            self._files[name].write(msgspec.json.encode(record) + b"\n")
            self._files[name].flush()
        except OSError as error:
            self.problem = _refused(self.folder, error)


def _refused(folder: Path, error: OSError) -> ResourceError:
    said = error.strerror or os.strerror(error.errno or 0)
    return ResourceError(f"cannot write results into {folder}: {said}", errno=error.errno or 0, path=str(folder))

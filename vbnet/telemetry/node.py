"""One host node as its run directory shows it, without asking the node: it may be busy, hung, stopped or dead.

What is in the folder is input: a file that is no counters file, or not one yet, is skipped and counted.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from vbnet._native import scan_counters
from vbnet.bus.rundir import HostRecord, RunDir
from vbnet.errors import NotFoundError, ResourceError
from vbnet.sharedmem.snapshot import BlockSnapshot, snapshots

__all__ = ["FILE_ERRORS", "FileFacts", "NodeFacts", "counters_files", "read_facts", "read_files"]

FILE_ERRORS: Final = {
    "unreadable": "it cannot be opened",
    "foreign": "it does not begin like a counters file, or was not finished",
    "version": "its layout has another version",
    "size": "its size is not what it says, or none that a counters file has",
}
"""Why a file is skipped, by the word it is counted under."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is known of a node beside its counters.

    Attributes:
        name: of the node.
        record: what it wrote down about itself when it started; None: nothing readable.
        is_up: its process is there, however it does.
    """

    name: str
    record: HostRecord | None
    is_up: bool


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One counters file: its size and how much of it is used, in bytes, and why it was skipped ("": it was not)."""

    name: str
    bytes: int
    used_bytes: int
    skipped: str = ""


def read_facts(run_dir: RunDir) -> NodeFacts:
    """Look at a node's run directory.

    Raises:
        NotFoundError: no node ever ran there, or it was cleaned.
        ResourceError: it cannot be read.
    """
    try:
        record = msgspec.json.decode(run_dir.host_file.read_bytes(), type=HostRecord)
    except (FileNotFoundError, NotADirectoryError):
        record = None
        if not run_dir.counters.is_dir():
            raise NotFoundError(
                f"no host node ran in {run_dir.path}, or it was cleaned", path=str(run_dir.path)
            ) from None
    except msgspec.MsgspecError:
        record = None
    except OSError as error:
        raise _refused(run_dir.path, error) from error
    return NodeFacts(run_dir.path.name, record, record is not None and record.is_alive())


def counters_files(run_dir: RunDir) -> list[Path]:
    """The counters files of a node, by name; none when it has not made any yet.

    Raises:
        ResourceError: the folder cannot be read.
    """
    try:
        return sorted(path for path in run_dir.counters.iterdir() if path.suffix == ".counters")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _refused(run_dir.counters, error) from error


def read_files(paths: Iterable[Path]) -> tuple[list[BlockSnapshot], list[FileFacts]]:
    """Every block of these files, and what is known of each file."""
    blocks: list[BlockSnapshot] = []
    files = []
    for path in paths:
        found, size, used, skipped = scan_counters(path)
        blocks.extend(snapshots(found))
        files.append(FileFacts(path.name, size, used, skipped))
    return blocks, files


def _refused(path: Path, error: OSError) -> ResourceError:
    return ResourceError(f"cannot read {path}: {error.strerror}", errno=error.errno or errno.EIO)

"""A lab of real processes, driven through the command line like a user's, and gone without a trace at its end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.machine import nsenter, run
from tests.support.vbnet_program import COMMAND
from vbnet import _native
from vbnet.bus.rundir import RunDir
from vbnet.cluster import process, state
from vbnet.cluster.process import Identity
from vbnet.sharedmem import read_blocks


class RealLab:
    """One lab, seen through the command line.

    Args:
        root: the folder of its run directory.
        text: the lab file; its name is ``t``.
        prefix: a command under which everything runs (``Machine.prefix``).
        files: further files beside the lab file, by name.
    """

    def __init__(self, root: Path, text: str, prefix: Sequence[str], files: Mapping[str, str]) -> None:
        self.root = root
        self.prefix = list(prefix)
        self.file = root.parent / f"{root.name}-lab" / "lab.yaml"
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(text, encoding="utf-8")
        for name, content in files.items():
            (self.file.parent / name).write_text(content, encoding="utf-8")
        self.folder = root / "t"
        self.env = {**os.environ, "VBNET_RUN_DIR": str(root)}

    def vbnet(self, *arguments: str, code: int = 0) -> str:
        """Run ``vbnet``, expect its exit code, and return what it printed."""
        return run([*self.prefix, *COMMAND, *arguments], code, env=self.env)

    def rows(self, *arguments: str) -> Any:
        """Run ``vbnet`` and return the JSON it prints."""
        return json.loads(self.vbnet(*arguments, "--format", "json"))

    def inside(self, guest: str, *command: str, code: int = 0) -> str:
        """Run a program in a guest's namespace, as ``vbnet exec`` does for a user."""
        return self.vbnet("exec", guest, "--", *command, code=code)

    def within(self, guest: str, *command: str) -> str:
        """Run a program in a guest's namespace without the command line, which takes a third of a second to load."""
        lab = self.state()
        identity = lab.processes[lab.guests[guest].process].identity
        assert identity is not None
        return run([*nsenter(identity.pid), *command])

    def start(self, *arguments: str, **how: Any) -> subprocess.Popen[str]:
        """Start ``vbnet`` with its output on a pipe."""
        command = [*self.prefix, *COMMAND, *arguments]
        return subprocess.Popen(command, env=self.env, **{"stdout": subprocess.PIPE, "text": True, **how})

    def start_inside(self, guest: str, *command: str, **how: Any) -> subprocess.Popen[str]:
        """Start a program in a guest's namespace."""
        return self.start("exec", guest, "--", *command, **how)

    def state(self) -> state.LabState:
        """What the lab wrote about itself."""
        return state.read_state(self.folder)

    def everybody(self) -> list[Identity]:
        """Every process of the lab, by record and by mark."""
        lab = self.state()
        return list(dict.fromkeys([*lab.identities(), *process.marked_processes(lab.instance)]))

    def logs(self, prefix: str) -> list[str]:
        """What the processes whose names begin with ``prefix`` printed so far."""
        files = sorted(RunDir(self.folder).logs.glob(f"{prefix}*.log"))
        return [file.read_text(encoding="utf-8") for file in files]

    def counted(self, word: str) -> dict[str, int]:
        """Everything the host node's ports counted so far under names that contain ``word``, by port and name."""
        blocks = read_blocks(RunDir(self.folder).counters / "host.counters")
        return {
            f"{block.labels['device']} {name}": value
            for block in blocks
            if block.kind == "port"
            for name, value in zip(_native.PORT_COUNTERS, block.values, strict=True)
            if word in name and value
        }


@contextmanager
def lab_files(text: str, prefix: Sequence[str] = (), files: Mapping[str, str] | None = None) -> Iterator[RealLab]:
    """Write a lab file, with a run directory for it whose path is short enough for sockets, and start nothing."""
    root = Path(tempfile.mkdtemp(prefix="vb-"))
    lab = RealLab(root, text, prefix, files or {})
    try:
        yield lab
    finally:
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(lab.file.parent, ignore_errors=True)


@contextmanager
def real_lab(text: str, prefix: Sequence[str] = (), *, files: Mapping[str, str] | None = None) -> Iterator[RealLab]:
    """Bring a lab up in the background; at the end it is down, and its run directory empty."""
    with lab_files(text, prefix, files) as lab:
        lab.vbnet("up", str(lab.file), "-d")
        try:
            yield lab
        finally:
            ended = lab.rows("down", "--all")
        assert [{"lab": "t", "result": "stopped"}] == ended
        assert [] == list(lab.root.iterdir())

"""One moment of a host node: every word that it counts, how it is, and its distinct errors.

Read from counters files, ``host.json``, ``errors.log`` and ``/proc``. Whatever is in those files is input: a damaged
one is left out and named. The places of blocks (``Layout``) are told apart from their words, because they hardly ever
change: looks with the same blocks share one layout.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Final

from vbnet._native import scan_counters
from vbnet.bus.errorlog import DistinctError, read_errors
from vbnet.bus.rundir import RunDir
from vbnet.errors import VbnetError
from vbnet.hostnode.metrics import HOST
from vbnet.sharedmem.snapshot import parse_labels
from vbnet.telemetry.node import FILE_ERRORS, NodeFacts, counters_files, read_facts

__all__ = ["Block", "Condition", "Key", "Layout", "Look", "State", "Watcher", "condition", "printable"]

Key = tuple[str, str, int]
"""Kind, labels as they are written, and which one of several that have both in common."""
_Shape = tuple[tuple[str, str, int, int], ...]

_BEATS_MISSED: Final = 3
_HEARTBEAT: Final = HOST.index("node_heartbeat_timestamp_seconds")
_INTERVAL: Final = HOST.index("node_heartbeat_interval_seconds")


@dataclass(frozen=True, slots=True)
class Block:
    """One owner's words.

    Attributes:
        key: the same in every look, as long as its owner has its name.
        kind: names its declaration. labels: whose it is.
        generation: another one means that somebody else counts here, from 0.
        place: among the blocks. start: of its words among all words of the look. words: how many there are.
    """

    key: Key
    kind: str
    labels: Mapping[str, str]
    generation: int
    place: int
    start: int
    words: int


class Layout:
    """Where the words of each block are.

    Attributes:
        blocks: in the order of the files. index: the same by key. of_kind: the same by kind.
    """

    def __init__(self, shape: _Shape = ()) -> None:
        self.shape = shape
        self.blocks: list[Block] = []
        self.index: dict[Key, Block] = {}
        self.of_kind: dict[str, list[Block]] = {}
        twins: Counter[tuple[str, str]] = Counter()
        start = 0
        for kind, text, generation, words in shape:
            key = (kind, text, twins[kind, text])
            twins[kind, text] += 1
            block = Block(key, kind, _labels(text), generation, len(self.blocks), start, words)
            start += words
            self.blocks.append(block)
            self.index[key] = block
            self.of_kind.setdefault(kind, []).append(block)


@dataclass(frozen=True, slots=True)
class Look:
    """One moment.

    Attributes:
        wall_s: when, seconds since 1970. taken_ns: when, on a clock that never goes backwards.
        facts: of the node.
        is_paused: its process is stopped, as SIGSTOP and debuggers do.
        layout: where each block's words are. words: all of them, 64 bits each.
        errors: the distinct errors, the latest first.
        problems: files that could not be read, each with the reason.
    """

    wall_s: float
    taken_ns: int
    facts: NodeFacts
    is_paused: bool
    layout: Layout
    words: array[int]
    errors: tuple[DistinctError, ...] = ()
    problems: tuple[str, ...] = ()


class Watcher:
    """Looks at one node.

    Args:
        run_dir: of the node.
        now_ns: a clock that never goes backwards. now_s: seconds since 1970.
    """

    def __init__(
        self,
        run_dir: RunDir,
        now_ns: Callable[[], int] = time.monotonic_ns,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.run_dir = run_dir
        self._now_ns, self._now_s = now_ns, now_s
        self._layout = Layout()

    def look(self) -> Look:
        """Look now.

        Raises:
            NotFoundError: no node ran there, or it was cleaned. ResourceError: its folder cannot be read.
        """
        facts = read_facts(self.run_dir)
        shape: list[tuple[str, str, int, int]] = []
        words = array("Q")
        problems = []
        wall_s, taken_ns = self._now_s(), self._now_ns()
        for path in counters_files(self.run_dir):
            found, _, _, skipped = scan_counters(path)
            if skipped:
                problems.append(f"{path.name}: {FILE_ERRORS.get(skipped, skipped)}")
            for kind, labels, generation, values in found:
                shape.append((kind, labels, generation, len(values)))
                words.extend(values)
        if (now := tuple(shape)) != self._layout.shape:
            self._layout = Layout(now)
        is_paused = facts.is_up and facts.record is not None and _is_stopped(facts.record.pid)
        errors = self._errors(problems)
        return Look(wall_s, taken_ns, facts, is_paused, self._layout, words, errors, tuple(problems))

    def _errors(self, problems: list[str]) -> tuple[DistinctError, ...]:
        if not self.run_dir.errors_file.exists():
            return ()
        try:
            return tuple(read_errors(self.run_dir).errors)
        except VbnetError as error:
            problems.append(str(error))
            return ()


class State(StrEnum):
    """How a node is."""

    up = "up"
    hangs = "hangs"
    paused = "stopped"
    dead = "dead"
    ended = "ended"


@dataclass(frozen=True, slots=True)
class Condition:
    """How a node is, in a word and in a sentence for a person."""

    state: State
    text: str


def condition(look: Look) -> Condition:
    """How the node was at that moment, by its process and its heartbeat."""
    record = look.facts.record
    if record is None:
        return Condition(State.ended, "the host node has ended; its counters remain")
    if not look.facts.is_up:
        return Condition(State.dead, f"the host node's process {record.pid} is gone; its counters remain")
    if look.is_paused:
        return Condition(State.paused, f"process {record.pid} is stopped by a signal; SIGCONT lets it go on")
    age_s, interval_s = _heartbeat(look)
    if age_s is not None and age_s > _BEATS_MISSED * interval_s:
        return Condition(State.hangs, f"process {record.pid} hangs: no heartbeat for {age_s:.0f} s")
    return Condition(State.up, f"process {record.pid}")


def _heartbeat(look: Look) -> tuple[float | None, float]:
    for block in look.layout.of_kind.get(HOST.kind, ()):
        if block.words >= HOST.words and look.words[block.start + _HEARTBEAT]:
            age_s = look.wall_s - look.words[block.start + _HEARTBEAT] / 1000
            return age_s, look.words[block.start + _INTERVAL] / 1000
    return None, 0.0


def _is_stopped(pid: int) -> bool:
    try:
        after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    return after_name[0] in {b"T", b"t"}


def printable(text: str) -> str:
    """A text from outside for a terminal: what would move its cursor is shown as ``?``."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


@lru_cache(maxsize=1 << 16)
def _labels(text: str) -> Mapping[str, str]:
    return {name: printable(value) for name, value in parse_labels(text).items()}

"""The file of a bake-off: which models, workloads and mechanisms, how often and how long.

.. code-block:: yaml

    models: [venet, virtio-net, e1000]
    workloads: [flood, requests]
    without: [mitigation, batching]
    repeats: 5
    for: 1s

Every key may be left out. :func:`load_contest` answers either a contest that makes sense as a whole, or one error that
lists every problem as ``file:line: what, value; what to do``. Nothing is started here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from vbnet.cluster.parts import PartReader
from vbnet.cluster.quantity import duration_s
from vbnet.cluster.source import Source, TopologyError, load_source, parse_source
from vbnet.errors import did_you_mean
from vbnet.load.bakeoff.subjects import BASE, MECHANISMS, models
from vbnet.load.bakeoff.workloads import WORKLOADS

__all__ = ["ELSEWHERE", "QUICK", "Contest", "load_contest", "parse_contest"]

ELSEWHERE: Final[Mapping[str, str]] = {
    "switch": "DPDK's vhost loop, and frames through this switch",
    "vhost": "DPDK's vhost between two of its applications, and this switch between them",
    "ring": "DPDK's memif and bare rings, and this ring",
    "rtt": "a bare ring's ping-pong, and a frame there and back through this switch",
    "rtt.asleep": "two eventfds' ping-pong, and a frame there and back while guests and host sleep in between",
    "python": "pyzmq, iceoryx2 and Unix sockets, and Python objects through this switch",
    "netns.tcp": "the kernel's bridge between veth pairs, and TCP through this switch",
}
"""Benches that hold vbnet against what others offer, of which a bake-off may have some beside it."""

QUICK: Final[Mapping[str, object]] = {"repeats": 3, "for": "300ms", "idle-devices": 32, "elsewhere": []}
"""What ``--quick`` sets."""

_SECONDS_MIN, _SECONDS_MAX = 0.05, 60.0


class Contest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """A checked file."""

    models: Annotated[list[str], Meta(min_length=1)] = msgspec.field(default_factory=models)
    workloads: Annotated[list[str], Meta(min_length=1)] = msgspec.field(default_factory=lambda: list(WORKLOADS))
    without: list[str] = msgspec.field(default_factory=lambda: list(MECHANISMS))
    elsewhere: list[str] = msgspec.field(default_factory=lambda: list(ELSEWHERE))
    repeats: Annotated[int, Meta(ge=1, le=1000)] = 5
    for_: Annotated[str | int | float, Meta(description="Of one measurement, such as 1s.")] = msgspec.field(
        default="1s", name="for"
    )
    idle_devices: Annotated[int, Meta(ge=1, le=1000, description="Cards of each model that do nothing.")] = 64
    trap_cost: Annotated[
        str | int | float | None, Meta(description="What each trap costs on top, such as 2us: a modelled exit of a VM.")
    ] = None
    seed: Annotated[int, Meta(ge=0, description="What the order of measurements follows from.")] = 1

    @property
    def seconds(self) -> float:
        """Of one measurement."""
        return duration_s(self.for_)


def load_contest(
    path: Path | None, environment: Mapping[str, str] | None = None, over: Mapping[str, object] | None = None
) -> Contest:
    """Read and check a file; None: everything as it is usually.

    Args:
        path: the file.
        environment: where ``${NAME}`` is looked up; the process environment by default.
        over: keys to set instead of what the file says; None leaves one as it is.

    Raises:
        TopologyError: every problem of the file, with lines (its author's mistake).
    """
    source = parse_source("{}", "bakeoff") if path is None else load_source(path, environment)
    return _checked(source, over or {})


def parse_contest(text: str, over: Mapping[str, object] | None = None) -> Contest:
    """Like :func:`load_contest`, for text already in memory."""
    return _checked(parse_source(text, "bakeoff.yaml"), over or {})


def _checked(source: Source, over: Mapping[str, object]) -> Contest:
    source.data.update({key: value for key, value in over.items() if value is not None})
    data = {key: value for key, value in source.data.items() if not key.startswith("x-")}
    reader = PartReader(source)
    contest: Contest | None = None
    if reader.keys((), data, Contest):
        contest = reader.convert((), data, Contest)
    if contest is not None:
        _names(reader, "models", contest.models, models())
        _names(reader, "workloads", contest.workloads, WORKLOADS)
        _names(reader, "without", contest.without, MECHANISMS)
        _names(reader, "elsewhere", contest.elsewhere, ELSEWHERE)
        if BASE not in contest.models:
            reader.add(("models",), f"`{BASE}` is missing in models", "add it: the others are held against it")
        seconds = reader.amount(("for",), contest.for_, duration_s)
        if seconds is not None and not _SECONDS_MIN <= seconds <= _SECONDS_MAX:
            reader.add(
                ("for",), f"`for` is {contest.for_}", f"give {_SECONDS_MIN:g} to {_SECONDS_MAX:g} s; repeats are free"
            )
        if contest.trap_cost is not None:
            reader.amount(("trap-cost",), contest.trap_cost, duration_s)
    if contest is None or reader.found:
        raise TopologyError(source.file, reader.found)
    return contest


def _names(reader: PartReader, key: str, names: list[str], known: Collection[str]) -> None:
    for index, name in enumerate(names):
        if name not in known:
            fix = did_you_mean(name, known, otherwise=f"known: {', '.join(known)}")
            reader.add((key, index), f"`{name}` is none of the {key}", fix)
        elif name in names[:index]:
            reader.add((key, index), f"`{name}` is there twice", "remove one")


def settings(contest: Contest) -> dict[str, Any]:
    """Return every key, as a report tells it."""
    said: dict[str, Any] = msgspec.to_builtins(contest)
    return said

"""`vbnet trace`: the way of single frames through the switch, stage by stage, with time stamps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import typer

from vbnet.bus.capture import CaptureLink
from vbnet.cli import output, watching
from vbnet.cli.connection import NodeOption, connect
from vbnet.cli.output import Format, FormatOption
from vbnet.cli.watching import FilterArgument, ForOption, Port, PortArgument, Waiting, Wake
from vbnet.cluster.quantity import duration_s
from vbnet.errors import PeerGone, UsageError
from vbnet.net.summary import summarise

_BATCH: Final = 256
_STRAGGLERS_S: Final = 1.0
"""How long the last stages of frames that were all begun are waited for."""
_ENDS: Final = {"rung", "spared", "sent", "dropped"}
_WORDS: Final = {
    "taken": "taken from {port}",
    "claimed": "buffer of {at} claimed",
    "copied": "copied into it",
    "published": "given to {at}",
    "rung": "doorbell of {at} rung",
    "spared": "doorbell of {at} spared: it is awake",
    "sent": "given to the kernel at {at}",
    "dropped": "dropped at {at}: {reason}",
}

app = output.application(
    "Follow the frames that come out of a guest on their way through the switch: taken, looked up, copied, published, "
    "and whether a doorbell was rung; or where and why dropped. Stamps are taken for followed frames only.",
    [
        ("vbnet trace web", "the next frame of guest web"),
        ("vbnet trace web.eth0 --count 5 'icmp'", "five that a filter wants"),
        ("vbnet trace web --format json", "for a program"),
    ],
)


@dataclass(slots=True)
class _Frame:
    """A frame that is followed, with its stages so far: moment in ns, stage, port or ports, drop reason."""

    port: Port
    time_ns: int
    length_bytes: int
    summary: str
    stages: list[tuple[int, str, int, str | None]] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every copy of it has come to its end."""
        ports = next((detail for _, stage, detail, _ in self.stages if stage == "decided"), 1)
        return sum(stage in _ENDS for _, stage, _, _ in self.stages) >= max(1, ports)


@app.command()
def trace(
    names: PortArgument,
    expression: FilterArgument = "",
    *,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Frames to follow, at each port.")] = 1,
    lasting: ForOption = None,
    node: NodeOption = None,
    how: FormatOption = Format.table,
) -> None:
    """Follow frames through the switch."""
    program = b""
    if expression.strip():
        from vbnet.net.pcap import compile_filter  # noqa: PLC0415 -- loads ctypes and libpcap

        program = compile_filter(expression)
    try:
        seconds = None if lasting is None else duration_s(lasting)
    except ValueError as error:
        raise UsageError(f"--for {lasting}: {error}") from error
    host = watching.local_host(node)
    with connect(node) as operator:
        ports = watching.find_ports(operator, names)
        known = {int(port["id"]): str(port["name"]) for port in operator.port_list()}
    from vbnet._native import CaptureRings  # noqa: PLC0415 -- native code only where it is used

    with CaptureLink(host) as link, watching.stopping() as stop:
        ends = [link.capture(port.name, program, trace_frames=count) for port in ports]
        rings = [CaptureRings([(one.ring_fd, one.bell_fd)]) for one in ends]
        waiting = Waiting(link, [one.bell_fd for one in ends], stop, seconds)
        output.note(f"following {count} frames of {', '.join(port.name for port in ports)}; Ctrl-C ends it")
        log = _Log([_Feed(port, ring) for port, ring in zip(ports, rings, strict=True)], known, how)
        why = _run(log, waiting, count * len(ports))
        if why is Wake.HOST_GONE:
            raise PeerGone("the host node ended")


@dataclass(slots=True)
class _Feed:
    """The trace of one port: its ring, and its frames by number."""

    port: Port
    rings: Any
    frames: list[_Frame] = field(default_factory=list)


@dataclass(slots=True)
class _Log:
    """All traces: prints each frame once it has come to its end."""

    feeds: list[_Feed]
    known: Mapping[int, str]
    how: Format
    printed: int = 0
    _done: set[int] = field(default_factory=set)

    @property
    def begun(self) -> int:
        """Frames that are followed, or were."""
        return sum(len(feed.frames) for feed in self.feeds)

    def read(self) -> bool:
        """Take what came in; says whether anything did."""
        has_news = False
        for feed in self.feeds:
            frames, stamps = feed.rings.take(_BATCH)
            has_news |= bool(frames or stamps)
            for _ring, time_ns, _way, _reason, length, kept in frames:
                feed.frames.append(_Frame(feed.port, time_ns, length, summarise(kept, length)))
            for _ring, moment_ns, number, stage, detail, reason in stamps:
                if number < len(feed.frames):
                    feed.frames[number].stages.append((moment_ns, stage, detail, reason))
        self.print(only_complete=True)
        return has_news

    def print(self, *, only_complete: bool) -> None:
        """Print frames that were not yet."""
        for feed in self.feeds:
            for frame in feed.frames:
                if id(frame) not in self._done and (frame.is_complete or not only_complete):
                    self._done.add(id(frame))
                    self.printed += 1
                    self._print(frame)

    def arm(self) -> bool:
        """Ask for all doorbells; False: there is something already."""
        # Each of them, whatever the first one says.
        return sum(not feed.rings.arm() for feed in self.feeds) == 0

    def _print(self, frame: _Frame) -> None:
        stages = sorted(frame.stages, key=lambda stage: stage[0])
        start_ns = stages[0][0] if stages else 0
        rows = [
            {
                "ns": moment_ns - start_ns,
                "stage": stage,
                "port": None if stage in {"taken", "decided"} else self.known.get(detail, str(detail)),
                "ports": detail if stage == "decided" else None,
                "reason": reason,
            }
            for moment_ns, stage, detail, reason in stages
        ]
        if self.how is Format.json:
            output.print_json_line(
                {
                    "port": frame.port.name,
                    "time_ns": frame.time_ns,
                    "length_bytes": frame.length_bytes,
                    "summary": frame.summary,
                    "is_complete": frame.is_complete,
                    "stages": rows,
                }
            )
            return
        output.say(f"{frame.port.name}: {frame.summary}")
        for row in rows:
            output.say(f"{row['ns']:>12,} ns  {_sentence(row, frame.port.name)}")
        if not frame.is_complete:
            output.say("              …  nothing more was seen of it")


def _sentence(row: Mapping[str, Any], port: str) -> str:
    if row["stage"] == "decided":
        ports: int = row["ports"]
        return "looked up: " + {0: "no port", 1: "one port"}.get(ports, f"{ports} ports, as nobody knows its receiver")
    return _WORDS.get(str(row["stage"]), "{at}").format(port=port, at=row["port"], reason=row["reason"])


def _run(log: _Log, waiting: Waiting, wanted: int) -> Wake | None:
    """Print frames until all are, or it is over."""
    patience: float | None = None
    why: Wake | None = None
    while why in {None, Wake.NEWS} and log.printed < wanted:
        if log.read():
            why = waiting.over()
        elif log.begun >= wanted:
            patience = patience or time.monotonic() + _STRAGGLERS_S
            if time.monotonic() >= patience:
                break
            why = waiting.wait(log.arm, at_most_s=_STRAGGLERS_S / 10)
        else:
            why = waiting.wait(log.arm)
    log.read()
    log.print(only_complete=False)
    return why

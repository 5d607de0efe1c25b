"""`vbnet capture`: what passes ports, into a file, a pipe, or one line a frame.

The host's worker copies frames into a ring in shared memory and never waits for this process: what does not fit is lost
to the capture, counted, and said at the end. Guests and their frames do not notice.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vbnet.bus.capture import DEFAULT_RING_BYTES, SNAP_BYTES, CaptureLink
from vbnet.cli import output, watching
from vbnet.cli.connection import NodeOption, connect
from vbnet.cli.output import Format, FormatOption
from vbnet.cli.watching import FilterArgument, ForOption, Port, PortArgument, Stop, Waiting, Wake
from vbnet.cluster.quantity import duration_s, length_bytes
from vbnet.errors import PeerGone, ResourceError, UsageError

if TYPE_CHECKING:
    from vbnet._native import CaptureRings
    from vbnet.telemetry.capturefile import BlockSink

_BATCH: Final = 4096
_DRAIN_S: Final = 2.0

app = output.application(
    "Show or keep what passes ports: frames with their direction, and the reason of those that were dropped. A slow "
    "reader or a full disk never slows a port; what the capture lost is counted. Ctrl-C ends it in order, with 0. A "
    "file that is there: 5, a full disk: 4, a reader or host node that ended: 7; what was kept until then is whole.",
    [
        ("vbnet capture web", "one line a frame, all ports of guest web"),
        ("vbnet capture web.eth0 -w web.pcapng", "into a file for Wireshark"),
        ("vbnet capture web,db -w - | tshark -r -", "live into another program"),
        ("vbnet capture web 'tcp port 80' --count 20", "so many frames that a filter wants"),
        ("vbnet capture web -w w.pcapng --rotate 100MB --files 5", "the last 500 MB"),
    ],
)


@app.command()
def capture(
    names: PortArgument,
    expression: FilterArgument = "",
    *,
    write: Annotated[
        str | None,
        typer.Option(
            "--write", "-w", metavar="FILE", help="Write pcapng here; - is standard output.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many frames.", show_default=False)] = None,
    lasting: ForOption = None,
    snaplen: Annotated[int, typer.Option(min=1, max=SNAP_BYTES, help="Keep so many bytes of each frame.")] = SNAP_BYTES,
    rotate: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Begin another FILE at 100MB, 64KiB.", show_default=False),
    ] = None,
    files: Annotated[
        int | None, typer.Option(min=1, help="With --rotate: keep the last so many.", show_default=False)
    ] = None,
    ring: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory between a port and this command: 256KiB to 32MiB.")
    ] = f"{DEFAULT_RING_BYTES >> 20}MiB",
    node: NodeOption = None,
    how: FormatOption = Format.table,
) -> None:
    """Show or keep what passes ports."""
    _check_use(write, rotate, files, force=force)
    seconds = None if lasting is None else _quantity("--for", lasting, duration_s)
    ring_bytes = _ring_bytes(ring)
    rotate_bytes = 0 if rotate is None else _quantity("--rotate", rotate, length_bytes)
    program = _compiled(expression)
    host = watching.local_host(node)
    with connect(node) as operator:
        ports = watching.find_ports(operator, names)
    from vbnet._native import CaptureRings, pcapng_head  # noqa: PLC0415 -- native code only where it is used

    with CaptureLink(host) as link, watching.stopping() as stop:
        ends = [link.capture(port.name, program, snap_bytes=snaplen, ring_bytes=ring_bytes) for port in ports]
        rings = CaptureRings([(one.ring_fd, one.bell_fd) for one in ends])
        waiting = Waiting(link, [one.bell_fd for one in ends], stop, seconds)
        session = _Session(link, rings, waiting, count)
        if write is None:
            _follow(session, ports, "", lambda most: _show(rings, most, ports, how))
            return
        head = pcapng_head("vbnet", snaplen, expression, [(port.name, port.description) for port in ports])
        if write == "-":
            waiting.watch_reader(sys.stdout.fileno())
            opened = _pipe(head, rings, stop)
        else:
            opened = _file(Path(write), head, rings, (rotate_bytes, files or 0), is_forced=force)
        with opened as sink:
            _follow(session, ports, "" if write == "-" else f" into {write}", lambda most: _keep(rings, most, sink))
        if write != "-" and how is Format.json:
            output.print_json(_summary(session, ports, sink.names()))


@dataclass(slots=True)
class _Session:
    """One run of the command: what it takes frames from, when it ends, and how far it is."""

    link: CaptureLink
    rings: CaptureRings
    waiting: Waiting
    most_frames: int | None
    frames: int = 0
    is_refused: bool = False
    why: Wake | None = None

    def run(self, take: Callable[[int], int]) -> None:
        """Take frames until it is over, then what was captured before that; ``take`` takes so many at most."""
        while self.why in {None, Wake.NEWS}:
            if self._left() == 0:
                self.why = Wake.ENOUGH
            else:
                self.why = self.waiting.over() if self._take(take) else self.waiting.wait(self.rings.arm)
        self.link.hang_up()
        patience = time.monotonic() + _DRAIN_S
        while self.why is not Wake.READER_GONE and self._left() and time.monotonic() < patience and self._take(take):
            pass

    def _left(self) -> int:
        return _BATCH if self.most_frames is None else min(_BATCH, self.most_frames - self.frames)

    def _take(self, take: Callable[[int], int]) -> int:
        try:
            got = take(self._left())
        except ResourceError as error:
            self.is_refused = True
            kept = error.fields.get("blocks")
            self.frames += kept if isinstance(kept, int) else 0
            raise
        self.frames += got
        return got


def _follow(session: _Session, ports: Sequence[Port], where: str, take: Callable[[int], int]) -> None:
    """Capture, and say before and after what.

    Raises:
        PeerGone: the host node or the reader ended. ResourceError: the disk refused.
    """
    output.note(f"capturing {', '.join(port.name for port in ports)}{where}; Ctrl-C ends it")
    try:
        session.run(take)
    finally:
        output.note(_ended(session, ports))
    if session.why is Wake.HOST_GONE:
        raise PeerGone("the host node ended; what was captured until then is whole")
    if session.why is Wake.READER_GONE:
        raise PeerGone("whoever read the capture has ended; what it got until then is whole")


@contextlib.contextmanager
def _pipe(head: bytes, rings: CaptureRings, stop: Stop) -> Iterator[BlockSink]:
    from vbnet.telemetry.capturefile import BlockPipe  # noqa: PLC0415 -- as above

    sink = BlockPipe(sys.stdout.fileno(), head, lambda: _statistics(rings), stop.fd)
    try:
        yield sink
    finally:
        sink.finish()


@contextlib.contextmanager
def _file(
    path: Path, head: bytes, rings: CaptureRings, rotation: tuple[int, int], *, is_forced: bool
) -> Iterator[BlockSink]:
    from vbnet.telemetry.capturefile import BlockFile  # noqa: PLC0415 -- as above

    rotate_bytes, keep_files = rotation
    sink = BlockFile(
        path, head, lambda: _statistics(rings), rotate_bytes=rotate_bytes, keep_files=keep_files, is_forced=is_forced
    )
    try:
        yield sink
    finally:
        sink.finish()


def _keep(rings: CaptureRings, most: int, sink: BlockSink) -> int:
    blocks, frames = rings.blocks(most)
    if frames:
        sink.write(blocks)
    return frames


def _show(rings: CaptureRings, most: int, ports: Sequence[Port], how: Format) -> int:
    from vbnet.net.summary import summarise  # noqa: PLC0415 -- only without --write

    frames, _ = rings.take(min(most, 64))
    for ring, time_ns, way, reason, length, kept in frames:
        port = ports[ring].name
        if how is Format.json:
            output.print_json_line(
                {
                    "time_ns": time_ns,
                    "port": port,
                    "direction": way,
                    "dropped": reason,
                    "length_bytes": length,
                    "summary": summarise(kept, length),
                    "frame": kept.hex(),
                }
            )
            continue
        moment = f"{datetime.fromtimestamp(time_ns // 10**9).astimezone():%H:%M:%S}.{time_ns % 10**9:09}"
        fate = "" if reason is None else f"  [dropped: {reason}]"
        output.say(f"{moment} {port} {'In ' if way == 'receive' else 'Out'} {summarise(kept, length)}{fate}")
    return len(frames)


def _statistics(rings: CaptureRings) -> bytes:
    from vbnet._native import pcapng_statistics  # noqa: PLC0415 -- as above

    now_ns = time.time_ns()
    return b"".join(
        pcapng_statistics(ring, now_ns, captured + filtered + dropped, dropped, captured + dropped)
        for ring, (captured, filtered, dropped, _) in enumerate(rings.counts())
    )


def _check_use(write: str | None, rotate: str | None, files: int | None, *, force: bool) -> None:
    if write == "-" and sys.stdout.isatty():
        raise UsageError(
            "a capture is no text, and standard output is a terminal; pipe it (`-w - | tshark -r -`), name a file, "
            "or leave -w out to read along"
        )
    if (rotate is not None or force) and write in {None, "-"}:
        raise UsageError("--rotate and --force belong to a file; name one with -w")
    if files is not None and rotate is None:
        raise UsageError("--files says how many files --rotate keeps; say --rotate too")


def _quantity(option: str, text: str, read: Callable[[str], Any]) -> Any:  # noqa: ANN401 - what `read` gives
    try:
        return read(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}") from error


def _ring_bytes(text: str) -> int:
    wanted: int = _quantity("--ring", text, length_bytes)
    return 1 << max(0, wanted - 1).bit_length()


def _compiled(expression: str) -> bytes:
    if not expression.strip():
        return b""
    from vbnet.net.pcap import compile_filter  # noqa: PLC0415 -- loads ctypes and libpcap

    return compile_filter(expression)


def _summary(session: _Session, ports: Sequence[Port], files: list[str]) -> dict[str, Any]:
    return {
        "frames": session.frames,
        "ports": [
            {"port": port.name, "captured": captured, "filtered": filtered, "lost": dropped, "is_away": is_away}
            for port, (captured, filtered, dropped, is_away) in zip(ports, session.rings.counts(), strict=True)
        ],
        "files": files,
    }


def _ended(session: _Session, ports: Sequence[Port]) -> str:
    counts = session.rings.counts()
    captured, filtered, dropped = (sum(count[at] for count in counts) for at in (0, 1, 2))
    unwritten = f", {captured - session.frames} more not written" if session.is_refused else ""
    away = [port.name for port, count in zip(ports, counts, strict=True) if count[3]]
    gone = f"; not there any more: {', '.join(away)}" if away else ""
    return (
        f"{session.frames} frames captured, {filtered} not wanted by the filter, "
        f"{dropped} lost because the capture was full{unwritten}{gone}"
    )

"""`vbnet events`: what happens on a host node, as it happens, and the last that has happened."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from vbnet.bus.rundir import RunDir
from vbnet.bus.topics import TOPICS, Severity
from vbnet.cli import output
from vbnet.cli.connection import KeysOption, NodeOption, ServerKeyOption, connect, connect_async, kept
from vbnet.cli.output import Format, FormatOption
from vbnet.errors import UsageError

if TYPE_CHECKING:
    from vbnet.bus.operator import EventStream

app = output.application(
    "Follow what happens on a host node, until Ctrl-C or the node's end; or show what has happened.\n\nThe last events "
    "are kept in the run directory, so --last and --since also work on a node that hangs or was killed. With --format "
    "json, each event is one JSON object on one line.",
    [
        ("vbnet events", "all of them, as they come"),
        ("vbnet events --topic guest. --topic port.fault", "only some topics, by prefix"),
        ("vbnet events --last 20", "the last twenty, then end"),
        ("vbnet events --since 10m --severity warning", "what went wrong in the last ten minutes"),
        ("vbnet events --last 5 --follow", "the last five, then go on"),
        ("vbnet events --topics", "what topics there are, with their fields"),
    ],
)

Wanted = Callable[[dict[str, Any]], bool]
SUBSCRIBED_S = 0.5
"""How long a subscription may take to reach the host; until then events are looked up in the history."""

_HEAD = ("topic", "seq", "time", "severity")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGO = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])\Z")


def complete_topic(incomplete: str) -> list[str]:
    """Return the topics that begin so."""
    return [topic for topic in TOPICS if topic.startswith(incomplete)]


@app.command()
def events(
    topics: Annotated[list[str] | None, typer.Argument(help="Same as --topic.", autocompletion=complete_topic)] = None,
    *,
    topic: Annotated[
        list[str] | None,
        typer.Option(
            "--topic",
            "-t",
            metavar="PREFIX",
            help="A topic or its beginning, also more than once; all when left out.",
            autocompletion=complete_topic,
            show_default=False,
        ),
    ] = None,
    severity: Annotated[Severity, typer.Option(help="Leave out what is less severe.")] = Severity.INFO,
    last: Annotated[int | None, typer.Option(min=0, help="Begin with the last so many.", show_default=False)] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="Begin with those since then: 30s, 10m, 2h, 1d ago, or a time like 2026-01-31T12:00.",
            show_default=False,
        ),
    ] = None,
    follow: Annotated[
        bool | None,
        typer.Option(
            "--follow/--no-follow", help="Go on with those to come. Default: unless --last or --since is given."
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many events.", show_default=False)] = None,
    list_topics: Annotated[bool, typer.Option("--topics", help="List the topics.")] = False,
    node: NodeOption = None,
    keys: KeysOption = None,
    server_key: ServerKeyOption = None,
    how: FormatOption = Format.table,
) -> None:
    """Follow what happens on a host node, or show what has happened."""
    if list_topics:
        with connect(node, keys, server_key) as operator:
            rows = [{"topic": name, **facts} for name, facts in operator.event_topics()["topics"].items()]
        output.print_rows(rows, ("topic", "severity", "fields", "meaning"), how)
        return
    prefixes = (*(topics or ()), *(topic or ())) or ("",)

    def wanted(event: dict[str, Any]) -> bool:
        return event["topic"].startswith(prefixes) and _severity(event).rank >= severity.rank

    looks_back = last is not None or since is not None
    past = _Past(kept(node), last, since) if looks_back else None
    printer = _Printer(how, count)
    if follow or (follow is None and not looks_back):

        async def go_on() -> None:
            async with await connect_async(node, keys, server_key) as operator:
                await _follow(operator.events(*prefixes), wanted, printer, past)

        asyncio.run(go_on())
    else:
        past = past or _Past(kept(node), last, since)
        printer.print_all(past.chosen(past.read(), wanted))


class _Past(NamedTuple):
    """How far to look back, and where."""

    run_dir: RunDir
    last: int | None
    since: str | None

    def read(self) -> list[dict[str, Any]]:
        from vbnet.bus.history import read_history  # noqa: PLC0415 -- not needed to follow

        found = read_history(self.run_dir)
        if found.damaged:
            output.note(f"{found.damaged} damaged lines in {self.run_dir.events_file} were left out")
        return found.events

    def chosen(self, found: list[dict[str, Any]], wanted: Wanted) -> list[dict[str, Any]]:
        oldest_s = 0.0 if self.since is None else parse_since(self.since, time.time())
        chosen = [event for event in found if event["time"] >= oldest_s and wanted(event)]
        return chosen if self.last is None else chosen[len(chosen) - min(self.last, len(chosen)) :]


class _Printer:
    """Prints events up to a number of them."""

    def __init__(self, how: Format, count: int | None) -> None:
        self._how, self._left = how, count

    @property
    def is_done(self) -> bool:
        return self._left == 0

    def print_all(self, found: Iterable[dict[str, Any]]) -> None:
        for event in found:
            if self.is_done:
                return
            self.print(event)

    def print(self, event: dict[str, Any]) -> None:
        if self._how is Format.json:
            output.print_json_line(event)
        else:
            output.say(_line(event))
        if self._left is not None:
            self._left -= 1


async def _follow(stream: EventStream, wanted: Wanted, printer: _Printer, past: _Past | None) -> None:
    """Show events as they come, after those of the past."""
    shown = 0
    if past is not None:
        found = past.read()
        shown = found[-1]["seq"] if found else 0
        printer.print_all(past.chosen(found, wanted))
        # What happens before the subscription has reached the host comes to the history only.
        with suppress(TimeoutError):
            async with asyncio.timeout(SUBSCRIBED_S):
                await stream.arrived()
        missed = list(_later(past.read(), shown))
        printer.print_all(event for event in missed if wanted(event))
        shown = missed[-1]["seq"] if missed else shown
    while not printer.is_done:
        event = await anext(stream, None)
        if event is None:
            return
        if event["seq"] > shown and wanted(event):
            printer.print(event)


def _later(found: list[dict[str, Any]], seq: int) -> Iterator[dict[str, Any]]:
    """Yield the events of the node that ran last whose numbers are greater."""
    begin = next((index for index in range(len(found) - 1, 0, -1) if found[index]["seq"] < found[index - 1]["seq"]), 0)
    yield from (event for event in found[begin:] if event["seq"] > seq)


def parse_since(text: str, now_s: float) -> float:
    """Return the moment that ``--since`` means, in seconds since 1970.

    Args:
        text: how long ago, like ``10m``; or a date and time, local unless it says otherwise; or seconds since 1970.
        now_s: now, in seconds since 1970.

    Raises:
        UsageError: it is none of these.
    """
    if ago := _AGO.match(text):
        return now_s - float(ago[1]) * _UNITS_S[ago[2]]
    try:
        return float(text) if re.fullmatch(r"[0-9]{9,}(\.[0-9]+)?", text) else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--since {text!r} is no time; write 30s, 10m, 2h, 1d, or a time like 2026-01-31T12:00", got=text
        ) from error


def _severity(event: dict[str, Any]) -> Severity:
    try:
        return Severity(event.get("severity", Severity.INFO))
    except ValueError:
        return Severity.INFO


def _line(event: dict[str, Any]) -> str:
    """An event as one line for people."""
    moment = datetime.fromtimestamp(event["time"], UTC).astimezone().isoformat(timespec="milliseconds")
    fields = " ".join(f"{name}={_value(value)}" for name, value in event.items() if name not in _HEAD)
    return f"{moment}  {_severity(event):<7}  {event['topic']:<16}  {fields}".rstrip()


def _value(value: object) -> str:
    """A value as it stands behind its name: in quotes where a reader could not see its end; never a line break."""
    text = output.cell(value)
    return text if text.isprintable() and " " not in text else repr(text)

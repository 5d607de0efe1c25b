"""`vbnet events`: what happens on a host node, as it happens."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from vbnet.cli import output
from vbnet.cli.connection import KeysOption, NodeOption, ServerKeyOption, connect, connect_async
from vbnet.cli.output import Format, FormatOption

app = output.application(
    "Follow what happens on a host node: one JSON object a line, until Ctrl-C or the node's end.",
    [
        ("vbnet events", "all of them"),
        ("vbnet events guest. port.fault", "only some topics, by prefix"),
        ("vbnet events --topics", "what topics there are"),
    ],
)


@app.command()
def events(
    topics: Annotated[list[str] | None, typer.Argument(help="Topics or their beginnings; all when left out.")] = None,
    list_topics: Annotated[bool, typer.Option("--topics", help="List the topics.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many events.", show_default=False)] = None,
    *,
    node: NodeOption = None,
    keys: KeysOption = None,
    server_key: ServerKeyOption = None,
    how: FormatOption = Format.table,
) -> None:
    """Follow what happens on a host node."""
    if list_topics:
        with connect(node, keys, server_key) as operator:
            rows = [
                {"topic": topic, "meaning": meaning} for topic, meaning in operator.event_topics()["topics"].items()
            ]
        output.print_rows(rows, ("topic", "meaning"), how)
        return
    asyncio.run(_follow(topics or [], count, node, keys, server_key))


async def _follow(
    topics: list[str], count: int | None, node: str | None, keys: Path | None, server_key: str | None
) -> None:
    async with await connect_async(node, keys, server_key) as operator:
        stream = operator.events(*topics)
        seen = 0
        async for event in stream:
            output.print_json_line(event)
            seen += 1
            if seen == count:
                return

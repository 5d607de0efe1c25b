"""docs/cli.md, made from the same text that ``--help`` prints.

    python -m vbnet.cli.reference > docs/cli.md

Nothing in that page is written by hand, so it cannot disagree with the program; a test compares the two.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from vbnet.cli.failure import exit_code_lines
from vbnet.cli.main import PROGRAM
from vbnet.cli.registry import SECTIONS
from vbnet.cli.tree import EXAMPLES, SUMMARY, command

WIDTH = 100
HEAD = f"""# Command line

{SUMMARY} This page is what `vbnet VERB --help` prints, for all verbs; `python -m vbnet.cli.reference` makes it.

Everything that prints has `--format table|json` (or `VBNET_FORMAT`): a table on a terminal, aligned plain text when
piped, one JSON document for programs; streams print one JSON object a line. Colours only on a terminal, never with
`NO_COLOR`.
Completion of verbs, labs, guests and host nodes: `vbnet --install-completion`.

Environment: `VBNET_RUN_DIR` (where run directories are; short, private), `VBNET_LAB`, `VBNET_NODE`, `VBNET_FORMAT`,
`VBNET_KEYS`, `VBNET_SERVER_KEY` (each stands for the option of that name), `VBNET_DEBUG=1` (tracebacks).
"""


def render() -> str:
    """Return the page."""
    lines = [HEAD]
    lines += ["```text", *(f"{example:<42}{meaning}" for example, meaning in EXAMPLES), "```", ""]
    lines += [
        "## Exit codes",
        "",
        "```text",
        *exit_code_lines(),
        "```",
        "",
        "`vbnet exec` and `vbnet signal export` exit with their program's own code.",
        "",
    ]
    root = command()
    root_context = root.make_context(PROGRAM, [], resilient_parsing=True)
    for title, entries in SECTIONS.items():
        lines += [f"## {title}", ""]
        for name in entries:
            lines += _verb(root.get_command(root_context, name), root_context, name, depth=3)
    return "\n".join(lines).rstrip() + "\n"


def _verb(verb: Any, parent: Any, name: str, depth: int) -> Iterator[str]:  # noqa: ANN401 -- typer's vendored click
    context = verb.make_context(
        name, [], parent=parent, resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH
    )
    yield f"{'#' * depth} {context.command_path}"
    yield ""
    yield "```text"
    yield verb.get_help(context)
    yield "```"
    yield ""
    for child in getattr(verb, "commands", {}):
        yield from _verb(verb.get_command(context, child), context, child, depth + 1)


if __name__ == "__main__":
    sys.stdout.write(render())

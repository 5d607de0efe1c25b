"""The tree of commands: a root that knows every verb's name and loads its module when it is used."""

from __future__ import annotations

import importlib
import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vbnet.cli.failure import exit_code_lines
from vbnet.cli.main import PROGRAM, version
from vbnet.cli.registry import ENTRIES, SECTIONS

SUMMARY = "A virtual bus in user space: host node, guest nodes, shared-memory Ethernet."
EXAMPLES = (
    ("vbnet demo", "watch it work"),
    ("vbnet up lab.yaml -d", "bring up a lab in the background"),
    ("vbnet exec ns -- ping -c 3 10.10.0.10", "run a program in a guest's namespace"),
    ("vbnet down", "end it and remove every trace"),
)


class LazyGroup(TyperGroup):
    """The root command. Help comes from the registry, so that listing the verbs imports none of them."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002 -- click's signature, vendored without public types
        """Return every verb, in the order of the registry."""
        return list(ENTRIES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401, ARG002 -- same
        """Load one verb."""
        entry = ENTRIES.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"vbnet.cli.{entry.module}")
        loaded = typer.main.get_command(module.app)
        loaded.name = cmd_name
        # A verb's text stands at its application; Typer shows only the function's for an application of one command.
        loaded.help, loaded.epilog = module.app.info.help, module.app.info.epilog
        return loaded

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 -- same
        """Write the root's help."""
        formatter.write_usage(PROGRAM, "[--debug] VERB ...")
        formatter.write_paragraph()
        formatter.write_text(SUMMARY)
        for title, entries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.help) for name, entry in entries.items()])
        with formatter.section("Options"):
            formatter.write_dl([row for item in self.get_params(ctx) if (row := item.get_help_record(ctx)) is not None])
        with formatter.section("Examples"):
            formatter.write_dl(list(EXAMPLES))
        with formatter.section("Exit codes"):
            for line in exit_code_lines():
                formatter.write(f"  {line}\n")
        formatter.write_paragraph()
        formatter.write_text("`vbnet VERB --help` explains a verb.")


app = typer.Typer(
    name=PROGRAM,
    cls=LazyGroup,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"{PROGRAM} {version()}")
        raise typer.Exit


def _set_debug(is_asked: bool) -> None:
    if is_asked:
        os.environ["VBNET_DEBUG"] = "1"


@app.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", callback=_set_debug, help="Show tracebacks (also: VBNET_DEBUG=1).")
    ] = False,
) -> None:
    """A virtual bus in user space: host node, guest nodes, shared-memory Ethernet."""
    del show_version, debug


def command() -> Any:  # noqa: ANN401 -- typer's vendored click has no public types
    """Return the root command."""
    return typer.main.get_command(app)

"""`vbnet exec`: run a program inside a guest's network namespace."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Final

import typer

from vbnet.cli import output
from vbnet.cli.labs import LabOption, complete_guest, find_guest, living_process
from vbnet.cluster import netns
from vbnet.cluster.process import MARK
from vbnet.errors import UnsupportedError, VbnetError

_NO_PROGRAM: Final = 127
_CANNOT_RUN: Final = 126
"""Exit codes as shells have them: whatever this verb says of programs, it says as one."""


class _StartError(VbnetError):
    """The program did not start.

    Args:
        message: why.
        exit_code: of this verb.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


app = output.application(
    "Run a program inside a guest's network namespace (kind netns).\n\nIts exit code is the program's own, as of a "
    "shell 127 when there is no such program and 126 when it cannot be run. The program sees "
    "the guest's interfaces and addresses, and this machine's files.",
    [
        ("vbnet exec ns -- ping -c 3 10.10.0.10", "ping another guest"),
        ("vbnet exec ns -- curl http://10.10.0.10/", "fetch a stack guest's page"),
        ("vbnet exec ns", "a shell inside"),
    ],
)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def execute(
    guest: Annotated[
        str, typer.Argument(help="Name of a netns guest.", autocompletion=complete_guest, show_default=False)
    ],
    command: Annotated[
        list[str] | None, typer.Argument(help="The program and its arguments; a shell when left out.")
    ] = None,
    lab: LabOption = None,
) -> None:
    """Run a program inside a guest's network namespace."""
    _, state, found = find_guest(lab, guest)
    if found.kind != "netns":
        raise UnsupportedError(
            f"guest `{guest}` is of kind {found.kind}: it has no namespace in which a program could run. "
            "Add a guest of kind netns on the same switch and run the program there",
            guest=guest,
        )
    holder = living_process(state, found)
    program = [word for position, word in enumerate(command or []) if position or word != "--"]
    program = program or [os.environ.get("SHELL", "/bin/sh")]
    os.environ[MARK] = state.instance
    netns.join(holder)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(program[0], program)  # noqa: S606 -- the user's own command
    except FileNotFoundError as error:
        raise _StartError(f"there is no program `{program[0]}` on this machine", _NO_PROGRAM) from error
    except OSError as error:
        raise _StartError(f"cannot run `{program[0]}` ({error.strerror})", _CANNOT_RUN) from error

"""The ``vbnet`` command: finds the verb, runs it, and turns its failure into one message and an exit code.

Only the module of the verb in use is imported. ``vbnet --version`` imports nothing but the standard library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

PROGRAM = "vbnet"


def version() -> str:
    """Return the version of the installed package."""
    from importlib import metadata  # noqa: PLC0415 -- on demand

    try:
        return metadata.version("vbnet")
    except metadata.PackageNotFoundError:
        return "0 (not installed)"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with a documented code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(f"{PROGRAM} {version()}")  # noqa: T201 -- the answer
        sys.exit(0)
    from vbnet.cli import failure  # noqa: PLC0415 -- after the fast answer
    from vbnet.errors import VbnetError  # noqa: PLC0415

    try:
        from vbnet.cli.tree import command  # noqa: PLC0415

        command().main(arguments, prog_name=PROGRAM)
    except VbnetError as error:
        if failure.is_debugging():
            raise
        sys.exit(failure.report(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); whatever Python still wants to flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except Exception as error:
        if failure.is_debugging():
            raise
        print(  # noqa: T201 -- the message of last resort
            f"vbnet: this is a bug: {type(error).__name__}: {error}\nRun it again with --debug and report what it "
            f"prints.",
            file=sys.stderr,
        )
        sys.exit(70)
    sys.exit(0)


if __name__ == "__main__":
    main()

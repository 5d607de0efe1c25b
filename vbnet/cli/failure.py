"""How the command line ends: one exit code a kind of failure, one clear message, no traceback."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from vbnet.errors import (
    BusyError,
    ClosedError,
    DeadlineError,
    ExistsError,
    InternalError,
    NotFoundError,
    NotPermittedError,
    PeerFault,
    PeerGone,
    ResourceError,
    UsageError,
    VbnetError,
)

EXIT_CODES: dict[int, str] = {
    0: "it was done",
    1: "it failed: a guest or lab ended badly, a check found a fault",
    2: "wrong use: arguments, a lab file, something that cannot work here",
    3: "not found: no such lab, guest, bus, device, switch, port or signal",
    4: "this machine or its permissions refused",
    5: "busy, or there already",
    6: "not ready in time",
    7: "the other side is gone, or broke the rules",
    70: "a bug in vbnet; please report it",
    130: "interrupted from the keyboard",
}

_CODES: tuple[tuple[type[VbnetError], int], ...] = (
    (NotFoundError, 3),
    (ExistsError, 5),
    (UsageError, 2),
    (NotPermittedError, 4),
    (ResourceError, 4),
    (BusyError, 5),
    (DeadlineError, 6),
    (PeerGone, 7),
    (PeerFault, 7),
    (ClosedError, 7),
    (InternalError, 70),
    (VbnetError, 1),
)


def exit_code(error: VbnetError) -> int:
    """Return the documented exit code of an error."""
    own = getattr(error, "exit_code", None)
    return own if isinstance(own, int) else next(code for kind, code in _CODES if isinstance(error, kind))


def report(error: VbnetError, stream: TextIO | None = None) -> int:
    """Print an error for a person and return its exit code."""
    stream = stream or sys.stderr
    message = str(error)
    # A lab file's problems start with file:line, which terminals and editors open; a prefix would break that.
    is_located = bool(getattr(error, "problems", None))
    print(message if is_located else f"vbnet: {message}", file=stream)
    return exit_code(error)


def is_debugging() -> bool:
    """Say whether tracebacks were asked for (``--debug`` or ``VBNET_DEBUG=1``)."""
    return os.environ.get("VBNET_DEBUG", "") not in {"", "0"}


def exit_code_lines() -> list[str]:
    """Return the exit codes as lines for help and documentation."""
    return [f"{code:>3}  {meaning}" for code, meaning in EXIT_CODES.items()]

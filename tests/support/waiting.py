"""Waiting for what cannot tell by itself that it happened: look again and again, until a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["PATIENCE", "eventually"]

PATIENCE = 15.0
"""Seconds after which something that should have happened counts as hanging; generous, as machines are shared."""

T = TypeVar("T")
_pause = threading.Event()


def eventually(look: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Return what ``look`` gives as soon as that is true.

    Raises:
        TimeoutError: it never was.
    """
    deadline = time.monotonic() + patience
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {patience} s: {what}; last seen: {found!r}")
        _pause.wait(0.002)
    return found

"""What a shell completes: the names that there are now."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from vbnet.errors import VbnetError


def beginning_so(names: Callable[[], list[str]], incomplete: str) -> list[str]:
    """Return those names that begin so; none when they cannot be found out."""
    with suppress(VbnetError):
        return [name for name in names() if name.startswith(incomplete)]
    return []

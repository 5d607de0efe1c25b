"""Being an ordinary user for one command, when the tests run as root.

Root's own Python may stand in a folder that nobody else may enter, so the command gets a mount namespace in which that
folder shows nothing but the way to Python. Everything is gone when the command has ended.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

USER_ID = 65533


def as_ordinary_user(command: list[str]) -> list[str]:
    """Return the command that runs ``command`` without any privilege; itself, when there is none anyway."""
    if os.geteuid() != 0:
        return command
    become = (
        f"exec setpriv --reuid={USER_ID} --regid={USER_ID} --clear-groups --bounding-set=-all {shlex.join(command)}"
    )
    closed = _closed_ancestor(Path(sys.base_prefix))
    if closed is None:
        return ["sh", "-c", become]
    way = closed / Path(sys.base_prefix).relative_to(closed).parts[0]
    steps = [
        "set -e",
        "aside=$(mktemp -d)",
        f"mount --bind {shlex.quote(str(closed))} $aside",
        f"mount -t tmpfs -o mode=755 none {shlex.quote(str(closed))}",
        f"mkdir {shlex.quote(str(way))}",
        f"mount --bind $aside/{shlex.quote(way.name)} {shlex.quote(str(way))}",
        "umount -l $aside",
        "rmdir $aside",
        become,
    ]
    return ["unshare", "--mount", "sh", "-c", "\n".join(steps)]


def _closed_ancestor(path: Path) -> Path | None:
    """Return the topmost folder on the way to ``path`` that others may not enter."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)

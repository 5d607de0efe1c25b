"""Being an ordinary user for one command, when the tests run as root.

Root's own Python may stand in a folder that nobody else may enter, and ``/dev/net/tun`` may be root's alone. So the
command gets a mount namespace of its own, in which that folder shows nothing but the way to Python, and the device has
the mode that the test wants. Everything is gone when the command has ended.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

USER_ID = 65533
OPEN_TO_ALL = 0o666
TUN_DEVICE = Path("/dev/net/tun")


def as_ordinary_user(command: list[str], tun_mode: int = OPEN_TO_ALL) -> list[str]:
    """Return the command that runs ``command`` without any privilege; itself, when there is none anyway.

    Args:
        command: what to run.
        tun_mode: the mode of ``/dev/net/tun`` for it, if the machine has one.
    """
    if os.geteuid() != 0:
        return command
    become = (
        f"exec setpriv --reuid={USER_ID} --regid={USER_ID} --clear-groups --bounding-set=-all {shlex.join(command)}"
    )
    steps = ["set -e", *_bring_tun(tun_mode), *_open_way(_closed_ancestor(Path(sys.base_prefix))), become]
    return ["unshare", "--mount", "sh", "-c", "\n".join(steps)]


def _bring_tun(mode: int) -> list[str]:
    """Return the steps that put a node of this mode in the place of the TAP control device."""
    if not TUN_DEVICE.exists():
        return []
    return [
        "aside=$(mktemp -d)",
        "mount -t tmpfs none $aside",
        f"mknod -m {mode:o} $aside/tun c 10 200",
        f"mount --bind $aside/tun {TUN_DEVICE}",
        "umount -l $aside",
        "rmdir $aside",
    ]


def _open_way(closed: Path | None) -> list[str]:
    """Return the steps that leave nothing of a closed folder but the way to Python, for others to go."""
    if closed is None:
        return []
    way = closed / Path(sys.base_prefix).relative_to(closed).parts[0]
    return [
        "aside=$(mktemp -d)",
        f"mount --bind {shlex.quote(str(closed))} $aside",
        f"mount -t tmpfs -o mode=755 none {shlex.quote(str(closed))}",
        f"mkdir {shlex.quote(str(way))}",
        f"mount --bind $aside/{shlex.quote(way.name)} {shlex.quote(str(way))}",
        "umount -l $aside",
        "rmdir $aside",
    ]


def _closed_ancestor(path: Path) -> Path | None:
    """Return the topmost folder on the way to ``path`` that others may not enter."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)

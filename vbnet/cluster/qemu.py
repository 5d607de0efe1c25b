"""What QEMU is told so that a machine's network card is a port of a switch: the arguments, complete.

```text
   memory that others may map    -object memory-backend-memfd,…,share=on   -machine memory-backend=…
   a socket that is gone to anew -chardev socket,path=…,reconnect=…
   the card                      -netdev vhost-user,…   -device virtio-net-pci,…
```

The danger: memory that is not shared is no error to QEMU where it comes from a file. Then the host node sees queues in
which nothing ever is.
Source: QEMU's qemu-options.hx and docs/system/devices/vhost-user.rst; ``reconnect`` became ``reconnect-ms`` in 9.2 and
is gone since 10.2 (docs/about/deprecated.rst, removed-features.rst).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["CARD_PREFIX", "card_arguments", "memory_arguments", "qemu_version"]

CARD_PREFIX: Final = "vbnet"
"""How the names begin that cards and memory have inside QEMU."""
RECONNECT_MS_SINCE: Final = (9, 2)
_VERSION = re.compile(r"QEMU emulator version (\d+)\.(\d+)")
_ANSWER_S: Final = 5.0


def memory_arguments(size: str) -> list[str]:
    """Arguments that give a machine memory which its cards' other ends may map.

    Args:
        size: as QEMU writes it, such as ``1G``. It is the machine's whole memory: ``-m`` is left out, or says the same.
    """
    name = f"{CARD_PREFIX}-ram"
    backend = f"memory-backend-memfd,id={name},size={size},share=on"
    return ["-object", backend, "-machine", f"memory-backend={name}"]


def card_arguments(
    socket: Path, *, number: int = 0, mac: str | None = None, queues: int = 1, version: tuple[int, int] | None = None
) -> list[str]:
    """Arguments that give a machine a network card whose other end is a port.

    Args:
        socket: of the port.
        number: of the card in this machine, for a name.
        mac: of the card; QEMU's choice when left out, which is the same for every machine.
        queues: pairs of queues, 1 to 8.
        version: of QEMU; None: a new one.
    """
    name = f"{CARD_PREFIX}{number}"
    again = "reconnect=1" if version is not None and version < RECONNECT_MS_SINCE else "reconnect-ms=1000"
    path = str(socket).replace(",", ",,")
    backend = f"vhost-user,id={name},chardev={name}"
    card = f"virtio-net-pci,netdev={name}"
    if mac is not None:
        card += f",mac={mac}"
    if queues > 1:
        backend += f",queues={queues}"
        card += ",mq=on"
    return ["-chardev", f"socket,id={name},path={path},{again}", "-netdev", backend, "-device", card]


def qemu_version(program: str, environment: Mapping[str, str] | None = None) -> tuple[int, int] | None:
    """Major and minor number of a QEMU, or None where there is none that says so in time.

    Args:
        program: its name or path.
        environment: it is started with; ours by default.
    """
    with suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run(  # noqa: S603 -- the user's own choice of a program
            [program, "--version"], capture_output=True, text=True, timeout=_ANSWER_S, check=False, env=environment
        ).stdout
        if found := _VERSION.search(said):
            return int(found[1]), int(found[2])
    return None

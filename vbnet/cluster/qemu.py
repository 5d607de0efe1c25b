"""What QEMU is told so that a machine's network card is a port of a switch: the arguments, complete.

```text
   memory that others may map    -object memory-backend-memfd,…,share=on   -machine memory-backend=…
   a socket that is gone to anew -chardev socket,path=…,reconnect-ms=…
   the card                      -netdev vhost-user,…   -device virtio-net-pci,…
```

The danger: memory that is not shared is no error to QEMU where it comes from a file. Then the host node sees queues in
which nothing ever is.
Source: QEMU's qemu-options.hx and docs/system/devices/vhost-user.rst; ``reconnect`` became ``reconnect-ms`` in 9.2 and
is gone since 10.2 (docs/about/deprecated.rst, removed-features.rst). Sizes are read as ``qemu_strtosz`` of
util/cutils.c reads them.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from vbnet.errors import UsageError

__all__ = ["ASSUMED", "CARD_PREFIX", "card_arguments", "memory_arguments", "qemu_version"]

CARD_PREFIX: Final = "vbnet"
"""How the names begin that cards and memory have inside QEMU."""
ASSUMED: Final = (9, 2)
"""The version for which arguments are where none is known; newer ones take them, too."""
RECONNECT_MS_SINCE: Final = (9, 2)
FALLS_OVER_VECTORS: Final = 7
"""The major version that, without KVM, crashes when the driver of a vhost-user card with MSI-X vectors starts."""
_VERSION = re.compile(r"QEMU emulator version (\d+)\.(\d+)")
_NAMED = re.compile(r"(\d+)\.(\d+)(\.\d+)*")
_ANSWER_S: Final = 5.0
_SIZE = re.compile(r"(?P<whole>[0-9]+)(?P<part>\.[0-9]+)?(?P<unit>[bkmgtpe]?)|0x(?P<hex>[0-9a-f]+)", re.IGNORECASE)
_UNITS: Final = "bkmgtpe"
_MEMORY_MIN_BYTES: Final = 1 << 20
_MEMORY_MAX_BYTES: Final = 1 << 60


def memory_arguments(size: str) -> list[str]:
    """Arguments that give a machine memory which its cards' other ends may map.

    Args:
        size: as QEMU writes it, such as ``1G``. It is the machine's whole memory: ``-m`` is left out, or says the same.

    Raises:
        UsageError: QEMU would not take it, or it is no size of a machine's memory.
    """
    _check_size(size)
    name = f"{CARD_PREFIX}-ram"
    backend = f"memory-backend-memfd,id={name},size={size},share=on"
    return ["-object", backend, "-machine", f"memory-backend={name}"]


def card_arguments(
    socket: Path,
    *,
    number: int = 0,
    mac: str | None = None,
    queues: int = 1,
    mtu: int | None = None,
    version: tuple[int, int] = ASSUMED,
) -> list[str]:
    """Arguments that give a machine a network card whose other end is a port.

    Args:
        socket: of the port.
        number: of the card in this machine, for a name.
        mac: of the card; QEMU's choice when left out, which is the same for every machine.
        queues: pairs of queues, 1 to 8.
        mtu: longest IP packet in bytes, which the card tells the machine's driver; None: the driver's own, 1500.
        version: of QEMU.
    """
    name = f"{CARD_PREFIX}{number}"
    again = "reconnect=1" if version < RECONNECT_MS_SINCE else "reconnect-ms=1000"
    path = str(socket).replace(",", ",,")
    backend = f"vhost-user,id={name},chardev={name}"
    card = f"virtio-net-pci,netdev={name}"
    if mac is not None:
        card += f",mac={mac}"
    if queues > 1:
        backend += f",queues={queues}"
        card += ",mq=on"
    if mtu is not None:
        card += f",host_mtu={mtu}"
    if version[0] == FALLS_OVER_VECTORS:
        card += ",vectors=0"
    return ["-chardev", f"socket,id={name},path={path},{again}", "-netdev", backend, "-device", card]


def qemu_version(program: str, environment: Mapping[str, str] | None = None) -> tuple[int, int] | None:
    """Major and minor number of a QEMU, or None where there is none that says so in time.

    Args:
        program: its name or path, or the version itself, such as ``7.2``.
        environment: it is started with; ours by default.
    """
    if named := _NAMED.fullmatch(program):
        return int(named[1]), int(named[2])
    with suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run(  # noqa: S603 -- the user's own choice of a program
            [program, "--version"], capture_output=True, text=True, timeout=_ANSWER_S, check=False, env=environment
        ).stdout
        if found := _VERSION.search(said):
            return int(found[1]), int(found[2])
    return None


def _check_size(text: str) -> None:
    """Refuse what QEMU would not take for a size, and what can be none of a machine's memory.

    Raises:
        UsageError: the same.
    """
    found = _SIZE.fullmatch(text)
    unit = (found["unit"] or "b").lower() if found else ""
    if found is None or (found["part"] and unit == "b"):
        raise UsageError(
            f"{text!r} is no size that QEMU reads; write a number and one of B K M G T, such as 512M or 1.5G"
        )
    if found["hex"]:
        size = int(found["hex"], 16)
    else:
        size = int(float(found["whole"] + (found["part"] or "")) * (1 << 10 * _UNITS.index(unit)))
    if size < _MEMORY_MIN_BYTES:
        advice = f"; QEMU takes a number alone as bytes, write {text}M" if text.isdigit() else ""
        raise UsageError(f"{text!r} is {size} bytes, too little for a machine's memory{advice}")
    if size > _MEMORY_MAX_BYTES:
        raise UsageError(f"{text!r} is more memory than a machine can have")

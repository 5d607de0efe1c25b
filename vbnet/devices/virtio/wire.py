"""What both halves of virtio know: ABI types, functions, regions. Little-endian throughout.

A device's registers are functions of the bus; region n is the memory of queue n, with its signal in the last bytes. The
halves that speak are native (``rust/core/src/virtio/device.rs``, ``rust/core/src/guest/virtio/transport.rs``);
``docs/wire/virtio.md`` has the bytes. Source: virtio 1.2; the functions are ours.
"""

from __future__ import annotations

import enum
from typing import Final

from vbnet._native import VIRTIO_TRANSPORTS

__all__ = ["BLK_TYPE", "CONSOLE_TYPE", "RNG_TYPE", "SECTOR_BYTES", "TRANSPORTS", "VERSION", "Function"]

BLK_TYPE: Final = "virtio:2"
CONSOLE_TYPE: Final = "virtio:3"
RNG_TYPE: Final = "virtio:4"
VERSION: Final = 1
SECTOR_BYTES: Final = 512
TRANSPORTS: Final = tuple(VIRTIO_TRANSPORTS)
"""How a driver reaches registers: by bus calls, or as behind virtio-mmio or virtio-pci, by a trap for each access."""


class Function(enum.IntEnum):
    """Functions a driver calls."""

    INFO = 0
    GET_FEATURES = 1
    SET_FEATURES = 2
    GET_STATUS = 3
    SET_STATUS = 4
    GET_GENERATION = 5
    GET_CONFIG = 6
    SET_CONFIG = 7
    QUERY_VQ = 8
    SET_VQ = 9
    DEL_VQ = 10
    TRAP_READ = 11
    TRAP_WRITE = 12

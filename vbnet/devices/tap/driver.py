"""The guest half of the tap device: gives a TAP's descriptor to the host and keeps it there.

    driver = TapDriver(descriptors={"eth0": fd})
    session.register(driver)
    await session.bind("eth0")

The interface lives in the namespace in which it was made; the frames go between its descriptor and the host's switch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import suppress

from vbnet.devices.tap import wire
from vbnet.errors import UsageError, VbnetError
from vbnet.guestnode.proxy import OpenDevice, ProxyDevice

_tickets = itertools.count(1 << 32)


class TapDriver:
    """Drives tap devices with descriptors that were made before.

    Args:
        descriptors: interface name → descriptor of the TAP, the caller's own; needed until the driver was bound.
    """

    abi_type = wire.ABI_TYPE

    def __init__(self, descriptors: Mapping[str, int] | None = None) -> None:
        self._descriptors = dict(descriptors or {})

    async def probe(self, device: ProxyDevice) -> Tap:
        """Give the host the TAP of the device's name.

        Raises:
            UsageError: no descriptor was made for this device, or it is no TAP.
        """
        fd = self._descriptors.get(device.name)
        if fd is None:
            raise UsageError(f"no TAP was made for device {device.name!r}; a netns guest makes one", device=device.name)
        opened = await device.open(wire.VERSION)
        try:
            ticket = next(_tickets)
            await device.give_fd(ticket, fd)
            mtu = wire.decode_mtu(await opened.call(wire.JOIN, wire.encode_ticket(ticket)))
        except BaseException:
            with suppress(VbnetError):
                await opened.close()
            raise
        return Tap(opened, mtu)


class Tap:
    """A TAP that the host serves.

    Attributes:
        mtu: largest IP packet in bytes, as the host has it.
    """

    def __init__(self, opened: OpenDevice, mtu: int) -> None:
        self.mtu = mtu
        self._opened = opened

    async def remove(self) -> None:
        """Have the host let go of it."""
        with suppress(VbnetError):
            await self._opened.close()

"""What the author of a driver implements: the guest half of a device.

A driver matches devices by their ABI type. For each match, now or later, ``probe`` is awaited once and gives an
instance, which the guest's program uses; when the device leaves, the guest resets or the host ends, ``remove`` is
awaited once.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from vbnet.bus.kinds import Catalogue, discover, load
from vbnet.errors import NotFoundError, UsageError
from vbnet.guestnode.proxy import ProxyDevice

__all__ = ["Driver", "DriverInstance", "load_driver"]


@runtime_checkable
class DriverInstance(Protocol):
    """A driver at work on one device."""

    async def remove(self) -> None:
        """The device left: stop using it. Its handle is void already if the device or the host is gone."""


@runtime_checkable
class Driver(Protocol):
    """Drives every device of one ABI type.

    Attributes:
        abi_type: the type it matches.
    """

    abi_type: str

    async def probe(self, device: ProxyDevice) -> DriverInstance:
        """Take a device into use; what is raised leaves the device unbound and is kept in ``device.probe_error``."""


_catalogues: dict[bool, Catalogue] = {}


def load_driver(abi_type: str) -> Driver:
    """Load the driver that some kind offers for ``abi_type``.

    Raises:
        NotFoundError: none does.
        UsageError: what the kind names is no driver for this type (its author's mistake).
    """
    path = None
    for is_wide in (False, True):  # installed packages are looked at only if the own folders do not know the type
        if is_wide not in _catalogues:
            _catalogues[is_wide] = discover(with_entry_points=is_wide)
        path = path or _catalogues[is_wide].drivers.get(abi_type)
        if path is not None:
            break
    if path is None:
        raise NotFoundError(f"no driver for devices of type {abi_type!r}; install one or register yours", type=abi_type)
    found: Any = load(path)
    driver = found() if isinstance(found, type) else found
    if not isinstance(driver, Driver) or driver.abi_type != abi_type:
        raise UsageError(f"{path} is no driver for {abi_type!r}", path=path)
    return driver

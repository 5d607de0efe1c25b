"""What the author of a driver implements: the guest half of a device.

A driver matches devices by their ABI type. For each match, now or later, ``probe`` is awaited once and gives an
instance, which the guest's program uses; when the device leaves, the guest resets or the host ends, ``remove`` is
awaited once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from vbnet.bus.kinds import Catalogue, discover, load
from vbnet.errors import NotFoundError, UsageError
from vbnet.guestnode.proxy import ProxyDevice

__all__ = ["Driver", "DriverInstance", "is_nic_type", "load_driver", "load_driver_class"]


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
    found = load_driver_class(abi_type)
    driver: Any = found() if isinstance(found, type) else found
    if not isinstance(driver, Driver) or driver.abi_type != abi_type:
        raise UsageError(f"what is named as driver for {abi_type!r} is none", type=abi_type)
    return driver


def load_driver_class(abi_type: str) -> Any:  # noqa: ANN401 - what the kind names
    """Load what some kind names as the driver for ``abi_type``: mostly a class, whose arguments are its own.

    Raises:
        NotFoundError: none does.
    """
    for catalogue in _looked_through():
        if (path := catalogue.drivers.get(abi_type)) is not None:
            return load(path)
    raise NotFoundError(f"no driver for devices of type {abi_type!r}; install one or register yours", type=abi_type)


def is_nic_type(abi_type: str) -> bool:
    """Whether devices of this type are network cards."""
    return any(abi_type in catalogue.nic_types for catalogue in _looked_through())


def _looked_through() -> Iterator[Catalogue]:
    """What is in the own folders, then, to whom that is not enough, in installed packages too."""
    for is_wide in (False, True):
        if is_wide not in _catalogues:
            _catalogues[is_wide] = discover(with_entry_points=is_wide)
        yield _catalogues[is_wide]

"""Device kinds: found in the folders of ``vbnet.devices`` and in installed packages, loaded only when used.

A kind is one folder whose ``__init__`` holds one constant ``KIND``. It names both halves by import path, so that a
guest process never loads host code and the host never loads guest code. Packages elsewhere use the entry-point group
``vbnet.devices``, each entry naming their ``KIND``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from vbnet.errors import ExistsError, NotFoundError, UsageError

__all__ = ["ENTRY_POINT_GROUP", "Catalogue", "Kind", "NicModel", "discover", "load"]

ENTRY_POINT_GROUP = "vbnet.devices"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NicModel:
    """A model of network card, which a guest of a lab may have: programs in guests are the same for all.

    Args:
        device_class: of the host that makes it; it takes the attributes ``switch``, ``mac`` and ``mtu``.
        abi_type: by which guests know it; its driver is a ``vbnet.guestnode.nic.NicDriverClass``.
        attributes: that the class is given beside those.
        has_traps: whether its registers trap: guests get a ``fastcall`` device for them, and the class takes the
            attribute ``trap_cost_ns``.
        has_slots: whether its driver shows fastcall slots of its own, and needs no such device.
        has_pairs: whether the class takes the attribute ``pairs``, several pairs of queues.
        mtu_max: longest IP packet that it carries, bytes.
    """

    device_class: str
    abi_type: str
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    has_traps: bool = False
    has_slots: bool = False
    has_pairs: bool = False
    mtu_max: int = 65535


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of device, described without loading it.

    Args:
        name: of the kind; unique; the name of its folder.
        classes: device classes the host offers → import path ``"package.module:object"`` of each host half.
        drivers: ABI types the guest can drive → import path of each guest half.
        metrics: import path of its tuple of ``MetricBlock``, or None.
        nics: models of network card, by the name that a lab file gives them.
    """

    name: str
    classes: Mapping[str, str]
    drivers: Mapping[str, str]
    metrics: str | None = None
    nics: Mapping[str, NicModel] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All kinds that were found; two of one name, class, ABI type or model are refused."""

    kinds: Mapping[str, Kind]
    classes: Mapping[str, str] = field(init=False)
    drivers: Mapping[str, str] = field(init=False)
    nics: Mapping[str, NicModel] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", _merge("device class", ((k.name, k.classes) for k in self.kinds.values())))
        object.__setattr__(self, "drivers", _merge("driver for", ((k.name, k.drivers) for k in self.kinds.values())))
        object.__setattr__(self, "nics", _merge("model of NIC", ((k.name, k.nics) for k in self.kinds.values())))

    @property
    def nic_types(self) -> frozenset[str]:
        """ABI types of network cards."""
        return frozenset(model.abi_type for model in self.nics.values())

    @classmethod
    def of(cls, kinds: Iterable[Kind]) -> Catalogue:
        """Put kinds together.

        Raises:
            ExistsError: two have one name, or offer one class or driver.
        """
        found: dict[str, Kind] = {}
        for kind in kinds:
            if kind.name in found:
                raise ExistsError(f"two device kinds are named {kind.name!r}; remove one package", kind=kind.name)
            found[kind.name] = kind
        return cls(MappingProxyType(found))


def _merge(what: str, parts: Iterable[tuple[str, Mapping[str, T]]]) -> Mapping[str, T]:
    owners: dict[str, str] = {}
    merged: dict[str, T] = {}
    for kind, paths in parts:
        for name, path in paths.items():
            if name in owners:
                raise ExistsError(f"kinds {owners[name]!r} and {kind!r} both offer the {what} {name!r}", name=name)
            owners[name] = kind
            merged[name] = path
    return MappingProxyType(merged)


def discover(*, with_entry_points: bool = True) -> Catalogue:
    """Find every kind.

    Args:
        with_entry_points: look into installed packages too (tens of milliseconds).

    Raises:
        ExistsError: two kinds of one name.
        UsageError: a folder or entry without a ``KIND`` (its author's mistake).
    """
    kinds = list(_own_kinds())
    if with_entry_points:
        kinds.extend(_installed_kinds())
    return Catalogue.of(kinds)


def load(path: str) -> object:
    """Import what ``"package.module:object"`` names.

    Raises:
        UsageError: the path is malformed.
        NotFoundError: there is no such module or object.
    """
    module_name, separator, attribute = path.partition(":")
    if not separator:
        raise UsageError(f"{path!r} is not an import path like 'package.module:object'", path=path)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise NotFoundError(f"cannot load {path!r}: {error}", path=path) from error


def _own_kinds() -> Iterable[Kind]:
    package = importlib.import_module("vbnet.devices")
    for entry in pkgutil.iter_modules(package.__path__):
        if entry.ispkg:
            yield _kind_of(importlib.import_module(f"vbnet.devices.{entry.name}"), entry.name)


def _installed_kinds() -> Iterable[Kind]:
    from importlib.metadata import entry_points  # noqa: PLC0415 - slow to import, and seldom needed in a guest

    for entry in entry_points(group=ENTRY_POINT_GROUP):
        found = entry.load()
        yield found if isinstance(found, Kind) else _kind_of(found, entry.name)


def _kind_of(module: object, name: str) -> Kind:
    kind = getattr(module, "KIND", None)
    if not isinstance(kind, Kind):
        raise UsageError(f"device folder {name!r} has no constant KIND of type Kind", folder=name)
    return kind

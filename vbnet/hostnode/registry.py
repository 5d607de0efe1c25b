"""Device classes by name, each loaded on first use."""

from __future__ import annotations

from vbnet.bus.kinds import Catalogue, discover, load
from vbnet.errors import NotFoundError, UsageError
from vbnet.hostnode.device import DeviceClass

__all__ = ["ClassRegistry"]


class ClassRegistry:
    """The device classes this host offers.

    Args:
        catalogue: where they were found; None looks for them.
    """

    def __init__(self, catalogue: Catalogue | None = None) -> None:
        self._catalogue = discover() if catalogue is None else catalogue
        self._loaded: dict[str, DeviceClass] = {}

    def names(self) -> list[str]:
        """Names of all classes, sorted."""
        return sorted(self._catalogue.classes)

    def kind_of(self, name: str) -> str:
        """Name of the kind that offers the class ``name``."""
        return next(kind.name for kind in self._catalogue.kinds.values() if name in kind.classes)

    def find(self, name: str) -> DeviceClass:
        """The device class ``name``.

        Raises:
            NotFoundError: no kind offers it.
            UsageError: what its kind names is no DeviceClass of this name (its author's mistake).
        """
        if name not in self._loaded:
            path = self._catalogue.classes.get(name)
            if path is None:
                known = ", ".join(self.names()) or "none"
                raise NotFoundError(f"there is no device class {name!r}; there are: {known}", type=name)
            found = load(path)
            made = found() if isinstance(found, type) else found
            if not isinstance(made, DeviceClass) or made.name != name:
                raise UsageError(f"{path} is no DeviceClass named {name!r}", path=path)
            self._loaded[name] = made
        return self._loaded[name]

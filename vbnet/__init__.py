"""vbnet: a virtual bus in user space. Host node, guest nodes, shared-memory Ethernet.

``vbnet.Guest`` is the way in for a plain function that wants a place on the bus; everything else is imported from the
package that owns it. Nothing is loaded here: a guest process starts in tens of milliseconds, and no layer reaches
another through this package. ``__init__.pyi`` tells type checkers what ``Guest`` is.
"""

from importlib import import_module

__all__ = ["Guest"]


def __getattr__(name: str) -> object:
    """Load ``Guest`` on first use."""
    if name == "Guest":
        return import_module("vbnet.guestnode.sync").Guest
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""vbnet: a virtual bus in user space. Host node, guest nodes, shared-memory Ethernet.

``vbnet.Guest`` is the way in for a plain function that wants a place on the bus; everything else is imported from the
package that owns it. Nothing heavy is loaded here: a guest process starts in tens of milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vbnet.guestnode.sync import Guest

__all__ = ["Guest"]


def __getattr__(name: str) -> object:
    """Load ``Guest`` on first use, so that ``import vbnet`` stays cheap."""
    if name == "Guest":
        from vbnet.guestnode.sync import Guest  # noqa: PLC0415 - loaded on first use

        return Guest
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What the kernel says about a network interface of the namespace this process is in.

Asked over netlink, not read below ``/sys``: that shows the namespace in which it was mounted, which is another one
after ``nsenter`` or ``unshare``, and cannot be written in most containers.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass

_IFF_TAP = 2


@dataclass(frozen=True)
class Link:
    """One interface.

    Attributes:
        alias: the free text that its maker gave it; empty when none.
        is_tap: it is a TAP device.
        owner: the user who may open a TAP without privilege; None when nobody may.
    """

    alias: str
    is_tap: bool
    owner: int | None


def link_exists(name: str) -> bool:
    """Say whether there is a network interface of that name."""
    with suppress(OSError):
        return socket.if_nametoindex(name) > 0
    return False


def find_link(name: str) -> Link | None:
    """Return what there is to know about an interface, or None when there is none of that name."""
    if not link_exists(name):
        return None
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415 -- slow to import

    with suppress(NetlinkError, OSError, IndexError), IPRoute() as route:
        found = route.get_links(route.link_lookup(ifname=name)[0])[0]
        is_tun = found.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "tun"
        details = dict(found.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")["attrs"]) if is_tun else {}
        return Link(
            alias=found.get_attr("IFLA_IFALIAS") or "",
            is_tap=details.get("IFLA_TUN_TYPE") == _IFF_TAP,
            owner=details.get("IFLA_TUN_OWNER"),
        )
    return None


def set_alias(name: str, alias: str) -> None:
    """Give an interface its free text.

    Raises:
        OSError: there is no such interface, or this process may not.
    """
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415 -- slow to import

    try:
        with IPRoute() as route:
            route.link("set", index=socket.if_nametoindex(name), ifalias=alias)
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error

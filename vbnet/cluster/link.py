"""What the kernel says about a network interface of the namespace this process is in.

Asked over netlink, not read below ``/sys``: that shows the namespace in which it was mounted, which is another one
after ``nsenter`` or ``unshare``, and cannot be written in most containers.

Danger: the netlink library runs an event loop of its own and refuses to be called from within another one. A lab's
supervisor asks from within its loop, so every question is put in a thread of its own.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

_IFF_TAP = 2
T = TypeVar("T")


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
    found: Any = None
    with suppress(OSError, IndexError):
        found = _ask(lambda route: route.get_links(route.link_lookup(ifname=name)[0])[0])
    if found is None:
        return None
    is_tun = found.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "tun"
    details = dict(found.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")["attrs"]) if is_tun else {}
    return Link(
        alias=found.get_attr("IFLA_IFALIAS") or "",
        is_tap=details.get("IFLA_TUN_TYPE") == _IFF_TAP,
        owner=details.get("IFLA_TUN_OWNER"),
    )


def set_alias(name: str, alias: str) -> None:
    """Give an interface its free text.

    Raises:
        OSError: there is no such interface, or this process may not.
    """
    index = socket.if_nametoindex(name)
    _ask(lambda route: route.link("set", index=index, ifalias=alias))


def _ask(question: Callable[[Any], T]) -> T:
    """Put a question to the kernel; its refusal is an OSError."""
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415 -- slow to import

    def ask() -> T:
        with IPRoute() as route:
            return question(route)

    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(ask).result()
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error

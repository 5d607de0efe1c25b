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
_IFF_UP = 1
ALIAS_BEGIN = "vbnet "
"""How the alias of an interface begins that a lab made, and that goes with it."""
T = TypeVar("T")


@dataclass(frozen=True)
class Link:
    """One interface.

    Attributes:
        alias: the free text that its maker gave it; empty when none.
        is_tap: it is a TAP device.
        owner: the user who may open a TAP without privilege; None when nobody may.
        is_up: it was brought up, whether it has a carrier or not.
        addresses: IP addresses with their prefix lengths.
    """

    alias: str
    is_tap: bool
    owner: int | None
    is_up: bool
    addresses: tuple[str, ...]

    @property
    def is_of_lab(self) -> bool:
        """Whether a lab made it, perhaps one that was killed."""
        return self.alias.startswith(ALIAS_BEGIN)


def link_exists(name: str) -> bool:
    """Say whether there is a network interface of that name."""
    with suppress(OSError):
        return socket.if_nametoindex(name) > 0
    return False


def find_link(name: str) -> Link | None:
    """Return what there is to know about an interface, or None when there is none of that name."""
    if not link_exists(name):
        return None
    answer: Any = None
    with suppress(OSError, IndexError):
        answer = _ask(lambda route: _look(route, route.link_lookup(ifname=name)[0]))
    if answer is None:
        return None
    found, addresses = answer
    is_tun = found.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "tun"
    details = dict(found.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")["attrs"]) if is_tun else {}
    return Link(
        alias=found.get_attr("IFLA_IFALIAS") or "",
        is_tap=details.get("IFLA_TUN_TYPE") == _IFF_TAP,
        owner=details.get("IFLA_TUN_OWNER"),
        is_up=bool(found["flags"] & _IFF_UP),
        addresses=tuple(
            f"{address.get_attr('IFA_LOCAL') or address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}"
            for address in addresses
        ),
    )


def _look(route: Any, index: int) -> tuple[Any, list[Any]]:  # noqa: ANN401 -- pyroute2's own
    return route.get_links(index)[0], list(route.get_addr(index=index))


def bring_up(name: str) -> None:
    """Bring an interface up.

    Raises:
        OSError: there is no such interface, or this process may not.
    """
    index = socket.if_nametoindex(name)
    _ask(lambda route: route.link("set", index=index, state="up"))


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

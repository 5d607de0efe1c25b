"""TAP devices of the machine itself, made for a lab's uplinks.

The host node opens a TAP by its name, so the lab has to make it first, and it has to last until then. A TAP that
lasts also outlives a lab that was killed; so it carries the lab's instance as its alias, and only an interface with
that alias is ever removed. A TAP that was there before the lab is brought up and used, and otherwise left alone.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from vbnet.cluster.link import ALIAS_BEGIN, bring_up, find_link, set_alias
from vbnet.cluster.netns import configure
from vbnet.cluster.plan import NicPlan, UplinkPlan
from vbnet.cluster.privileges import open_tap
from vbnet.errors import ResourceError

_TUNSETPERSIST = 0x400454CB


def make_tap(uplink: UplinkPlan, instance: str) -> None:
    """Make the TAP of an uplink, with its address, and mark it as this lab's.

    Raises:
        ResourceError: the kernel refused.
    """
    try:
        fd = open_tap(uplink.tap)
        try:
            set_alias(uplink.tap, _alias(instance))
            fcntl.ioctl(fd, _TUNSETPERSIST, 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise ResourceError(f"cannot make TAP {uplink.tap} ({error.strerror})", errno=error.errno or 0) from error
    configure(NicPlan(name=uplink.tap, device="", switch=uplink.switch, mac="", mtu=uplink.mtu, ip=uplink.ip))


def use_tap(uplink: UplinkPlan) -> None:
    """Bring a TAP up that was there before the lab; nothing passes one that is down.

    Raises:
        ResourceError: the kernel refused.
    """
    link = find_link(uplink.tap)
    if link is None or link.is_up:
        return
    try:
        bring_up(uplink.tap)
    except OSError as error:
        raise ResourceError(f"cannot bring TAP {uplink.tap} up ({error.strerror})", errno=error.errno or 0) from error


def is_made_by(tap: str, instance: str) -> bool:
    """Say whether the TAP is there and was made by this lab."""
    link = find_link(tap)
    return link is not None and link.alias == _alias(instance)


def remove_tap(tap: str) -> None:
    """Let a TAP last no longer than the descriptor that is closed here; one that is in use or gone is left alone."""
    with suppress(OSError):
        fd = open_tap(tap)
        try:
            fcntl.ioctl(fd, _TUNSETPERSIST, 0)
        finally:
            os.close(fd)


def _alias(instance: str) -> str:
    return f"{ALIAS_BEGIN}{instance}"

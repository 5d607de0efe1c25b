"""A kernel TAP by name: Ethernet frames through a descriptor, with offload headers in front of them or plain."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import Final

from vbnet.errors import NotFoundError, NotPermittedError, ResourceError

__all__ = ["open_tap"]

_TUNSETIFF: Final = 0x400454CA
_TUN_DEVICE: Final = "/dev/net/tun"
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000


def open_tap(name: str, *, has_offloads: bool) -> int:
    """Open an existing TAP of this network namespace; the caller owns the descriptor, which never blocks.

    Args:
        name: 1..15 characters.
        has_offloads: the kernel shall leave checksums and segments to the switch, and take them from it.

    Raises:
        NotFoundError: there is no such interface.
        NotPermittedError: it belongs to another user.
        ResourceError: the kernel refused, for instance because another program has it.
    """
    try:
        socket.if_nametoindex(name)
    except OSError:
        advice = f"make it with: ip tuntap add {name} mode tap"
        raise NotFoundError(f"there is no interface {name!r}; {advice}", tap=name) from None
    try:
        fd = os.open(_TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        what = f"TAP {name!r} needs {_TUN_DEVICE}, which this user may not open; ask root to allow it"
        raise NotPermittedError(what, tap=name) from error
    except OSError as error:
        raise _refusal(name, error) from error
    flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if has_offloads else 0)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(fd)
        raise _refusal(name, error) from error
    return fd


def _refusal(name: str, error: OSError) -> NotPermittedError | ResourceError:
    if error.errno in {errno.EPERM, errno.EACCES}:
        return NotPermittedError(f"TAP {name!r} may not be opened by this user; give it an owner", tap=name)
    return ResourceError(f"TAP {name!r} cannot be opened: {error.strerror}", errno=error.errno or 0, tap=name)

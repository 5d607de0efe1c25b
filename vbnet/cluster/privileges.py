"""What this machine allows: checked before anything of a lab is started.

Each question is answered by looking, not by trying things that leave traces: capabilities from ``/proc/self/status``,
the TAP control device by opening it, user namespaces by making one in a child that exits at once.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vbnet.cluster.link import Link, find_link
from vbnet.cluster.source import Problem, TopologyError
from vbnet.cluster.topology import LabFile, NetnsGuest

CAP_NET_ADMIN = 12
CAP_SYS_ADMIN = 21
TUN_DEVICE = Path("/dev/net/tun")
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Obstacle:
    """Why something cannot be used here.

    Attributes:
        what: as the rest of a sentence about the thing, for instance "is not there".
        fix: what helps.
    """

    what: str
    fix: str


@dataclass(frozen=True)
class Privileges:
    """What the calling process may do on this machine.

    Attributes:
        has_net_admin: may create and configure network interfaces of the machine (usually: is root).
        has_namespaces: may create network namespaces (as root, or in a user namespace of its own).
        tun: what keeps it from opening the TAP control device, or None.
    """

    has_net_admin: bool
    has_namespaces: bool
    tun: Obstacle | None = None


def capabilities() -> int:
    """Return the effective capabilities of this process as a bit set."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def has_capability(number: int) -> bool:
    """Say whether this process has the capability ``number`` in effect."""
    return bool(capabilities() >> number & 1)


def examine() -> Privileges:
    """Look at this machine."""
    is_net_admin = has_capability(CAP_NET_ADMIN)
    return Privileges(
        has_net_admin=is_net_admin,
        has_namespaces=(is_net_admin and has_capability(CAP_SYS_ADMIN)) or can_make_user_namespace(),
        tun=tun_obstacle(),
    )


def tun_obstacle() -> Obstacle | None:
    """Return what keeps this process from opening the TAP control device; None when it can."""
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        match error.errno:
            case errno.EACCES:
                mode = f"mode {TUN_DEVICE.stat().st_mode & 0o777:04o}"
                return Obstacle(f"may not be opened by this user ({mode})", f"ask root for: chmod 0666 {TUN_DEVICE}")
            case errno.EPERM:
                fix = f"run the container with --device {TUN_DEVICE}"
                return Obstacle("is closed to this container by its device rules", fix)
            case errno.ENOENT:
                fix = f"load the `tun` module: modprobe tun; in a container pass --device {TUN_DEVICE}"
                return Obstacle("is not there", fix)
            case _:
                return Obstacle(f"cannot be opened: {error.strerror}", "load the `tun` module: modprobe tun")
    return None


def can_make_user_namespace() -> bool:
    """Say whether this user may make user and network namespaces, by making a pair in a child that exits at once."""
    import subprocess  # noqa: PLC0415 -- only this question needs it
    import sys  # noqa: PLC0415

    program = (
        f"import ctypes, sys;sys.exit(ctypes.CDLL(None, use_errno=True).unshare({_CLONE_NEWUSER | _CLONE_NEWNET}) != 0)"
    )
    command = [sys.executable, "-S", "-E", "-c", program]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL, timeout=10).returncode == 0  # noqa: S603


def check_privileges(lab: LabFile, privileges: Privileges | None = None) -> None:
    """Refuse a lab that this machine would stop halfway.

    Raises:
        TopologyError: each uplink and namespace that cannot be made here, with its line.
    """
    topology, source = lab.topology, lab.source
    needs_tap = bool(topology.uplinks) or any(isinstance(guest, NetnsGuest) for guest in topology.guests.values())
    if not needs_tap:
        return
    found = privileges or examine()
    problems = [*_uplink_problems(lab, found), *_namespace_problems(lab, found)]
    if problems:
        raise TopologyError(source.file, problems)


def _uplink_problems(lab: LabFile, found: Privileges) -> Iterator[Problem]:
    """Yield why uplinks cannot be made here."""
    for index, uplink in enumerate(lab.topology.uplinks):
        key, link = "tap", find_link(uplink.tap)
        if found.tun is not None:
            what, fix = f"uplink `{uplink.tap}` needs {TUN_DEVICE}, which {found.tun.what}", found.tun.fix
        elif not found.has_net_admin and not (link is not None and link.is_tap and link.owner == os.geteuid()):
            what = f"uplink `{uplink.tap}` needs the right to make network interfaces"
            made = f"ip tuntap add {uplink.tap} mode tap user {os.geteuid()}"
            fix = f"run as root, or have it made for you: {made} && ip link set {uplink.tap} up"
        elif link is not None and not link.is_tap:
            what, fix = f"`{uplink.tap}` is a network interface of this machine, but no TAP", "use another name"
        elif link is not None and not link.is_of_lab and uplink.ip is not None and not _has(link, uplink.ip):
            key = "ip"
            what = f"`{uplink.tap}` is there already, without the address {uplink.ip}"
            fix = f"have it set: ip addr add {uplink.ip} dev {uplink.tap}, or leave `ip` out"
        elif link is not None and not link.is_up and not found.has_net_admin:
            what = f"`{uplink.tap}` is down, and nothing would pass it"
            fix = f"have it brought up: ip link set {uplink.tap} up"
        else:
            continue
        yield lab.source.problem(("uplinks", index, key), what, fix)


def _has(link: Link, ip: str) -> bool:
    """Whether an interface has an address, with this prefix length."""
    return ipaddress.ip_interface(ip) in {ipaddress.ip_interface(address) for address in link.addresses}


def _namespace_problems(lab: LabFile, found: Privileges) -> Iterator[Problem]:
    """Yield why netns guests cannot be made here."""
    for name, guest in lab.topology.guests.items():
        if not isinstance(guest, NetnsGuest):
            continue
        if not found.has_namespaces:
            fix = "run as root, or allow user namespaces (sysctl user.max_user_namespaces)"
            yield lab.source.problem(("guests", name), f"guest `{name}` needs a network namespace", fix)
        elif found.tun is not None:
            what = f"guest `{name}` needs {TUN_DEVICE}, which {found.tun.what}"
            yield lab.source.problem(("guests", name), what, found.tun.fix)


def open_tap(name: str, *, has_offloads: bool = True) -> int:
    """Open (or make) the TAP ``name`` in the current network namespace and return its descriptor.

    The interface lasts as long as a descriptor of it is open, so nothing remains after a ``kill -9``.

    Args:
        name: of the interface.
        has_offloads: each frame has a header in front, by which checksums and segments are left to the other side.

    Raises:
        OSError: EPERM without CAP_NET_ADMIN here, EBUSY when another process has it.
    """
    iff_tap, iff_no_pi, iff_vnet_hdr, tunsetiff = 0x0002, 0x1000, 0x4000, 0x400454CA
    flags = iff_tap | iff_no_pi | (iff_vnet_hdr if has_offloads else 0)
    fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, tunsetiff, struct.pack("16sH22x", name.encode(), flags))
    except OSError:
        os.close(fd)
        raise
    return fd

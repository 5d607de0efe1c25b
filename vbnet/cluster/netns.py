"""A network namespace without a name: it lives exactly as long as the processes in it.

A process *enters a new* namespace (in a user namespace of its own when it is not privileged), makes a TAP in it and
gives the TAP's descriptor to the host node, which reads and writes frames there. To the programs inside, the TAP is
an ordinary ``eth0``. Nothing is put under ``/run/netns``, so nothing can be left behind.

Other programs *join* it through the process that holds it (`vbnet exec`).

Danger: ``unshare`` and ``setns`` change one thread. They must be called before the process has others.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import ipaddress
import os
import signal
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from vbnet.cluster.plan import NicPlan
from vbnet.cluster.privileges import CAP_NET_ADMIN, CAP_SYS_ADMIN, has_capability, open_tap
from vbnet.cluster.process import Identity, is_alive
from vbnet.errors import PeerGone, ResourceError

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_SIOCSIFHWADDR = 0x8924
_ARPHRD_ETHER = 1

QUEUE_FRAMES_MIN = 1000
"""What the kernel gives a TAP by itself."""
QUEUE_BYTES = 6 << 20
"""How much may wait for the host node in an interface: the largest window that the kernel's TCP opens by default.

With less, every TCP connection as fast as the host node overruns the queue: 4 % of its frames are sent twice, and it
gets two thirds of the rate.
"""

_libc = ctypes.CDLL(None, use_errno=True)


def enter_new() -> None:
    """Move this process into a network namespace of its own; inside it, it may do everything.

    Raises:
        ResourceError: the machine allows neither namespaces nor user namespaces to this user.
    """
    if has_capability(CAP_NET_ADMIN) and has_capability(CAP_SYS_ADMIN):
        _call("unshare", _CLONE_NEWNET, "make a network namespace")
        return
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET, "make a user and network namespace")
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")
    # A process with a fresh identity hides from its own user; `vbnet exec` must be able to find its namespaces.
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def join(holder: Identity) -> None:
    """Move this process into the namespaces of ``holder``.

    Raises:
        PeerGone: the holder has ended.
        ResourceError: this user may not enter (somebody else's lab).
    """
    try:
        pidfd = os.pidfd_open(holder.pid)
    except OSError as error:
        raise PeerGone(f"the guest's process {holder.pid} has ended", pid=holder.pid) from error
    try:
        if not is_alive(holder):
            raise PeerGone(f"the guest's process {holder.pid} has ended", pid=holder.pid)
        kinds = _CLONE_NEWNET
        if not _is_same_namespace(holder.pid, "user"):
            kinds |= _CLONE_NEWUSER
        if _libc.setns(pidfd, kinds) != 0:
            number = ctypes.get_errno()
            raise ResourceError(
                f"cannot enter the namespace of process {holder.pid} ({os.strerror(number)}); "
                "use the user who started the lab, or root",
                errno=number,
            )
    finally:
        os.close(pidfd)


def make_interface(nic: NicPlan) -> int:
    """Make one interface in the current namespace, configured and up.

    Returns:
        The TAP's descriptor; the interface lasts as long as it is open somewhere.

    Raises:
        ResourceError: the kernel refused; the message names the interface and the step.
    """
    try:
        fd = open_tap(nic.name, has_offloads=nic.offloads)
    except OSError as error:
        raise ResourceError(f"cannot make interface {nic.name} ({error.strerror})", errno=error.errno or 0) from error
    try:
        _set_mac(fd, nic)
        configure(nic)
    except BaseException:
        os.close(fd)
        raise
    return fd


def bring_up_loopback() -> None:
    """Bring ``lo`` up in the current namespace; programs that talk to themselves need it."""
    from pyroute2 import IPRoute  # noqa: PLC0415 -- slow to import

    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")


def run_inside(command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program in this process's namespaces; it ends with this process.

    Raises:
        ResourceError: there is no such program.
    """

    def tie_to_parent() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    try:
        return subprocess.Popen(  # noqa: S603 -- the lab's author chose it
            list(command),
            stdin=subprocess.DEVNULL,
            env={**os.environ, **env},
            preexec_fn=tie_to_parent,  # noqa: PLW1509 -- no other threads hold locks that prctl would need
        )
    except OSError as error:
        raise ResourceError(f"cannot run `{command[0]}` ({error.strerror})", errno=error.errno or 0) from error


def _set_mac(fd: int, nic: NicPlan) -> None:
    octets = bytes.fromhex(nic.mac.replace(":", ""))
    try:
        fcntl.ioctl(fd, _SIOCSIFHWADDR, struct.pack("16sH6s16x", nic.name.encode(), _ARPHRD_ETHER, octets))
    except OSError as error:
        message = f"cannot set MAC {nic.mac} on {nic.name} ({error.strerror})"
        raise ResourceError(message, errno=error.errno or 0) from error


def configure(nic: NicPlan) -> None:
    """Set MTU, queue, address and routes of an interface of the current namespace, and bring it up.

    Raises:
        ResourceError: the kernel refused; the message names the interface and the step.
    """
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415 -- slow to import; guests have it preloaded

    step = "find it"
    try:
        with IPRoute() as route:
            index = route.link_lookup(ifname=nic.name)[0]
            step = f"set MTU {nic.mtu}"
            queue_frames = max(QUEUE_FRAMES_MIN, QUEUE_BYTES // nic.mtu)
            route.link("set", index=index, mtu=nic.mtu, txqlen=queue_frames, state="up")
            if nic.ip is not None:
                step = f"add address {nic.ip}"
                interface = ipaddress.ip_interface(nic.ip)
                extra = {"broadcast": str(interface.network.broadcast_address)} if interface.version == 4 else {}  # noqa: PLR2004
                prefix = interface.network.prefixlen
                route.addr("replace", index=index, address=str(interface.ip), prefixlen=prefix, **extra)
            for target, hop in {**nic.routes, **({"default": nic.gateway} if nic.gateway else {})}.items():
                step = f"add route to {target} through {hop}"
                route.route("replace", dst=target, gateway=hop, oif=index)
    except (NetlinkError, OSError, IndexError) as error:
        number = getattr(error, "code", None) or getattr(error, "errno", None) or errno.ENODEV
        raise ResourceError(f"cannot configure interface {nic.name}: {step} ({error})", errno=int(number)) from error


def _is_same_namespace(pid: int, kind: str) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/{kind}").stat().st_ino == Path(f"/proc/self/ns/{kind}").stat().st_ino
    except OSError:
        return False


def _call(name: str, flags: int, what: str) -> None:
    if getattr(_libc, name)(flags) != 0:
        number = ctypes.get_errno()
        raise ResourceError(
            f"cannot {what} ({os.strerror(number)}); run as root, or allow user namespaces (see `vbnet doctor`)",
            errno=number,
        )

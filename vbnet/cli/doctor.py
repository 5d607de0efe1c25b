"""`vbnet doctor`: has this machine what vbnet needs, and if not, what helps."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import resource
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

from vbnet.bus.rundir import RunDir
from vbnet.cli import output
from vbnet.cli.output import Format, FormatOption
from vbnet.cluster import privileges
from vbnet.errors import VbnetError

PYTHON_MIN = (3, 11)
LIBZMQ_MIN = (4, 3, 5)
DESCRIPTORS_MIN = 8192
PROGRAMS = ("ip", "ping", "curl", "iperf3", "tcpdump")
PEERS = ("iceoryx2",)

app = output.application(
    "Check that this machine has what vbnet needs; each line that is not ok says what helps.\n\nExit code 1 when "
    "something "
    "is missing that vbnet cannot do without.",
    [("vbnet doctor", "check everything")],
)


class Finding(NamedTuple):
    """One checked thing. ``result``: ok, limited (something is lost without it), missing (nothing works)."""

    check: str
    result: str
    detail: str
    fix: str = ""


@app.command()
def doctor(how: FormatOption = Format.table) -> None:
    """Check that this machine has what vbnet needs."""
    findings = [check() for check in CHECKS]
    output.print_rows([finding._asdict() for finding in findings], ("check", "result", "detail", "fix"), how)
    if any(finding.result == "missing" for finding in findings):
        sys.exit(1)


def check_python() -> Finding:
    """Is Python new enough?"""
    version = ".".join(str(part) for part in sys.version_info[:3])
    is_ok = sys.version_info[:2] >= PYTHON_MIN
    return Finding("python", "ok" if is_ok else "missing", version, "" if is_ok else "install Python 3.11 or newer")


def check_libzmq() -> Finding:
    """Is libzmq new enough, and has it CURVE?"""
    import zmq  # noqa: PLC0415 -- only this check needs it

    version = zmq.zmq_version_info()
    if version < LIBZMQ_MIN:
        return Finding(
            "libzmq", "missing", zmq.zmq_version(), "pip install --upgrade pyzmq (its wheels bring libzmq 4.3.5)"
        )
    if not zmq.has("curve"):
        return Finding(
            "libzmq", "limited", f"{zmq.zmq_version()} without CURVE: no other machines", "use pyzmq's own wheels"
        )
    return Finding("libzmq", "ok", f"{zmq.zmq_version()} with CURVE")


def check_native() -> Finding:
    """Does the native module load?"""
    try:
        from vbnet import _native  # noqa: PLC0415 -- whether this works is the question
    except ImportError as error:
        return Finding("native module", "missing", str(error), "build it: make build")
    return Finding("native module", "ok", _native.__version__)


def check_kernel() -> Finding:
    """Has the kernel pidfds that can be waited for and entered (Linux 5.8)?"""
    release = os.uname().release
    major, minor = (int("".join(filter(str.isdigit, part)) or 0) for part in release.split(".")[:2])
    is_ok = (major, minor) >= (5, 8)
    return Finding("kernel", "ok" if is_ok else "missing", release, "" if is_ok else "use Linux 5.8 or newer")


def check_memfd() -> Finding:
    """Can memory be sealed?"""
    try:
        fd = os.memfd_create("vbnet-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, 4096)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        finally:
            os.close(fd)
    except OSError as error:
        return Finding(
            "memfd sealing", "missing", str(error.strerror), "allow memfd_create (seccomp profile of the container?)"
        )
    return Finding("memfd sealing", "ok", "shrink, grow, seal")


def check_descriptors() -> Finding:
    """May a process have enough descriptors for a thousand guests?"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"soft {soft}, hard {hard}"
    if hard < DESCRIPTORS_MIN:
        return Finding(
            "descriptors", "limited", detail, f"raise RLIMIT_NOFILE to {DESCRIPTORS_MIN} for labs of 1000 guests"
        )
    return Finding("descriptors", "ok", detail)


def check_run_directory() -> Finding:
    """Can the run directory be made, is it private, and short enough for sockets?"""
    run_dir = RunDir.for_node("doctor-check")
    is_new = not run_dir.path.parent.exists()
    try:
        run_dir.create()
    except (VbnetError, OSError) as error:
        return Finding("run directory", "missing", str(error), "set VBNET_RUN_DIR to a short folder of your own")
    shutil.rmtree(run_dir.path)
    if is_new:
        run_dir.path.parent.rmdir()
    return Finding("run directory", "ok", str(run_dir.path.parent))


def check_tun() -> Finding:
    """Can TAP devices be made?"""
    name = str(privileges.TUN_DEVICE)
    obstacle = privileges.tun_obstacle()
    if obstacle is None:
        return Finding(name, "ok", "can be opened")
    return Finding(name, "limited", f"{obstacle.what}: no netns guests, no uplinks", obstacle.fix)


def check_namespaces() -> Finding:
    """Can network namespaces be made, as root or in a user namespace?"""
    found = privileges.examine()
    if found.has_net_admin and found.has_namespaces:
        return Finding("namespaces", "ok", "as root: netns guests and uplinks")
    if found.has_namespaces:
        return Finding("namespaces", "ok", "in user namespaces: netns guests; uplinks only to TAPs of your own")
    fix = "run as root, or: sysctl -w user.max_user_namespaces=10000 kernel.apparmor_restrict_unprivileged_userns=0"
    return Finding("namespaces", "limited", "not allowed: no netns guests", fix)


def check_programs() -> Finding:
    """Are the programs there that examples and tests run inside namespaces?"""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        fix = "apt-get install iproute2 iputils-ping curl iperf3 tcpdump"
        return Finding("programs", "limited", f"not found: {', '.join(absent)}", fix)
    return Finding("programs", "ok", ", ".join(PROGRAMS))


def check_peers() -> Finding:
    """Are the systems there that `vbnet bench` compares with?"""
    absent = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if absent:
        return Finding(
            "bench peers", "limited", f"not installed: {', '.join(absent)}", f"pip install {' '.join(absent)}"
        )
    return Finding("bench peers", "ok", ", ".join(PEERS))


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_libzmq,
    check_native,
    check_kernel,
    check_memfd,
    check_descriptors,
    check_run_directory,
    check_tun,
    check_namespaces,
    check_programs,
    check_peers,
)

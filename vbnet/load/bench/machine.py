"""The machine a figure was measured on: what it is, which cores there are, and who else uses them."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vbnet.errors import UnsupportedError

__all__ = ["CoreTimes", "Cores", "Machine", "core_times", "describe", "free_huge_pages", "process_ticks", "two_cores"]

_PROC = Path("/proc")
_SYS = Path("/sys/devices/system/cpu/cpu0/cache")
_BUSY_COLUMNS = (0, 1, 2, 5, 6)
"""user, nice, system, irq and softirq of a line of /proc/stat."""
_STEAL_COLUMN = 7


@dataclass(frozen=True, slots=True)
class Cores:
    """The two cores a bench uses: ``near`` runs the side that produces or asks, ``far`` the one that serves."""

    near: int
    far: int

    @property
    def pair(self) -> tuple[int, int]:
        """Both, for the native module."""
        return (self.near, self.far)

    @property
    def swapped(self) -> Cores:
        """The other way round."""
        return Cores(self.far, self.near)


class Machine(msgspec.Struct, frozen=True):
    """What must stand beside a figure for it to mean something."""

    processor: str
    cores: int
    is_virtual: bool
    caches: str
    memory_bytes: int
    huge_pages: int
    kernel: str
    python: str

    def __str__(self) -> str:
        where = "virtual machine" if self.is_virtual else "machine"
        return (
            f"{self.processor}, {self.cores} cores, {where}, {self.caches}, "
            f"{self.memory_bytes / (1 << 30):.0f} GiB, Linux {self.kernel}, Python {self.python}"
        )


def describe() -> Machine:
    """Describe this machine, from /proc and /sys; what cannot be read is ``unknown`` or 0."""
    fields = _fields(_PROC / "cpuinfo")
    memory = _fields(_PROC / "meminfo")
    return Machine(
        processor=" ".join(fields.get("model name", platform.machine() or "unknown").split()),
        cores=os.cpu_count() or 1,
        is_virtual="hypervisor" in fields.get("flags", "").split(),
        caches=_caches(),
        memory_bytes=_leading_int(memory.get("MemTotal", "0")) * 1024,
        huge_pages=_leading_int(memory.get("HugePages_Total", "0")),
        kernel=platform.release(),
        python=platform.python_version(),
    )


def free_huge_pages() -> int:
    """Huge pages that nobody uses right now."""
    return _leading_int(_fields(_PROC / "meminfo").get("HugePages_Free", "0"))


def two_cores() -> Cores:
    """Pick the two lowest cores this process may use.

    Raises:
        UnsupportedError: there is only one; these benches need one for each side.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:  # noqa: PLR2004 - one for each side
        raise UnsupportedError(
            f"a bench needs two cores, one a side; this process may use {allowed}. Widen its affinity (taskset).",
            cores=allowed,
        )
    return Cores(near=allowed[0], far=allowed[1])


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """What some cores did so far, in clock ticks."""

    busy: int
    steal: int


def core_times(cores: Cores) -> CoreTimes:
    """Read how long both cores were busy, and how long the hypervisor kept them from running."""
    wanted = {f"cpu{cores.near}", f"cpu{cores.far}"}
    busy = steal = 0
    for line in (_PROC / "stat").read_text().splitlines():
        name, *columns = line.split()
        if name in wanted:
            busy += sum(int(columns[index]) for index in _BUSY_COLUMNS)
            steal += int(columns[_STEAL_COLUMN])
    return CoreTimes(busy=busy, steal=steal)


def process_ticks(pid: int) -> int:
    """Clock ticks of processor time process ``pid`` used so far, children it reaped included; 0 when it is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The name in brackets may hold anything; what follows it starts with field 3.
    columns = text.rpartition(")")[2].split()
    return sum(int(column) for column in columns[11:15])


def _fields(path: Path) -> dict[str, str]:
    """First value of each ``name: value`` line."""
    found: dict[str, str] = {}
    try:
        text = path.read_text()
    except OSError:
        return found
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            found.setdefault(name.strip(), value.strip())
    return found


def _leading_int(text: str) -> int:
    digits = text.split(maxsplit=1)[:1]
    return int(digits[0]) if digits and digits[0].isdigit() else 0


def _caches() -> str:
    """For instance ``L1 48K, L2 2048K, L3 266240K``."""
    found = []
    for index in sorted(_SYS.glob("index*")):
        try:
            kind = (index / "type").read_text().strip()
            level, size = (index / "level").read_text().strip(), (index / "size").read_text().strip()
        except OSError:
            continue
        if kind != "Instruction":
            found.append(f"L{level} {size}")
    return ", ".join(found) or "caches unknown"

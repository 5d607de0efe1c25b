"""What is read from /proc: the machine, processor time, and what a process maps."""

import os

import pytest

from vbnet.cluster.plan import make_plan
from vbnet.cluster.topology import parse_topology
from vbnet.errors import UnsupportedError
from vbnet.load.bench.lab import memory_beyond_ram, topology
from vbnet.load.bench.machine import Cores, core_times, describe, process_ticks, two_cores

SMAPS = """\
7f0000000000-7f0000100000 rw-s 00000000 00:01 2049                       /memfd:vbnet-ram (deleted)
Size:               1024 kB
Pss:                 512 kB
Pss_Dirty:           512 kB
7f0000200000-7f0000300000 rw-p 00000000 00:00 0                          [heap]
Size:                300 kB
Pss:                 100 kB
7f0000400000-7f0000500000 r-xp 00000000 fe:00 123                        /usr/lib/libexample.so: odd
Size:                300 kB
Pss:                  28 kB
VmFlags: rd ex mr mw me
"""


def test_memory_of_guests_is_told_apart_from_their_ram() -> None:
    """The share of every mapping counts, except those of RAM regions."""
    assert 128 << 10 == memory_beyond_ram(SMAPS)


def test_this_machine_is_described() -> None:
    """Whatever the machine is, the line says it in words."""
    machine = describe()

    assert machine.cores >= 1
    assert machine.memory_bytes > 0
    assert machine.kernel in str(machine)


def test_processor_time_of_a_process_only_grows() -> None:
    """A process that runs has ticks; one that does not exist has none."""
    before = process_ticks(os.getpid())

    assert 0 <= before <= process_ticks(os.getpid())
    assert 0 == process_ticks(2**22 + 1)


def test_core_times_are_read_for_the_cores_asked_for() -> None:
    """Cores that do not exist have done nothing."""
    here = min(os.sched_getaffinity(0))

    assert core_times(Cores(here, here)).busy > 0
    assert 0 == core_times(Cores(99_998, 99_999)).busy


def test_one_core_is_too_few() -> None:
    """A bench says what it lacks and what to do, instead of measuring two sides on one core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        with pytest.raises(UnsupportedError, match="two cores"):
            two_cores()
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("is_packed", [False, True])
def test_the_labs_that_are_measured_are_valid(is_packed: bool) -> None:
    """The lab file of ``idle`` and ``launch`` passes the same checks as anybody's."""
    plan = make_plan(parse_topology(topology("bench", 1000, is_packed=is_packed)))

    assert 1000 == len(list(plan.guests))
    assert (1 if is_packed else 1000) == len(plan.processes)

"""Many guests at once: sixty-four processes that all talk, a thousand small IP hosts in one process that all answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.machine import Machine
from tests.support.real_lab import RealLab, real_lab
from tests.support.waiting import eventually
from vbnet.cluster import process

PROCESSES = 64
HOSTS = 1000
RING = f"""
name: t
switches: {{lan: }}
guests:
  ring:
    kind: python
    count: {PROCESSES}
    run: "ring_guest.py:main"
    nics: [{{switch: lan}}]
    env: {{COUNT: {PROCESSES}}}
"""
CROWD = f"""
name: t
switches: {{lan: }}
guests:
  host-of-many: {{kind: stack, count: {HOSTS}, nics: [{{switch: lan, ip: 10.20.0.1/16}}]}}
  look: {{kind: netns, nics: [{{switch: lan, ip: 10.20.200.1/16}}]}}
"""
# The kernel's neighbour table has little more than a thousand places for all namespaces: it is emptied now and then.
PING_ALL = """
printf '%s\\n' "$@" | xargs -P 8 -n 1 ping -n -c 1 -W 15 | grep -o '^64 bytes from [0-9.]*'
ip neigh flush all
"""
AT_ONCE = 250
RING_GUEST = (Path(__file__).parents[1] / "support" / "ring_guest.py").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _nothing_left(no_leaked_processes: None, no_leaked_links: None) -> None:
    """Every test here ends with nothing running."""


@pytest.fixture
def crowd() -> Iterator[RealLab]:
    """A thousand small IP hosts, and a namespace that looks at them."""
    with Machine() as machine, real_lab(CROWD, machine.prefix) as lab:
        yield lab


@pytest.mark.slow
def test_sixty_four_processes_all_talk_at_once() -> None:
    """All are ready and alive together, then each exchanges full-length frames with both neighbours."""
    with real_lab(RING, files={"ring_guest.py": RING_GUEST}) as lab:
        rows = lab.rows("ps")
        heard = [f"ring-{number} heard all" for number in range(PROCESSES)]

        def all_heard() -> bool:
            said = sorted(line for log in lab.logs("ring-") for line in log.splitlines())
            assert not [line for line in said if "heard" not in line]
            return sorted(heard) == said

        eventually(all_heard, "every guest heard all rounds")
        assert {"ready"} == {row["state"] for row in rows}
        assert PROCESSES == len({row["pid"] for row in rows})
        assert all(process.identify(row["pid"]) for row in rows)
        assert {} == lab.counted("drop")


@pytest.mark.slow
@pytest.mark.usefixtures("namespaces", "tun_device")
def test_a_thousand_packed_hosts_all_answer(crowd: RealLab, program: Callable[[str], str]) -> None:
    """Every single one answers the kernel's ARP and ping, and all of them live in one process."""
    program("ping")
    rows = [row for row in crowd.rows("ps") if row["kind"] == "stack"]
    addresses = [row["ip"][0].partition("/")[0] for row in rows]

    answers = [
        line.rpartition(" ")[2]
        for start in range(0, HOSTS, AT_ONCE)
        for line in crowd.inside("look", "sh", "-c", PING_ALL, "sh", *addresses[start : start + AT_ONCE]).splitlines()
    ]

    assert HOSTS == len(set(addresses))
    assert {("ready", rows[0]["pid"])} == {(row["state"], row["pid"]) for row in rows}
    assert sorted(addresses) == sorted(answers)

"""A guest that serves one signal, made from docs/wire alone; it joins the bus as ``stranger.py`` beside it does.

Usage: ``stranger_intc.py RUN_DIR BUS``. It lays eight levels out, takes the first interrupt controller into use, makes
a signal ``knock`` of priority 5 and says ``ready``, sleeps until it is raised, takes it, prints vector and priority,
ends the interrupt, and leaves when its standard input ends.
"""

import importlib.util
import mmap
import os
import select
import struct
import sys
import time
from pathlib import Path
from typing import Any

LEVEL_BYTES, SIGNAL, LEVELS, FIRST, RAM_BYTES = 0x800, 0x180, 8, 0x1000, 0x10000
IN_SERVICE, SINCE, SERVED, SUMMARY, PENDING, MASK = 0x80, 0x88, 0x90, 0x100, 0x400, 0x600
ENABLED, DIRTY = SIGNAL + 0x180, SIGNAL + 0x200
START, CREATE = 0, 3
PRIORITY, VECTOR, PATIENCE_S = 5, 777, 10.0


def joined() -> Any:
    """Load ``stranger.py``, which knows sockets, memory and messages."""
    spec = importlib.util.spec_from_file_location("stranger", Path(__file__).with_name("stranger.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Level:
    """One priority of our only vCPU, of which we are the taker.

    Python has no atomic operations on shared memory, which those on ``summary`` and ``pending`` have to be. Plain loads
    and stores do here because the one signal is raised once: when its summary bit is there, the host has made its last
    change.
    """

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self.memory, self.offset, self.arming = memory, offset, 0
        struct.pack_into("<4sI", memory, offset, b"vINT", 1)
        struct.pack_into("<4sI", memory, offset + SIGNAL, b"vSIG", 2)

    def get(self, form: str, at: int) -> int:
        """Read a word."""
        (word,) = struct.unpack_from("<" + form, self.memory, self.offset + at)
        return int(word)

    def put(self, form: str, at: int, value: int) -> None:
        """Write a word."""
        struct.pack_into("<" + form, self.memory, self.offset + at, value)

    def take(self) -> list[int]:
        """Take everything that is pending and not masked."""
        if not (summary := self.get("Q", SUMMARY)):
            return []
        self.put("Q", SUMMARY, 0)
        found = []
        for word in (word for word in range(64) if summary >> word & 1):
            bits = self.get("Q", PENDING + 8 * word) & ~self.get("Q", MASK + 8 * word)
            self.put("Q", PENDING + 8 * word, self.get("Q", PENDING + 8 * word) & ~bits)
            found += [64 * word + bit for bit in range(64) if bits >> bit & 1]
        return found

    def wait(self, call: int, fence: Any) -> list[int]:
        """Sleep until something is pending, and take it."""
        while True:
            seen = self.get("I", DIRTY)
            if found := self.take():
                return found
            self.arming += 1
            self.put("I", ENABLED, self.arming)
            fence()
            if self.get("I", DIRTY) == seen:
                assert select.select([call], [], [], PATIENCE_S)[0], "nothing came"
                os.read(call, 8)
            self.put("I", ENABLED, 0)

    def serve(self, vector: int, now_ns: int) -> None:
        """Print the vector, between the beginning and the end of the interrupt."""
        self.put("Q", SINCE, now_ns)
        self.put("I", IN_SERVICE, vector + 1)
        print(vector, PRIORITY, flush=True)  # noqa: T201 - its answer
        self.put("Q", SERVED, self.get("Q", SERVED) + 1)
        self.put("I", IN_SERVICE, 0)


def main(run_dir: str, bus: str) -> None:
    """Live one guest's life."""
    stranger = joined()
    host = stranger.Host(run_dir)
    ram, memory = stranger.new_ram()
    token, *_rest = host.ask(host.HELLO, "stranger", bus, os.getpid(), "stranger", 1, 1)
    host.hand_over(token, ram)
    host.ask(host.READY)
    [dev_id] = [dev_id for dev_id, abi_type, _name in host.devices if abi_type == "interrupt-controller"]

    handle = host.ask(host.OPEN, dev_id, 1)
    levels = [Level(memory, FIRST + LEVEL_BYTES * number) for number in range(LEVELS)]
    calls = []
    for number, level in enumerate(levels):
        signal = host.ask(host.SHM, handle, number, level.offset, LEVEL_BYTES, 0, SIGNAL, number, number)
        calls.append(host.take_signal(signal)[1])
    host.ask(host.CALL, handle, START, struct.pack("<I", 1), 0)
    host.ask(host.CALL, handle, CREATE, struct.pack("<III", PRIORITY, 0, VECTOR) + b"knock", 0)
    print("ready", flush=True)  # noqa: T201 - its answer

    for vector in levels[PRIORITY].wait(calls[PRIORITY], stranger.fence):
        levels[PRIORITY].serve(vector, time.clock_gettime_ns(time.CLOCK_MONOTONIC))
    sys.stdin.read()
    host.tell(host.BYE)
    host.bus.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
    assert not any(name.partition(".")[0] == "vbnet" for name in sys.modules), "a stranger knows no vbnet"

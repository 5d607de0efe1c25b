"""Eight guests raise signals of priority 0 faster than their target serves them; one asks for an answer meanwhile.

The target works for a millisecond on each signal of the flood. A question of priority 0 waits until it is its turn; one
of priority 7 is answered by another thread, in the middle of that work.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

from vbnet import Guest
from vbnet.devices.intc.driver import Doorbell, Intc
from vbnet.errors import NotFoundError, NotPermittedError

FLOODERS = 8
WORK_S = 0.001
PAUSE_S = 0.001
PATIENCE_S = 20.0
RINGS_BETWEEN_LOOKS = 100


def target(guest: Guest) -> int:
    """Serve the flood and the questions until the asker has had enough."""
    intc = guest.bind("intc0")
    over = threading.Event()

    def offer(name: str, to: str, priority: int, handler: Callable[[], object]) -> None:
        signal = guest.run(intc.create(name, handler, priority=priority))
        guest.run(signal.grant(to))

    for number in range(FLOODERS):
        offer(f"flood-{number}", f"flood-{number}", 0, lambda: time.sleep(WORK_S))
    answer = connected(guest, intc, "asker/answer")
    offer("urgent", "asker", 7, answer.ring)
    offer("plain", "asker", 0, answer.ring)
    offer("over", "asker", 7, over.set)
    return 0 if over.wait(PATIENCE_S) else 1


def flood(guest: Guest) -> int:
    """Ring again and again, until the target has left."""
    intc = guest.bind("intc0")
    bell = connected(guest, intc, f"target/{guest.name}")
    while is_there(guest, intc, f"target/{guest.name}"):
        for _ in range(RINGS_BETWEEN_LOOKS):
            bell.ring()
            time.sleep(PAUSE_S)
    return 0


def ask(guest: Guest) -> int:
    """Ask so many times at each priority, and tell how long the answers took."""
    intc = guest.bind("intc0")
    answered = threading.Event()
    answer = guest.run(intc.create("answer", answered.set, priority=7))
    guest.run(answer.grant("target"))
    lines = []
    for name, priority in (("urgent", 7), ("plain", 0)):
        bell = connected(guest, intc, f"target/{name}")
        took_ms = []
        for _ in range(int(os.environ["ROUNDS"])):
            answered.clear()
            before_ns = time.monotonic_ns()
            bell.ring()
            if not answered.wait(PATIENCE_S):
                return 1
            took_ms.append((time.monotonic_ns() - before_ns) / 1e6)
        lines.append(f"priority {priority}: median {statistics.median(took_ms):6.2f} ms, worst {max(took_ms):6.2f} ms")
    print("\n".join(lines), flush=True)
    if os.environ["RESULT"]:
        Path(os.environ["RESULT"]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    over = connected(guest, intc, "target/over")
    while is_there(guest, intc, "target/over"):
        over.ring()
        time.sleep(PAUSE_S)
    return 0


def connected(guest: Guest, intc: Intc, name: str) -> Doorbell:
    """Connect to another guest's signal, as soon as it is there and granted."""
    while True:
        try:
            return guest.run(intc.connect(name))
        except (NotFoundError, NotPermittedError):
            time.sleep(PAUSE_S)


def is_there(guest: Guest, intc: Intc, name: str) -> bool:
    """Say whether a signal that this guest was granted still exists."""
    try:
        bell = guest.run(intc.connect(name))
    except NotFoundError:
        return False
    guest.run(bell.close())
    return True

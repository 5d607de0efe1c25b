"""A counter of a post office: people come, wait and are served, and all of that is counted.

The names are this program's own. Prometheus sees them beside everything that vbnet counts, with the guest's name.
"""

import os
import random
import threading

from vbnet import Guest

TURN_S = 0.05
QUEUE_MAX = 5
COMES, IS_SERVED, GIVES_UP = 0.7, 0.6, 0.2
pause = threading.Event()


def serve(guest: Guest) -> int:
    """Serve whoever comes, until the lab is taken down."""
    served = guest.counters.counter("served", unit="people", help="People served.")
    left = {
        reason: guest.counters.counter("left", unit="people", help="People not served.", fixed={"reason": reason})
        for reason in ("queue_too_long", "impatient")
    }
    queue = guest.counters.gauge("queue", unit="people", help="People who wait now.")
    chance = random.Random(os.environ["SEED"])  # noqa: S311 - people are no secret
    while not pause.wait(TURN_S):
        if chance.random() < COMES:
            if queue.value < QUEUE_MAX:
                queue.set(queue.value + 1)
            else:
                left["queue_too_long"].add()
        if queue.value and chance.random() < IS_SERVED:
            queue.set(queue.value - 1)
            served.add()
        elif queue.value and chance.random() < GIVES_UP:
            queue.set(queue.value - 1)
            left["impatient"].add()
    return 0

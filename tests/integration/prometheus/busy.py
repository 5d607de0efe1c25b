"""Guests that use one of everything until they are ended, so that every counter has an owner."""

import threading
from contextlib import suppress

from vbnet import Guest
from vbnet.errors import NotFoundError, NotPermittedError

PERIOD_S = 0.005
pause = threading.Event()


def alice(guest: Guest) -> int:
    """Name a signal that Bob may ring, keep timers, publish a state, be scheduled, use virtio devices."""
    bell = guest.run(guest.bind("intc0").create("bell", lambda: None, priority=3))
    guest.run(bell.grant("bob"))
    timers = guest.bind("timer0")
    page = guest.run(guest.bind("publish0").publisher(0))
    disk, console, rng = guest.disk("disk0"), guest.bind("console0"), guest.bind("rng0")
    steps = guest.counters.counter("steps", help="Steps of Alice's loop.")
    last = guest.counters.gauge("last_step", help="The last of them.", unit="steps")
    step = 0
    with guest.bind("sched0").thread("batch"):
        while True:
            step += 1
            steps.add()
            last.set(step)
            page.publish(step=step)
            disk.seek(0)
            disk.write(disk.read(512))
            disk.flush()
            console.write(rng.read(16))
            timers.wait(timers.arm(PERIOD_S), 1.0)


def bob(guest: Guest) -> int:
    """Ring Alice's bell, and call a device through memory."""
    intc, echo = guest.bind("intc0"), guest.open("echo0")
    bell = None
    while True:
        with suppress(NotFoundError, NotPermittedError):
            bell = bell or guest.run(intc.connect("alice/bell"))
        if bell is not None:
            bell.ring()
        echo.fastcall(0, b"hello")
        pause.wait(PERIOD_S)


def deaf(guest: Guest) -> int:
    """Have a NIC, and never take what comes."""
    guest.nic("eth0")
    while not pause.wait(1.0):
        pass
    return 0

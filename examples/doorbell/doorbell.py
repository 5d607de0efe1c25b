"""A doorbell between two guests, and one that ends in a program which knows nothing of vbnet.

Bob waits until Alice has left: what a guest rings last is lost if it ends before the host has looked.
"""

import os
import subprocess
import sys
import threading
import time

from vbnet import Guest
from vbnet.devices.intc.driver import Doorbell, Intc
from vbnet.errors import NotFoundError, NotPermittedError

PATIENCE_S = 20.0
PAUSE_S = 0.01


def alice(guest: Guest) -> int:
    """Name two signals, let Bob ring them, and hand one of them to a program as an eventfd."""
    intc = guest.bind("intc0")
    heard = threading.Event()
    bell = guest.run(intc.create("bell", heard.set, priority=3))
    mail = guest.run(intc.create("mail", lambda: None))
    fd = guest.run(mail.export())
    program = subprocess.Popen([sys.executable, "waiter.py", str(fd)], pass_fds=[fd])  # noqa: S603 - our own
    os.close(fd)
    for signal in (bell, mail):
        guest.run(signal.grant("bob"))

    if not heard.wait(PATIENCE_S):
        program.kill()
        return 1
    print("alice: somebody rings", flush=True)
    return program.wait(PATIENCE_S)


def bob(guest: Guest) -> int:
    """Ring both."""
    intc = guest.bind("intc0")
    for name in ("alice/bell", "alice/mail"):
        bell = connected(guest, intc, name)
        bell.ring()
    while is_there(guest, intc, "alice/bell"):
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

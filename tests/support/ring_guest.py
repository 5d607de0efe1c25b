"""A Python guest among many: it talks to the next one by number and listens to the one before.

Each round it sends one frame to the next and waits for that round's frame from the one before, so nobody is ever more
than one round ahead, and no ring can fill. It says ``heard`` when all rounds are through, and stays.
"""

import os
import signal
import time

from vbnet import Guest
from vbnet.cluster.topology import derive_mac

ETHERTYPE = bytes.fromhex("88b5")
ROUNDS = 20
LENGTH_BYTES = 1514
WAIT_S = 40.0


def station(number: int) -> bytes:
    """Return the MAC address that the lab gives to a guest."""
    return bytes.fromhex(derive_mac("t", f"ring-{number}", "eth0").replace(":", ""))


def frame(number: int, to: int, turn: int) -> bytes:
    """Return the frame of a round, as long as Ethernet allows."""
    text = f"round {turn} from {number} to {to};".encode()
    return (station(to) + station(number) + ETHERTYPE + text * 100)[:LENGTH_BYTES]


def main(guest: Guest) -> int:
    """Exchange all rounds with both neighbours."""
    count = int(os.environ["COUNT"])
    number = int(guest.name.rpartition("-")[2])
    nic = guest.nic("eth0")
    deadline = time.monotonic() + WAIT_S
    heard: list[bytes] = []
    for turn in range(ROUNDS):
        nic.send([frame(number, (number + 1) % count, turn)], WAIT_S)
        while len(heard) <= turn:
            if time.monotonic() > deadline:
                print(f"{guest.name} waited in vain in round {turn}", flush=True)  # noqa: T201 -- the guest's log
                return 1
            heard += [got for got in nic.recv(32, 1.0) if got[:6] == station(number)]
    expected = [frame((number - 1) % count, number, turn) for turn in range(ROUNDS)]
    print(f"{guest.name} heard {'all' if expected == heard else 'something else'}", flush=True)  # noqa: T201 -- the guest's log
    signal.pause()
    return 0

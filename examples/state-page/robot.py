"""A robot that tells where it is, and a watcher that looks whenever it likes: neither waits for the other.

python robot.py drive STEPS    publishes a position for each step, then leaves
python robot.py watch          prints the position it finds, until the robot is gone
"""

import math
import sys
import threading

from vbnet import Guest

PERIOD_S = 0.001
ROUNDING = 1e-9
pause = threading.Event()


def drive(steps: int) -> None:
    """Go round in a circle of radius 1, one degree a step."""
    with Guest("robot", "plant") as guest:
        position = guest.run(guest.bind("publish0").publisher(0))
        for step in range(1, steps + 1):
            angle = math.radians(step)
            position.publish(x=math.cos(angle), y=math.sin(angle), step=step)
            pause.wait(PERIOD_S)


def watch() -> None:
    """Look at the robot now and then; whatever is seen is one position, never half of two."""
    with Guest("watcher", "plant") as guest:
        position = guest.run(guest.bind("sample0").sampler(0))
        while (seen := position.sample()) is None or seen.is_alive:
            if seen is not None and abs(math.hypot(seen.x, seen.y) - 1) > ROUNDING:
                raise SystemExit(f"the robot is nowhere: {seen}")
            pause.wait(20 * PERIOD_S)
        print(f"the robot left after step {seen.step}", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "drive":
        drive(int(sys.argv[2]))
    else:
        watch()

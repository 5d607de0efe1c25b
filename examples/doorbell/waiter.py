"""An ordinary program that waits for an eventfd; its number is the only argument."""

import os
import select
import sys

PATIENCE_S = 20.0

if __name__ == "__main__":
    fd = int(sys.argv[1])
    rung, _, _ = select.select([fd], [], [], PATIENCE_S)
    if not rung:
        sys.exit(1)
    os.eventfd_read(fd)
    print("program: the eventfd was rung", flush=True)

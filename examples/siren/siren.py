"""An ordinary program that waits for an eventfd, whose number is in its environment."""

import os
import select
import sys

PATIENCE_S = 20.0

if __name__ == "__main__":
    fd = int(os.environ["VBNET_SIGNAL_FD"])
    raised, _, _ = select.select([fd], [], [], PATIENCE_S)
    if not raised:
        sys.exit(1)
    os.eventfd_read(fd)
    print("siren: alarm", flush=True)

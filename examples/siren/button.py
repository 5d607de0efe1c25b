"""An ordinary program that presses a button: it writes to an eventfd that it handed to the command it was given."""

import os
import signal
import subprocess
import sys

if __name__ == "__main__":
    fd = os.eventfd(0)
    command = [*sys.argv[1:], "--fd", str(fd)]
    with subprocess.Popen(command, pass_fds=[fd], stdout=subprocess.PIPE, text=True) as drive:  # noqa: S603 - the user's
        if drive.stdout is not None and drive.stdout.readline():
            os.eventfd_write(fd, 1)
            print("button: pressed", flush=True)
            drive.send_signal(signal.SIGINT)
    sys.exit(drive.returncode not in {-signal.SIGINT, 130})

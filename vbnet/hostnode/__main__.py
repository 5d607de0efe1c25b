"""``python -m vbnet.hostnode`` runs a host node in this process."""

import sys

from vbnet.hostnode.process import main

if __name__ == "__main__":
    sys.exit(main())

"""What nodes count, read from outside: named values of the counters files in a run directory."""

from vbnet.telemetry.counted import Counted, read_counted

__all__ = ["Counted", "read_counted"]

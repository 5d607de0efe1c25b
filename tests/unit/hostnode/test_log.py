"""A log that cannot be flooded."""

from vbnet.hostnode.log import LimitedLog
from vbnet.testing import ListLog, ManualClock


def test_a_flood_is_cut_and_counted() -> None:
    """A burst passes, the rest is left out, and the next line that passes says how many were."""
    kept, clock = ListLog(), ManualClock()
    log = LimitedLog(kept, clock)

    for _ in range(120):
        log.warning("guest_fault", guest="a")
    log.warning("other")
    clock.advance(1)
    log.warning("guest_fault", guest="a")

    assert (len(kept.lines), kept.lines[-1][2]) == (22, {"guest": "a", "left_out": 100})

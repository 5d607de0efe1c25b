"""What a run tells those who watch its lab: events of the host node, and figures in a counters file of its own.

The file lies beside those of the guests, is read like them by exporters and ``vbnet metrics``, and goes with the lab.
"""

from __future__ import annotations

import time
from typing import Final

from vbnet.bus.rundir import RunDir
from vbnet.hostnode.rows import open_row
from vbnet.sharedmem import CounterFile
from vbnet.telemetry.runs import RUN

__all__ = ["RunFigures"]

_FILE_BYTES: Final = 4096
_NAME: Final = ".run"
"""No process of a lab is called so."""


class RunFigures:
    """Figures of one run, for as long as its lab is up.

    Args:
        run_dir: of the lab's host node.
        run: ``load``, ``soak`` or ``bakeoff``.
        profile: its name.
        planned_s: how long it is to be.
        planned_faults: how many faults it is to do.
    """

    def __init__(self, run_dir: RunDir, run: str, profile: str, planned_s: float, planned_faults: int = 0) -> None:
        self._file: CounterFile | None = CounterFile.create(run_dir.process_counters(_NAME), _FILE_BYTES)
        self._row = open_row(RUN, {"run": run, "profile": profile}, self._file)
        self._row.set("planned", int(planned_s * 1000))
        self._row.set("planned_faults", planned_faults)
        self._now("began")

    def went_on(self, elapsed_s: float) -> None:
        """It is so far now."""
        self._row.set("elapsed", max(0, int(elapsed_s * 1000)))

    def fault(self, kind: str) -> None:
        """A fault is being done."""
        self._row.add(f"fault_{kind}")
        self._now("fault")

    def found(self, invariant: str) -> None:
        """Something was found that must not be."""
        self._row.add(f"found_{invariant}")

    def ended(self) -> None:
        """It is over; the figures stay until the lab is down."""
        self._now("ended")

    def close(self) -> None:
        """Give the file back."""
        self._row.close()
        self._file = None

    def _now(self, name: str) -> None:
        self._row.set(name, int(time.time() * 1000))

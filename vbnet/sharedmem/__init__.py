"""Memory two processes share: regions, counters, histograms. The layouts and the code that runs on them are native.

The guest makes and owns its RAM; the host maps it after checking seals, size and header. Counters are files anybody may
read while, and after, their writer lives. Bytes are pinned in ``docs/wire/``.
"""

from vbnet._native import (
    FAULT_REASONS,
    CounterBlock,
    CounterFile,
    Ram,
    View,
    histogram_bounds,
    histogram_quantile,
    wire_table,
)
from vbnet.sharedmem.snapshot import BlockSnapshot, read_blocks

__all__ = [
    "FAULT_REASONS",
    "BlockSnapshot",
    "CounterBlock",
    "CounterFile",
    "Ram",
    "View",
    "histogram_bounds",
    "histogram_quantile",
    "read_blocks",
    "wire_table",
]

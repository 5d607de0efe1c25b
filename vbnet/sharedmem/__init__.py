"""Memory two processes share: regions, state pages, counters, histograms. Layouts and what runs on them are native.

The guest makes and owns its RAM; the host maps it after checking seals, size and header. Counters are files anybody may
read while, and after, their writer lives. Bytes are pinned in ``docs/wire/``.
"""

from vbnet._native import (
    FAULT_REASONS,
    CounterBlock,
    CounterFile,
    Page,
    Ram,
    StatePublisher,
    StateRoll,
    StateSampler,
    View,
    histogram_bounds,
    histogram_quantile,
    wire_table,
)
from vbnet.sharedmem.snapshot import BlockSnapshot, read_blocks
from vbnet.sharedmem.state import Schema, StatePage

__all__ = [
    "FAULT_REASONS",
    "BlockSnapshot",
    "CounterBlock",
    "CounterFile",
    "Page",
    "Ram",
    "Schema",
    "StatePage",
    "StatePublisher",
    "StateRoll",
    "StateSampler",
    "View",
    "histogram_bounds",
    "histogram_quantile",
    "read_blocks",
    "wire_table",
]

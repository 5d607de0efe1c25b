"""``vbnet bench``: how fast this is, beside how fast it could be, in one run on one machine.

Figures alone say little: processors differ, and a virtual machine's wander. So every figure stands beside a baseline
that was measured in turn with it, on the same two cores, in the same placement: the bare limit built into the native
module, and what others use for the same work, when it is installed. ``docs/performance.md`` tells the method and the
findings.

    from vbnet.load import bench
    rows = bench.run(["ring"], quick=True)

The benches are loaded on first use: a side process imports this package too, and must come up quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vbnet.load.bench.row import Row
    from vbnet.load.bench.runner import list_benches, main, run

__all__ = ["Row", "list_benches", "main", "run"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is exported
    """Load what is exported on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vbnet.load.bench import row, runner  # noqa: PLC0415 - loaded on first use

    return row.Row if name == "Row" else getattr(runner, name)

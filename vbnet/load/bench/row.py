"""One line of a bench's result: a figure, the figure it is held against, and where the processors were meanwhile."""

from __future__ import annotations

import msgspec

from vbnet.load.bench.summary import Summary, Wanted
from vbnet.load.bench.turns import BUSY, MOVED

__all__ = ["Row"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A measured figure beside its baseline.

    Args:
        name: the bench, for instance ``ring``.
        params: what was measured in particular (frame bytes, batch, slots, …).
        value: the median, in ``unit``.
        unit: ``frames/s``, ``ns``, ``s``, ``bytes``, ``% of one core``, ``objects/s``, ``calls/s`` or
            ``bits/s``.
        samples: all samples of the subject in four numbers, in ``unit``.
        placement: ``near``, ``far``, ``hyper-threads``; ``moved`` when the processors wandered in every try, with
            ``, busy`` behind it when other programs used the cores; ``-`` where it does not matter.
        baseline: what it is held against; ``None``: nothing.
        baseline_value: the baseline's median, in ``unit``, measured in turn with the subject.
        baseline_samples: all samples of the baseline.
        ratio: ``value / baseline_value``.
        wanted: what ``ratio`` (or ``value``, without a baseline) must reach; ``None``: told for information.
        is_reached: whether it does; ``None``: nothing is wanted, or the run was disturbed and is not judged.
        note: why a baseline is missing, or what else a reader must know.
    """

    name: str
    params: dict[str, str | int | float]
    value: float
    unit: str
    samples: Summary
    placement: str
    baseline: str | None = None
    baseline_value: float | None = None
    baseline_samples: Summary | None = None
    ratio: float | None = None
    wanted: Wanted | None = None
    is_reached: bool | None = None
    note: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        params: dict[str, str | int | float],
        unit: str,
        samples: Summary,
        placement: str,
        *,
        baseline: tuple[str, Summary] | None = None,
        wanted: Wanted | None = None,
        note: str = "",
    ) -> Row:
        """Build a row from the samples of the subject and of what it is held against."""
        held_against, other = baseline if baseline is not None else (None, None)
        ratio = None if other is None or other.median == 0 else samples.median / other.median
        figure = samples.median if baseline is None else ratio
        is_doubtful = MOVED in placement or BUSY in placement
        return cls(
            name=name,
            params=params,
            value=samples.median,
            unit=unit,
            samples=samples,
            placement=placement,
            baseline=held_against,
            baseline_value=None if other is None else other.median,
            baseline_samples=other,
            ratio=ratio,
            wanted=wanted,
            is_reached=None if wanted is None or figure is None or is_doubtful else wanted.is_reached_by(figure),
            note=note,
        )

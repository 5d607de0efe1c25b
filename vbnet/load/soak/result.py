"""What a soak found out: windows, samples, findings, verdicts. All of it is written as it happens, and read again.

A *window* is a time of load between two rests. It is calm, or it has one fault; what went missing in a window with a
fault is that fault's, what went missing in a calm one is nobody's and must not be.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vbnet.load.bench.machine import Machine
from vbnet.load.counting import Counts
from vbnet.load.result import Outcome, Sample, Verdict
from vbnet.load.soak.figures import ProcessFigures
from vbnet.load.soak.schedule import Fault

__all__ = ["DriftVerdict", "Finding", "InvariantVerdict", "Mark", "SoakResult", "SoakSample", "Window"]


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A fault as it was done.

    Attributes:
        fault: as it was planned.
        at_s: when, in seconds of the soak's clock; later than planned when one before took long to be over.
        clock: the same as ISO 8601.
        after_s: seconds from its end until what it had broken worked again; None: it never did.
    """

    fault: Fault
    at_s: float
    clock: str
    after_s: float | None = None


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that must not be.

    Attributes:
        what: which invariant it breaks, one of :data:`vbnet.load.soak.verdicts.INVARIANTS`.
        detail: one sentence.
        at_s: when it was found, in seconds of the soak's clock.
    """

    what: str
    detail: str
    at_s: float


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A time of load between two rests.

    Attributes:
        part: how often the soak had been gone on with before.
        number: in its part.
        kind: ``warm-up``, ``calm`` or ``fault``.
        begin_s, end_s: in seconds of the soak's clock, the rest at its end included.
        seconds: how long load was sent.
        counts: what all guests counted.
        lost: frames sent that did not arrive.
        dropped: frames that ports did not take on or did not give, by direction and reason.
        figures: as of a load run.
        mark: its fault.
        findings: what must not be.
        unjudged: of switches, why their counters could not be compared.
        is_cut: the run ended in the middle of it.
    """

    part: int
    number: int
    kind: str
    begin_s: float
    end_s: float
    seconds: float
    counts: Counts
    lost: int
    dropped: dict[str, int] = {}
    figures: dict[str, float] = {}
    mark: Mark | None = None
    findings: list[Finding] = []
    unjudged: dict[str, str] = {}
    is_cut: bool = False


class SoakSample(Sample, frozen=True, kw_only=True):
    """One interval: as a load run's, with what processes held at its end.

    Attributes:
        part, window: whose it is.
        kind: of that window.
        processes: by name; not in every sample, as looking costs something.
    """

    part: int
    window: int
    kind: str
    processes: dict[str, ProcessFigures] = msgspec.field(default_factory=dict)


class DriftVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether something drifted.

    Attributes:
        what: one of :data:`vbnet.load.soak.profile.DRIFTS`. whose: the process, or ``lab``.
        level: its median. per_hour: growth in an hour, between ``low`` and ``high`` with a confidence of 99 %.
        growth: over the longest stretch, ``span_s``.
        tolerated_per_hour, tolerated: what growth may be; shares are of the level.
        points: how many were looked at.
        holds: None: there was too little to say.
    """

    what: str
    whose: str
    level: float | None = None
    per_hour: float | None = None
    low: float | None = None
    high: float | None = None
    growth: float | None = None
    span_s: float = 0.0
    tolerated_per_hour: float
    tolerated: float
    points: int
    holds: bool | None


class InvariantVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an invariant held: how often it was broken, and the first time."""

    what: str
    meaning: str
    broken: int
    first: str = ""

    @property
    def holds(self) -> bool:
        """Whether it was never broken."""
        return self.broken == 0


class SoakResult(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a soak found out.

    Attributes:
        profile: the profile's keys. seed: what schedule and load followed from.
        began, ended: when, as ISO 8601; a soak that was gone on with began when its first part did.
        vbnet, machine: what ran on what.
        outcome: how it ended: ``finished``, ``interrupted`` or ``broken``.
        parts: how often it was begun or gone on with.
        planned_s, elapsed_s: of the soak's clock.
        planned_faults: how many the schedule has.
        invariants, drifts, thresholds: verdicts.
        findings: each thing that must not be, the first hundred.
        windows, samples: as they were written.
    """

    profile: dict[str, Any]
    seed: int
    began: str
    ended: str
    vbnet: str
    machine: Machine
    outcome: Outcome
    parts: int
    planned_s: float
    elapsed_s: float
    planned_faults: int
    invariants: list[InvariantVerdict]
    drifts: list[DriftVerdict]
    thresholds: list[Verdict]
    findings: list[Finding]
    windows: list[Window]
    samples: list[SoakSample]

    @property
    def failed(self) -> list[str]:
        """What does not hold, in words."""
        return [
            *(f"{verdict.what} ({verdict.broken})" for verdict in self.invariants if not verdict.holds),
            *(f"{verdict.what} of {verdict.whose} drifts" for verdict in self.drifts if verdict.holds is False),
            *(verdict.threshold for verdict in self.thresholds if not verdict.holds),
        ]

    @property
    def is_good(self) -> bool:
        """Whether it ran to its end and everything holds."""
        return self.outcome.state == "finished" and not self.failed

    @property
    def marks(self) -> list[Mark]:
        """Every fault that was done to its end."""
        return [window.mark for window in self.windows if window.mark is not None and not window.is_cut]

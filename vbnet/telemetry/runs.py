"""What a run counts about itself, written by the lab's supervisor in a file beside those of the guests."""

from __future__ import annotations

from typing import Final

from vbnet.metric import Metric, MetricBlock, MetricKind

__all__ = ["BLOCKS", "FAULT_KINDS", "INVARIANTS", "RUN"]

FAULT_KINDS: Final = ("kill", "restart", "stop", "slow", "link-down", "unplug", "hot-plug", "reroute")
"""Kinds of fault that a soak may do (:mod:`vbnet.load.soak.faults` does them)."""

INVARIANTS: Final = (
    "corrupted",
    "duplicates",
    "misdelivered",
    "lost",
    "conservation",
    "recovery",
    "unasked",
    "left-behind",
)
"""What a soak may find broken (:mod:`vbnet.load.soak.verdicts` says what each means)."""

_GAUGE: Final = MetricKind.GAUGE
_MILLISECONDS: Final = 1000


def _moment(name: str, explanation: str) -> Metric:
    return Metric(f"vbnet_run_{name}_timestamp_seconds", "seconds", explanation, _GAUGE, per_unit=_MILLISECONDS)


def _length(name: str, explanation: str) -> Metric:
    return Metric(f"vbnet_run_{name}_seconds", "seconds", explanation, _GAUGE, per_unit=_MILLISECONDS)


RUN: Final = MetricBlock(
    "run",
    ("run", "profile"),
    {
        "began": _moment("began", "When a load or soak run, or a bake-off, began to send, or went on."),
        "ended": _moment("ended", "When it ended; 0 until then."),
        "fault": _moment("fault", "When its last fault was done; 0 until then."),
        "planned": _length("planned", "How long it is to be, warm-up included."),
        "elapsed": _length(
            "elapsed", "How far it is, at its last interval; what it did before it was gone on with counts."
        ),
        "planned_faults": Metric("vbnet_run_planned_faults", "faults", "Faults of its schedule.", _GAUGE),
        **{
            f"fault_{kind}": Metric(
                "vbnet_run_faults_total",
                "faults",
                "Faults that it has done since it began or went on.",
                fixed={"kind": kind},
            )
            for kind in FAULT_KINDS
        },
        **{
            f"found_{what}": Metric(
                "vbnet_run_findings_total",
                "findings",
                "What it found that must not be, since it began or went on.",
                fixed={"invariant": what},
            )
            for what in INVARIANTS
        },
    },
)
"""One run in a lab."""

BLOCKS: Final = (RUN,)

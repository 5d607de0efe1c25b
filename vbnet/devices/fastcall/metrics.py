"""What fastcall slots and the thread that serves them count, in the order in which the native side keeps it."""

from __future__ import annotations

from typing import Final

from vbnet.metric import Metric, MetricBlock, MetricKind

__all__ = ["BLOCKS", "SERVICE", "SLOT"]


def _slot(name: str, unit: str, explanation: str) -> Metric:
    return Metric(f"vbnet_fastcall_{name}_total", unit, explanation)


def _error(reason: str, detail: str) -> Metric:
    return Metric(
        "vbnet_fastcall_errors_total",
        "calls",
        "Fastcalls that did not do what they were made for.",
        fixed={"reason": reason},
        detail=detail,
    )


def _unserved(reason: str, detail: str) -> Metric:
    return Metric(
        "vbnet_fastcall_unserved_total",
        "calls",
        "Fastcalls sent the ordinary way.",
        fixed={"reason": reason},
        detail=detail,
    )


def _rounds(result: str, detail: str) -> Metric:
    return Metric(
        "vbnet_fastcall_service_rounds_total",
        "rounds",
        "Rounds over the active slots.",
        fixed={"result": result},
        detail=detail,
    )


SLOT: Final = MetricBlock(
    "fastcall",
    ("guest", "slot"),
    {
        "calls": _slot("calls", "calls", "Fastcalls answered by a handler, refusals included."),
        "bytes": _slot("bytes", "bytes", "Bytes of the data and the answers of fastcalls."),
        "refused": _error("refused", "a handler refused"),
        "failed": _error("failed", "a handler's bug"),
        "refused_too_long": _error("too_long", "its data is longer than a slot has room for"),
        "unserved_no_handler": _unserved("no_handler", "the device has no fast handler"),
        "unserved_disabled": _unserved("disabled", "fastcalls are switched off"),
        "kicks": _slot("kicks", "signals", "Doorbells heard from the guest."),
        "wakeups": _slot("wakeups", "transitions", "Times the slot woke."),
        "parks": _slot("parks", "transitions", "Times the slot fell asleep."),
        "calls_rung": _slot("signals_sent", "signals", "Doorbells rung for the guest."),
        "calls_suppressed": _slot("signals_suppressed", "signals", "Doorbells spared because the guest was awake."),
        "faults": _slot("faults", "faults", "Slots ended because the guest broke a rule."),
    },
)
"""One slot: what one thread of a guest calls through."""

SERVICE: Final = MetricBlock(
    "fastcall_service",
    (),
    {
        "busy_rounds": _rounds("busy", "answered calls"),
        "idle_rounds": _rounds("idle", "found nothing to do: polling"),
        "sleeps": Metric("vbnet_fastcall_service_sleeps_total", "sleeps", "Times the service's thread went to sleep."),
        "asleep_nanoseconds": Metric(
            "vbnet_fastcall_service_asleep_seconds_total",
            "seconds",
            "How long the service's thread slept.",
            per_unit=1_000_000_000,
        ),
        "commands": Metric("vbnet_fastcall_service_commands_total", "commands", "Commands that the service did."),
        "slots": Metric("vbnet_fastcall_slots", "slots", "Slots attached now.", MetricKind.GAUGE),
        "active_slots": Metric("vbnet_fastcall_active_slots", "slots", "Slots polled now.", MetricKind.GAUGE),
        "handlers": Metric("vbnet_fastcall_handlers", "handlers", "Handlers registered now.", MetricKind.GAUGE),
    },
)
"""The thread that serves fastcalls."""

BLOCKS: Final = (SLOT, SERVICE)

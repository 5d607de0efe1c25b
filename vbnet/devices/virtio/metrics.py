"""What virtio devices count, in the order in which the native side keeps it: one block for all, one for disks."""

from __future__ import annotations

from typing import Final

from vbnet._native import FAULT_REASONS
from vbnet.metric import Metric, MetricBlock, MetricKind
from vbnet.units import SECOND_NS

__all__ = ["BLK", "BLOCKS", "CONSOLE", "RNG", "VIRTIO"]


def _device(name: str, unit: str, explanation: str) -> Metric:
    return Metric(f"vbnet_virtio_{name}_total", unit, explanation)


VIRTIO: Final = MetricBlock(
    "virtio",
    ("guest", "device"),
    {
        "registers": _device("register_accesses", "calls", "Registers of virtio devices read or written."),
        "traps": _device("traps", "calls", "Register accesses that were traps, as of virtio-mmio or virtio-pci."),
        "chains": _device("chains", "chains", "Chains of virtio devices completed."),
        "kicks": _device("kicks", "signals", "Doorbells heard from drivers."),
        "calls_rung": _device("signals_sent", "signals", "Doorbells rung for drivers."),
        "calls_suppressed": _device("signals_suppressed", "signals", "Chains completed without a doorbell."),
        "parks": _device("parks", "transitions", "Times a device's thread fell asleep."),
        "wakeups": _device("wakeups", "transitions", "Times a device's thread woke."),
        "resets": _device("resets", "resets", "Devices reset by their drivers."),
        "refused": _device("register_refusals", "calls", "Register accesses that were refused."),
        "put_off": _device(
            "resets_put_off", "resets", "Resets, and queues taken out of use, put off: too many within a second."
        ),
        **{
            f"fault_{reason}": Metric(
                "vbnet_virtio_faults_total",
                "faults",
                "Virtqueues ended because what the driver wrote there broke a rule.",
                fixed={"reason": reason},
            )
            for reason in FAULT_REASONS
        },
    },
)
"""One device that a guest has open, whatever its kind."""


def _requests(kind: str, detail: str) -> Metric:
    name = "vbnet_disk_requests_total"
    return Metric(name, "requests", "Requests of disks done.", fixed={"kind": kind}, detail=detail)


def _bytes(kind: str) -> Metric:
    name = "vbnet_disk_bytes_total"
    return Metric(name, "bytes", "Bytes read from and written to disks.", fixed={"kind": kind})


def _error(reason: str, detail: str) -> Metric:
    name, explanation = "vbnet_disk_errors_total", "Requests of disks that were not done."
    return Metric(name, "requests", explanation, fixed={"reason": reason}, detail=detail)


def _latency(kind: str) -> Metric:
    return Metric(
        "vbnet_disk_latency_seconds",
        "seconds",
        "From when a disk's thread takes a request to when it is done.",
        MetricKind.HISTOGRAM,
        {"kind": kind},
        per_unit=SECOND_NS,
    )


BLK: Final = MetricBlock(
    "virtio_blk",
    ("guest", "device"),
    {
        "reads": _requests("read", "reads"),
        "read_bytes": _bytes("read"),
        "writes": _requests("write", "writes"),
        "write_bytes": _bytes("write"),
        "flushes": _requests("flush", "everything written put on the disk"),
        "discards": _requests("discard", "sectors said to be of no use"),
        "zeroes": _requests("zeroes", "sectors filled with zeroes"),
        "ids": _requests("serial", "asked for the serial number"),
        "error_io": _error("io", "the machine refused"),
        "error_out_of_range": _error("out_of_range", "sectors that are not there"),
        "error_partial_sector": _error("partial_sector", "parts of sectors"),
        "error_read_only": _error("read_only", "a change of what may only be read"),
        "error_unsupported": _error("unsupported", "of a kind that is not known"),
        "error_malformed": _error("malformed", "without header, data or a place for the status"),
        "error_too_long": _error("too_long", "more than may be asked at once"),
        "read_latency": _latency("read"),
        "write_latency": _latency("write"),
        "flush_latency": _latency("flush"),
    },
)
"""One disk that a guest has open."""

RNG: Final = MetricBlock(
    "virtio_rng",
    ("guest", "device"),
    {
        "requests": Metric("vbnet_entropy_requests_total", "requests", "Requests for entropy answered."),
        "bytes": Metric("vbnet_entropy_bytes_total", "bytes", "Random bytes given to guests."),
        "errors": Metric("vbnet_entropy_errors_total", "requests", "Requests for entropy without an answer."),
    },
)
"""One entropy device that a guest has open."""


def _console(direction: str, explanation: str) -> Metric:
    return Metric(f"vbnet_console_{direction}_bytes_total", "bytes", explanation)


def _console_drop(reason: str, detail: str) -> Metric:
    name, explanation = "vbnet_console_drop_bytes_total", "Bytes of guests' consoles that were let go of."
    return Metric(name, "bytes", explanation, fixed={"reason": reason}, detail=detail)


CONSOLE: Final = MetricBlock(
    "virtio_console",
    ("guest", "device"),
    {
        "transmit_bytes": _console("transmit", "Bytes that guests said on their consoles."),
        "receive_bytes": _console("receive", "Bytes that were typed for guests."),
        "unread_bytes": _console_drop("unread", "the terminal was full, as nobody is attached to it"),
        "unlogged_bytes": _console_drop("unlogged", "the log's file did not take them"),
    },
)
"""One console that a guest has open."""

BLOCKS: Final = (VIRTIO, BLK, CONSOLE, RNG)

"""How much of anything a peer may have: every bound the host enforces, in one place.

A bound that is passed means a refusal (or silence, once refusals themselves are too many), a count, and nothing else:
the other peers do not notice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vbnet.units import KIB, MIB

__all__ = [
    "DEFAULT_RAM_BYTES",
    "HARD_MESSAGE_BYTES",
    "MAX_ADMIN_VERBS",
    "MAX_MESSAGE_BYTES",
    "MAX_PRIORITY",
    "NAME_BYTES",
    "RAM_HEADER_BYTES",
    "REQUEST_DEADLINE_S",
    "SIGNAL_BYTES",
    "Limits",
]

MAX_MESSAGE_BYTES: Final = 64 * KIB
"""A longer bus or admin message is refused with EMSGSIZE."""

HARD_MESSAGE_BYTES: Final = 1 * MIB
"""A longer one never reaches us: ZeroMQ drops that connection while it is still arriving."""

MAX_ADMIN_VERBS: Final = 256
"""Verbs in one ``apply`` message; the client splits longer lists."""

MAX_PRIORITY: Final = 7
NAME_BYTES: Final = 96
REQUEST_DEADLINE_S: Final = 5.0
"""How long a request may stay unanswered unless the caller says otherwise."""

SIGNAL_BYTES: Final = 16
"""Room a doorbell needs inside its region, from ``signal_offset`` on; the offset is a multiple of 4."""

RAM_HEADER_BYTES: Final = 4096
"""Start of a guest's memory, where it says what it is; no region may reach into it."""

DEFAULT_RAM_BYTES: Final = 2 * MIB
"""Memory of a guest that does not say how much it wants."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one host node; every one can be changed when the node is made.

    Attributes:
        message_bytes: longest message that is looked at.
        sessions_per_connection: guests in one process.
        handles_per_session: devices a guest may have open at once.
        regions_per_session: shared regions of a guest at once.
        shared_bytes_per_session: sum of the lengths of these regions.
        ram_bytes: largest memory a guest may hand over.
        gifts_per_session: descriptors given to the host and not yet taken by a device.
        lends_waiting: packets that may wait for a process before no descriptor is lent to its guests any more.
        refusals_burst: refusals that no request waits for, which a connection gets at once before the rest is dropped
            and counted.
        refusals_per_second: how fast that allowance grows back.
        token_lifetime_s: how long a guest may take from Welcome to Attach.
        heartbeat_s: how often a guest process says that it is alive.
        heartbeat_misses: missed heartbeats after which a session counts as stuck.
        outbound_messages: messages waiting for one peer that does not read; then it is cut off.
        channels: attach connections at once.
        drives_per_connection: eventfds by which an operator's connection raises signals, and which end with it.
        drives: all eventfds in operators' hands that raise signals, those kept beyond their connection included.
        captures_per_connection: captures and traces of an operator's connection, which end with it.
        capture_bytes: sum of the rings of all captures and traces.
        call_bytes: longest data of a call and of its answer.
    """

    message_bytes: int = MAX_MESSAGE_BYTES
    sessions_per_connection: int = 4096
    handles_per_session: int = 256
    regions_per_session: int = 256
    shared_bytes_per_session: int = 1024 * MIB
    ram_bytes: int = 1024 * MIB
    gifts_per_session: int = 16
    lends_waiting: int = 256
    refusals_burst: int = 64
    refusals_per_second: float = 16.0
    token_lifetime_s: float = 10.0
    heartbeat_s: float = 7.5
    heartbeat_misses: int = 2
    outbound_messages: int = 16384
    channels: int = 4096
    drives_per_connection: int = 64
    drives: int = 1024
    captures_per_connection: int = 32
    capture_bytes: int = 256 * MIB
    call_bytes: int = MAX_MESSAGE_BYTES - 4 * KIB

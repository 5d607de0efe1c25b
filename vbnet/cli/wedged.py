"""What a host node says of its guests, for the verbs that show how guests are."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vbnet.errors import VbnetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vbnet.bus.admin import GuestInfo, WedgedLevel

ANSWER_DEADLINE_S = 1.0
"""How long a host node may take to say how its guests are; of one that hangs it is said that it does."""


def wedged_text(levels: Sequence[WedgedLevel]) -> str:
    """Return which handlers have not returned, as one line: empty when there are none."""
    return "; ".join(
        f"vCPU {level.vcpu} priority {level.priority} vector {level.vector} since {level.since_s:.1f} s, "
        f"{level.pending} pending"
        for level in levels
    )


def guest_text(guest: GuestInfo) -> str:
    """Return what is wrong with a guest, as one line: handlers that have not returned, ports that are quarantined."""
    out = [f"{line}; `vbnet guest reset {guest.name}` begins anew" for line in guest.quarantined]
    return "; ".join(filter(None, [wedged_text(guest.wedged), *(f"quarantined: {line}" for line in out)]))


def guests_told(run_dir: Path) -> dict[str, GuestInfo] | None:
    """Return what a host node says of its guests, by name; None when it does not answer."""
    from vbnet.bus.operator import SyncOperator  # noqa: PLC0415 -- ZeroMQ is loaded for labs that are up only

    with suppress(VbnetError), SyncOperator(run_dir, deadline_s=ANSWER_DEADLINE_S) as operator:
        return {guest.name: guest for guest in operator.guest_list()}
    return None

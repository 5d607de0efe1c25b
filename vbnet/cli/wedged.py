"""Guests whose handlers do not return, for the verbs that show how guests are."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vbnet.errors import VbnetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vbnet.bus.admin import WedgedLevel

ANSWER_DEADLINE_S = 1.0
"""How long a host node may take to say which guests are wedged; one that hangs is shown without."""


def wedged_text(levels: Sequence[WedgedLevel]) -> str:
    """Return which handlers have not returned, as one line: empty when there are none."""
    return "; ".join(
        f"vCPU {level.vcpu} priority {level.priority} vector {level.vector} since {level.since_s:.1f} s, "
        f"{level.pending} pending"
        for level in levels
    )


def wedged_guests(run_dir: Path) -> dict[str, str]:
    """Return, for each wedged guest of a host node, what :func:`wedged_text` says; nothing when nobody answers."""
    from vbnet.bus.operator import SyncOperator  # noqa: PLC0415 -- ZeroMQ is loaded for labs that are up only

    with suppress(VbnetError), SyncOperator(run_dir, deadline_s=ANSWER_DEADLINE_S) as operator:
        return {guest.name: wedged_text(guest.wedged) for guest in operator.guest_list() if guest.wedged}
    return {}

"""When an ended guest process comes back: the policy, with back-off and a budget.

Pure: it is told what happened and when, and answers what to do. A process that keeps failing waits longer each time,
and after too many failures in one minute it is given up, so that a broken guest cannot keep the machine busy.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from vbnet.cluster.topology import Restart
from vbnet.units import SECOND_NS

DELAY_FIRST_NS = SECOND_NS // 10
DELAY_MAX_NS = 5 * SECOND_NS
CALM_NS = 10 * SECOND_NS
"""A process that lived this long starts again at the shortest delay."""

BUDGET = 10
BUDGET_WINDOW_NS = 60 * SECOND_NS


@dataclass(frozen=True)
class Again:
    """Start it again after ``delay_ns``."""

    delay_ns: int


@dataclass(frozen=True)
class Ended:
    """Leave it: its policy says so. ``is_failure`` when it ended badly."""

    is_failure: bool


@dataclass(frozen=True)
class GivenUp:
    """Leave it: it failed ``restarts`` times within the window."""

    restarts: int


Decision = Again | Ended | GivenUp


@dataclass
class RestartPolicy:
    """The restart policy of one process, with its history."""

    policy: Restart
    _recent: deque[int] = field(default_factory=deque)
    _streak: int = 0

    def decide(self, exit_code: int, started_ns: int, now_ns: int) -> Decision:
        """Say what to do about a process that started at ``started_ns`` and ended now with ``exit_code``.

        Args:
            exit_code: 0 is success; negative is the number of the signal that ended it.
            started_ns: when it was started, by the same clock as ``now_ns``.
            now_ns: now.
        """
        is_failure = exit_code != 0
        if self.policy == "no" or (self.policy == "on-failure" and not is_failure):
            return Ended(is_failure)
        while self._recent and now_ns - self._recent[0] > BUDGET_WINDOW_NS:
            self._recent.popleft()
        if len(self._recent) >= BUDGET:
            return GivenUp(len(self._recent))
        self._streak = 0 if now_ns - started_ns >= CALM_NS else self._streak
        delay_ns = min(DELAY_FIRST_NS << self._streak, DELAY_MAX_NS)
        self._streak += 1
        self._recent.append(now_ns)
        return Again(delay_ns)

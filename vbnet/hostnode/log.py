"""A log that a misbehaving guest cannot flood."""

from __future__ import annotations

from typing import Any

from vbnet.clock import Clock
from vbnet.hostnode.device import Log
from vbnet.units import SECOND_NS

__all__ = ["LimitedLog"]

_BURST = 20
_PER_SECOND = 1.0


class LimitedLog:
    """Passes on so many lines of each event, then counts; the next line that passes says how many were left out.

    Args:
        log: where lines go.
        clock: for the allowance, which grows back by one a second.
    """

    def __init__(self, log: Log, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._allowances: dict[str, tuple[float, int, int]] = {}

    def debug(self, event: str, **fields: Any) -> None:  # noqa: ANN401 - a logger's shape
        """Write for whoever is debugging, if the allowance lasts."""
        if (left_out := self._spend(event)) is not None:
            self._log.debug(event, **fields, **left_out)

    def info(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Write what happened, if the allowance lasts."""
        if (left_out := self._spend(event)) is not None:
            self._log.info(event, **fields, **left_out)

    def warning(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Write what should not have happened, if the allowance lasts."""
        if (left_out := self._spend(event)) is not None:
            self._log.warning(event, **fields, **left_out)

    def error(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Write what someone must look into, if the allowance lasts."""
        if (left_out := self._spend(event)) is not None:
            self._log.error(event, **fields, **left_out)

    def exception(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Write what someone must look into, with the exception being handled, if the allowance lasts."""
        if (left_out := self._spend(event)) is not None:
            self._log.exception(event, **fields, **left_out)

    def _spend(self, event: str) -> dict[str, int] | None:
        now = self._clock.now_ns()
        tokens, last_ns, left_out = self._allowances.get(event, (float(_BURST), now, 0))
        tokens = min(_BURST, tokens + (now - last_ns) / SECOND_NS * _PER_SECOND)
        if tokens < 1:
            self._allowances[event] = (tokens, now, left_out + 1)
            return None
        self._allowances[event] = (tokens - 1, now, 0)
        return {"left_out": left_out} if left_out else {}

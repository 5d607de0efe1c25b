"""The host node's log: one JSON object a line, one write a line, and nothing that a misbehaving guest can flood.

What is never written: the contents of frames and calls, tokens and keys. Tracebacks therefore come without the values
of local variables. How often a line may come is an allowance of its event and its guest, so that a flood of one guest
hides neither other events nor other guests; what was left out is counted, and said.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, cast

import msgspec

from vbnet.clock import Clock
from vbnet.hostnode.device import Log
from vbnet.units import SECOND_NS

__all__ = ["Allowances", "LimitedLog", "default_log", "log_file"]

_BURST = 20
_PER_SECOND = 1.0
_BURST_OF_ALL = 200
_PER_SECOND_OF_ALL = 20.0
_KEYS = 1024


K = TypeVar("K", bound=Hashable)


class Allowances(Generic[K]):
    """How often each of many things may still happen: token buckets, of which a bounded number is remembered.

    Args:
        clock: by which they grow back.
        burst: how often at once, >= 1.
        per_second: how fast they grow back.
        keys: how many are remembered; the one not asked for the longest is forgotten, and begins anew.
    """

    def __init__(
        self, clock: Clock, *, burst: float = _BURST, per_second: float = _PER_SECOND, keys: int = _KEYS
    ) -> None:
        self._clock, self._burst, self._per_second, self._keys = clock, burst, per_second, keys
        self._buckets: OrderedDict[K, tuple[float, int, int]] = OrderedDict()
        self.forgotten = 0

    def spend(self, key: K, stands_for: int = 1) -> int | None:
        """Let ``key`` happen once more: how often it was left out since it last did, or None when it may not.

        Args:
            key: what happens.
            stands_for: how often it counts if it is left out.
        """
        now = self._clock.now_ns()
        tokens, left_out = self._look(key, now)
        self._buckets[key] = (tokens - 1, now, 0) if tokens >= 1 else (tokens, now, left_out + stands_for)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._keys:
            _, (_, _, unsaid) = self._buckets.popitem(last=False)
            self.forgotten += unsaid
        return left_out if tokens >= 1 else None

    def due(self) -> Iterator[tuple[K, int]]:
        """Take what was left out and may be said now: each with how often, which then counts as said."""
        now = self._clock.now_ns()
        for key, (_, _, left_out) in list(self._buckets.items()):
            tokens, _ = self._look(key, now)
            if left_out and tokens >= 1:
                self._buckets[key] = (tokens - 1, now, 0)
                yield key, left_out

    def take_forgotten(self) -> int:
        """Take how often something was left out whose key has been forgotten since."""
        forgotten, self.forgotten = self.forgotten, 0
        return forgotten

    def _look(self, key: K, now: int) -> tuple[float, int]:
        tokens, last_ns, left_out = self._buckets.get(key, (self._burst, now, 0))
        return min(self._burst, tokens + (now - last_ns) / SECOND_NS * self._per_second), left_out


class LimitedLog:
    """Passes on so many lines of each event and guest, then counts; the next that passes has the count in ``left_out``.

    Args:
        log: where lines go.
        clock: for the allowances: 20 lines of an event and guest and one a second, 200 of an event and 20 a second.
    """

    def __init__(self, log: Log, clock: Clock) -> None:
        self._log = log
        self._own: Allowances[tuple[str, str]] = Allowances(clock)
        self._all: Allowances[str] = Allowances(clock, burst=_BURST_OF_ALL, per_second=_PER_SECOND_OF_ALL)

    def debug(self, event: str, **fields: Any) -> None:  # noqa: ANN401 - a logger's shape
        """Write for whoever is debugging, if the allowance lasts."""
        if (left_out := self._spend(event, fields)) is not None:
            self._log.debug(event, **fields, **left_out)

    def info(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Write what happened, if the allowance lasts."""
        if (left_out := self._spend(event, fields)) is not None:
            self._log.info(event, **fields, **left_out)

    def warning(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Write what should not have happened, if the allowance lasts."""
        if (left_out := self._spend(event, fields)) is not None:
            self._log.warning(event, **fields, **left_out)

    def error(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Write what someone must look into, if the allowance lasts."""
        if (left_out := self._spend(event, fields)) is not None:
            self._log.error(event, **fields, **left_out)

    def exception(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Write what someone must look into, with the exception being handled, if the allowance lasts."""
        if (left_out := self._spend(event, fields)) is not None:
            self._log.exception(event, **fields, **left_out)

    def say_left_out(self) -> None:
        """Write what was left out and had no later line to say so; called now and then."""
        for (event, whose), count in self._own.due():
            self._log.warning("left_out", of=event, whose=whose, left_out=count)
        for event, count in self._all.due():
            self._log.warning("left_out", of=event, left_out=count)
        if forgotten := self._own.take_forgotten() + self._all.take_forgotten():
            self._log.warning("left_out", left_out=forgotten)

    def _spend(self, event: str, fields: dict[str, Any]) -> dict[str, int] | None:
        whose = str(fields.get("guest") or fields.get("device") or "")
        own = self._own.spend((event, whose))
        if own is None:
            return None
        of_all = self._all.spend(event, 1 + own)
        if of_all is None:
            return None
        return {"left_out": own + of_all} if own or of_all else {}


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[Log]:
    """Append to a file, private to its user: one JSON object a line, one write a line."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb", buffering=0) as file:
        yield json_log(cast("BinaryIO", file))


def json_log(file: BinaryIO) -> Log:
    """A log that writes into an unbuffered file."""
    import logging  # noqa: PLC0415 - structlog is slow to import, and not needed by whoever brings a log

    import structlog  # noqa: PLC0415

    log: Log = structlog.wrap_logger(
        structlog.BytesLogger(file),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(serializer=_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    return log


def default_log() -> Log:
    """The log of a node that was given none: as the program has configured structlog, else lines on standard output."""
    import structlog  # noqa: PLC0415 - same

    log: Log
    if structlog.is_configured():
        log = structlog.get_logger("vbnet.host")
    else:
        log = structlog.wrap_logger(
            structlog.PrintLogger(),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
            ],
        )
    return log


def _json(fields: dict[str, Any], **_kw: object) -> bytes:
    return msgspec.json.encode(fields, enc_hook=repr)

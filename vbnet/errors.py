"""The words for everything that can go wrong, and whose fault it is.

Every error carries fields, not prose alone: ``error.fields["limit"]`` is the limit, whatever the sentence says. A
message tells what happened with its values, what was done about it, and what the reader can do.

=================  ==========================================  =======================
class              meaning                                     also a
=================  ==========================================  =======================
UsageError         you called it wrongly                       ValueError
  NotFoundError    you named something that is not there       LookupError
  ExistsError      you named something that is there already
  TooLargeError    you sent more than the limit allows
  UnsupportedError you asked for what cannot work here
NotPermittedError  you are not who may do this                 PermissionError
ClosedError        you closed it
BusyError          someone of yours is using it
DeadlineError      nothing came in the time you gave           TimeoutError
PeerGone           the other side ended                        ConnectionError
PeerFault          the other side broke the rules: quarantine
ResourceError      the machine, or a quota, refused            OSError (carries errno)
InternalError      our bug; please report (never caught)
=================  ==========================================  =======================

On the wire a refusal is an errno name; ``REFUSALS`` is the one table between the names and the classes.
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "REFUSALS",
    "BusyError",
    "ClosedError",
    "DeadlineError",
    "ExistsError",
    "InternalError",
    "NotFoundError",
    "NotPermittedError",
    "PeerFault",
    "PeerGone",
    "ResourceError",
    "TooLargeError",
    "UnsupportedError",
    "UsageError",
    "VbnetError",
    "did_you_mean",
    "error_from_refusal",
    "refusal_name",
]


class VbnetError(Exception):
    """Root of every error vbnet raises on purpose.

    Args:
        message: what happened, what was done, what the reader can do. Empty: the fields speak for themselves.
        fields: the values behind the sentence, by name.
    """

    summary: ClassVar[str] = "something went wrong"

    def __init__(self, message: str = "", /, **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.fields: dict[str, object] = dict(fields)

    def __str__(self) -> str:
        if self.message:
            return self.message
        values = ", ".join(f"{name}={value!r}" for name, value in self.fields.items())
        return f"{self.summary}: {values}" if values else self.summary

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.fields))


def _rebuild(cls: type[VbnetError], message: str, fields: dict[str, object]) -> VbnetError:
    """Make an error again on the other side of a pickle."""
    return cls(message, **fields)


class UsageError(VbnetError, ValueError):
    """The caller asked for something that makes no sense; nothing was changed."""

    summary = "wrong use"


class NotFoundError(UsageError, LookupError):
    """The caller named a bus, device, class, handle or guest that does not exist."""

    summary = "no such thing"


class ExistsError(UsageError):
    """The caller wanted to create what exists already."""

    summary = "exists already"


class TooLargeError(UsageError):
    """A message, name or region is larger than its limit; it was refused whole."""

    summary = "too large"


class UnsupportedError(UsageError):
    """The request is well formed but cannot work here (for instance shared memory from another machine)."""

    summary = "not supported here"


class NotPermittedError(VbnetError, PermissionError):
    """The caller is not who may do this, or not yet (a token is missing, forged or spent)."""

    summary = "not permitted"


class ClosedError(VbnetError):
    """The caller closed the object earlier; it cannot be used again."""

    summary = "closed on this side"


class BusyError(VbnetError):
    """Someone else holds it exclusively, or it is in use and cannot change now. Try again later."""

    summary = "in use"


class DeadlineError(VbnetError, TimeoutError):
    """Nothing came within the time the caller allowed. The other side may still be alive."""

    summary = "the deadline passed"


class PeerGone(VbnetError, ConnectionError):  # noqa: N818 - a fact about the peer, not a mistake
    """The process on the other side ended, or the connection to it did. Everything held through it is void."""

    summary = "the other side ended"


class PeerFault(VbnetError):  # noqa: N818 - the fault is the peer's, not this call's
    """The other side broke a rule: what it broke is counted and that queue or session is quarantined.

    The usual fields are ``rule`` (the rule as a formula), ``got`` and ``limit``.
    """

    summary = "the other side broke a rule"


class ResourceError(VbnetError, OSError):
    """The machine or a quota refused: out of descriptors, memory, room.

    Args:
        message: as for every error.
        errno: the number the system gave; ``ENOSPC`` for quotas.
        fields: as for every error.
    """

    summary = "out of a resource"

    def __init__(self, message: str = "", /, errno: int = _errno.ENOSPC, **fields: object) -> None:
        super().__init__(message, **fields)
        self.errno = errno
        self.strerror = message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, {**self.fields, "errno": self.errno}))


class InternalError(VbnetError):
    """Our own bug. Please report it with the whole text; nothing may catch it to go on."""

    summary = "a bug in vbnet"


REFUSALS: dict[str, type[VbnetError]] = {
    "EINVAL": UsageError,
    "ENOENT": NotFoundError,
    "EEXIST": ExistsError,
    "EMSGSIZE": TooLargeError,
    "EOPNOTSUPP": UnsupportedError,
    "EPERM": NotPermittedError,
    "EBADF": ClosedError,
    "EBUSY": BusyError,
    "ETIMEDOUT": DeadlineError,
    "EPIPE": PeerGone,
    "EPROTO": PeerFault,
    "ENOSPC": ResourceError,
    "EIO": InternalError,
}
"""errno name on the wire ⇄ class here: one name for each class, one class for each name."""

_NAMES = {cls: name for name, cls in REFUSALS.items()}


def refusal_name(error: BaseException) -> str:
    """Name the errno under which ``error`` travels: that of its nearest ancestor in ``REFUSALS``, else ``EIO``."""
    for cls in type(error).__mro__:
        name = _NAMES.get(cls)
        if name is not None:
            return name
    return "EIO"


def error_from_refusal(code: str, message: str, detail: dict[str, object] | None = None) -> VbnetError:
    """Build the error that the other side meant by a refusal.

    Args:
        code: an errno name; an unknown one becomes a plain ``VbnetError`` with the field ``code``.
        message: the other side's sentence.
        detail: the other side's fields.
    """
    fields = {str(name): value for name, value in (detail or {}).items()}
    cls = REFUSALS.get(code)
    if cls is None:
        return VbnetError(message, **{**fields, "code": code})
    if cls is ResourceError:
        fields.setdefault("errno", _errno.ENOSPC)
        number = fields.pop("errno")
        return ResourceError(message, errno=number if isinstance(number, int) else _errno.ENOSPC, **fields)
    return cls(message, **fields)


def did_you_mean(word: str, known: Iterable[str], *, otherwise: str) -> str:
    """Return ``did you mean `x`?`` for the closest known word, else ``otherwise``: what to do, for an error's end."""
    import difflib  # noqa: PLC0415 - only where something went wrong

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean `{close[0]}`?" if close else otherwise

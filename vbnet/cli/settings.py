"""Attributes as they are written on a command line: ``key=value``."""

from __future__ import annotations

from collections.abc import Iterable

from vbnet.errors import UsageError

__all__ = ["read_settings"]


def read_settings(words: Iterable[str]) -> dict[str, str]:
    """Take words apart, in order; of a key that is there twice the last counts.

    Raises:
        UsageError: a word has no ``=``, or nothing before it.
    """
    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"`{word}` is no setting; write key=value")
        settings[key] = value
    return settings

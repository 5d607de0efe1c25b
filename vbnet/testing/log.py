"""A log that remembers."""

from __future__ import annotations

from typing import Any

__all__ = ["ListLog"]


class ListLog:
    """Keeps every line as ``(level, event, fields)`` in ``lines``."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def debug(self, event: str, **fields: Any) -> None:  # noqa: ANN401 - a logger's shape
        """Keep a line."""
        self.lines.append(("debug", event, fields))

    def info(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Keep a line."""
        self.lines.append(("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Keep a line."""
        self.lines.append(("warning", event, fields))

    def error(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Keep a line."""
        self.lines.append(("error", event, fields))

    def exception(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Keep a line."""
        self.lines.append(("error", event, fields))

    def events(self) -> list[str]:
        """Every event in order."""
        return [event for _, event, _ in self.lines]

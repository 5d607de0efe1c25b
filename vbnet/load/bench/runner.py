"""Runs benches by name: what ``vbnet bench`` calls, and what a program may."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from vbnet.errors import NotFoundError, UsageError, VbnetError
from vbnet.load.bench.context import Context, Watch
from vbnet.load.bench.machine import describe, two_cores
from vbnet.load.bench.pace import FULL, QUICK
from vbnet.load.bench.registry import BENCHES, Bench
from vbnet.load.bench.report import Report, list_text
from vbnet.load.bench.row import Row

__all__ = ["list_benches", "main", "run"]

_FORMATS: Final = ("table", "json")
_ALL: Final = "all"
_LIST: Final = "list"


def list_benches() -> list[tuple[str, str]]:
    """Name every bench and what it measures, in one line each."""
    return [(bench.name, bench.summary) for bench in BENCHES.values()]


def run(
    names: Sequence[str],
    *,
    quick: bool = False,
    on_row: Callable[[Row], None] | None = None,
    on_failure: Callable[[str, VbnetError], None] | None = None,
) -> list[Row]:
    """Run benches one after the other.

    Args:
        names: of benches; ``all`` means every one.
        quick: short and rough, to see that it works.
        on_row: told of each row as soon as it is known.
        on_failure: told of a bench that could not be measured, which the others then do not suffer from.

    Raises:
        NotFoundError: there is no bench of such a name (the caller's mistake); nothing was run.
        UnsupportedError: this process may not use two cores.
        VbnetError: a bench failed and nobody listens to failures.
    """
    chosen = _chosen(names)
    pace = QUICK if quick else FULL
    cores = two_cores()
    rows = []
    for bench in chosen:
        context = Context(cores, pace, Watch(cores, pace.probe_seconds, pace.calm_seconds))
        try:
            for row in bench.run(context):
                rows.append(row)
                if on_row is not None:
                    on_row(row)
        except VbnetError as error:
            if on_failure is None:
                raise
            on_failure(bench.name, error)
    return rows


def _chosen(names: Sequence[str]) -> list[Bench]:
    unknown = [name for name in names if name != _ALL and name not in BENCHES]
    if unknown:
        raise NotFoundError(
            f"there is no bench {', '.join(map(repr, unknown))}; there are {', '.join(BENCHES)}", names=unknown
        )
    wanted = BENCHES if _ALL in names else {name: BENCHES[name] for name in names}
    return list(wanted.values())


def main(names: Sequence[str], *, quick: bool = False, format: str = "table") -> int:  # noqa: A002 - the option's name
    """Do what ``vbnet bench`` was asked: list benches, or run some and print what came of them.

    Args:
        names: ``list``, ``all``, or names of benches.
        quick: short and rough.
        format: ``table`` for people, ``json`` for programs.

    Returns:
        0, or 1 when a bench could not be measured. A figure that misses what is wanted of it is no failure: it is told.

    Raises:
        UsageError: ``list`` among other names, or an unknown format. NotFoundError, UnsupportedError: as :func:`run`.
    """
    if format not in _FORMATS:
        raise UsageError(f"a format is one of {', '.join(_FORMATS)}; got {format!r}", format=format)
    if _LIST in names:
        if len(names) != 1:
            raise UsageError("`list` stands alone; name benches without it to run them", names=list(names))
        _print_list(format)
        return 0
    _chosen(names)
    report = Report(format, describe())
    failures: list[str] = []

    def on_failure(name: str, error: VbnetError) -> None:
        failures.append(name)
        sys.stderr.write(f"bench {name} failed: {error}\n")

    report.note(f"{describe()}\n")
    run(names, quick=quick, on_row=report.add, on_failure=on_failure)
    report.finish()
    return 1 if failures else 0


def _print_list(output_format: str) -> None:
    if output_format == "json":
        benches = [{"name": name, "summary": summary} for name, summary in list_benches()]
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(benches), indent=1).decode() + "\n")
    else:
        sys.stdout.write(list_text())

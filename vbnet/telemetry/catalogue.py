"""Every kind of block that is known here: the host node's own, runs', and those of each kind of device installed."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from vbnet.bus.kinds import Catalogue, discover, load
from vbnet.errors import UsageError, VbnetError
from vbnet.hostnode.metrics import BLOCKS
from vbnet.metric import MetricBlock, MetricCatalogue
from vbnet.telemetry import runs

__all__ = ["Known", "installed", "known"]


@dataclass(frozen=True)
class Known:
    """What is declared.

    Attributes:
        metrics: the declarations.
        problems: what is wrong with installed packages whose declarations are left out.
    """

    metrics: MetricCatalogue
    problems: tuple[str, ...] = ()


@functools.cache
def installed() -> Known:
    """What this project and the installed packages declare."""
    return known(discover())


def known(kinds: Catalogue) -> Known:
    """What the host node, runs and ``kinds`` declare. A kind that cannot be read, or clashes, is left out and named."""
    catalogue = MetricCatalogue((*BLOCKS, *runs.BLOCKS))
    problems = []
    for kind in kinds.kinds.values():
        try:
            for block in _declared(kind.metrics):
                catalogue.add(block)
        except VbnetError as error:
            problems.append(f"device kind {kind.name}: {error}")
        except Exception as error:  # noqa: BLE001 - another author's module; the rest is still shown
            problems.append(f"device kind {kind.name}: {type(error).__name__}: {error}")
    return Known(catalogue, tuple(problems))


def _declared(path: str | None) -> Iterable[MetricBlock]:
    if path is None:
        return ()
    found = load(path)
    if not isinstance(found, tuple) or not all(isinstance(block, MetricBlock) for block in found):
        raise UsageError(f"{path} is no tuple of MetricBlock", path=path)
    return found

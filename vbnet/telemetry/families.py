"""Blocks of counters as families of samples, as Prometheus has them: the plain form of what ``render`` does natively.

Two blocks of one kind and the same labels are one: their words are added up, so no series comes twice whatever is in a
file. Kinds that nobody declared are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from vbnet.metric import HISTOGRAM_WORDS, Metric, MetricBlock, MetricCatalogue, MetricKind
from vbnet.sharedmem import BlockSnapshot, histogram_bounds

__all__ = ["Family", "HistogramSample", "Sample", "bucket_edges", "families"]

_WORD: Final = 1 << 64
_HEADER_WORDS: Final = 4
_EXPONENTS: Final = (*range(8, 25), 26, 28, 30, 32)


@dataclass(frozen=True, slots=True)
class Sample:
    """One value under its labels."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class HistogramSample:
    """One histogram under its labels: counts up to each upper edge, the last edge is infinite."""

    labels: Mapping[str, str]
    buckets: Sequence[tuple[str, int]]
    sum: float


@dataclass(slots=True)
class Family:
    """All samples of one name.

    Attributes:
        name: with ``_total`` for a counter.
        kind: how it moves. unit: as declared. help: one sentence.
        samples: at least one when anything is counted for it.
    """

    name: str
    kind: MetricKind
    unit: str
    help: str
    samples: list[Sample | HistogramSample] = field(default_factory=list)


@cache
def bucket_edges() -> tuple[tuple[int, int], ...]:
    """Upper edges of the buckets that are shown, with how many of a histogram's own lie below each.

    Powers of two from 256 (nanoseconds: 0.26 µs) to 16 777 216 (17 ms), then every other one to 4 294 967 296 (4.3 s):
    21 edges which the histogram's own buckets do not cross, so every count is exact for whole numbers below the edge.
    """
    own = histogram_bounds()
    edges = [1 << exponent for exponent in _EXPONENTS]
    return tuple((edge, sum(bound < edge for bound in own)) for edge in edges)


def families(blocks: Iterable[BlockSnapshot], catalogue: MetricCatalogue) -> list[Family]:
    """What ``blocks`` count.

    Args:
        blocks: as read from files, also of several.
        catalogue: what they mean.

    Returns:
        The families that have samples, in order of declaration.
    """
    found = {
        name: Family(name, first.kind, first.unit, first.help) for name, ((_, first), *_) in catalogue.families.items()
    }
    for block, labels, words in _merged(blocks, catalogue):
        own = dict(zip(block.labels, labels, strict=True))
        for place, _, metric in block.places():
            if place + metric.words <= len(words):
                found[metric.name].samples.extend(_samples(metric, own, words[place : place + metric.words]))
    return [family for family in found.values() if family.samples]


def _merged(
    blocks: Iterable[BlockSnapshot], catalogue: MetricCatalogue
) -> Iterator[tuple[MetricBlock, tuple[str, ...], Sequence[int]]]:
    merged: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for block in blocks:
        declared = catalogue.blocks.get(block.kind)
        if declared is None:
            continue
        labels = tuple(block.labels.get(name, "") for name in declared.labels)
        words = merged.setdefault((block.kind, labels), [])
        _add(declared, words, block.values)
    for (kind, labels), words in merged.items():
        yield catalogue.blocks[kind], labels, words


def _add(declared: MetricBlock, words: list[int], more: Sequence[int]) -> None:
    shared = min(len(words), len(more))
    for place, _, metric in declared.places():
        for at in range(place, min(place + metric.words, shared)):
            is_sum = metric.kind not in {MetricKind.INFO, MetricKind.STATE}
            words[at] = (words[at] + more[at]) % _WORD if is_sum else more[at]
    words.extend(more[shared:])


def _samples(metric: Metric, own: Mapping[str, str], words: Sequence[int]) -> Iterator[Sample | HistogramSample]:
    labels = {**own, **metric.fixed}
    match metric.kind:
        case MetricKind.HISTOGRAM:
            if any(words[_HEADER_WORDS:]):
                yield _histogram(metric, labels, words)
        case MetricKind.INFO:
            yield Sample({**labels, metric.shown_as: str(words[0])}, 1)
        case MetricKind.STATE:
            for place, state in enumerate(metric.states):
                yield Sample({**labels, metric.shown_as: state}, int(words[0] == place))
        case _:
            yield Sample(labels, _scaled(words[0], metric.per_unit))


def _histogram(metric: Metric, labels: Mapping[str, str], words: Sequence[int]) -> HistogramSample:
    counts = words[_HEADER_WORDS:HISTOGRAM_WORDS]
    buckets = [(repr(_scaled(edge, metric.per_unit)), sum(counts[:below]) % _WORD) for edge, below in bucket_edges()]
    return HistogramSample(labels, [*buckets, ("+Inf", sum(counts) % _WORD)], _scaled(words[1], metric.per_unit))


def _scaled(word: int, per_unit: int) -> float:
    return word if per_unit == 1 else float(word) / float(per_unit)

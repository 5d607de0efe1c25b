"""The last minutes of a node, each look as a few kilobytes, so that one can go back to it.

A look's words are mostly zeroes and are kept compressed; layouts are shared by the looks that have the same blocks.
Beside them each look keeps one number for each block, its main rate, for sparklines that need no unpacking.

Bounds: age and bytes, whichever comes first; the oldest looks go.
"""

from __future__ import annotations

import math
import zlib
from array import array
from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec

from vbnet.bus.errorlog import DistinctError
from vbnet.telemetry.node import NodeFacts
from vbnet.telemetry.watch.look import Key, Layout, Look
from vbnet.telemetry.watch.rates import Pair, Places
from vbnet.units import SECOND_NS

__all__ = ["BYTES", "SECONDS", "History"]

SECONDS: Final = 600
BYTES: Final = 64 << 20
_UNPACKED_LOOKS: Final = 4
_FAST: Final = 1
_LAYOUT_BYTES_A_BLOCK: Final = 500
"""Measured roughly: the block, its key, and its places in two dictionaries."""
_MAIN: Final = {
    "port": ("receive_frames", "transmit_frames"),
    "signal": ("raises",),
    "timer": ("expiries",),
    "worker": ("busy_rounds",),
}
"""What a block's sparkline shows; a guest's and a switch's is the sum of their ports."""

_decoder = msgspec.json.Decoder(tuple[DistinctError, ...])


@dataclass(slots=True)
class _Kept:
    wall_s: float
    taken_ns: int
    facts: NodeFacts
    is_paused: bool
    layout: Layout
    words: bytes
    errors: bytes
    problems: tuple[str, ...]
    main: array[float]
    bytes: int = 0


class History:
    """Looks by number, counted from 0; the oldest go when there are too many.

    Args:
        places: of what is declared.
        seconds: how long a look is kept. bytes_max: how much memory all looks take together, about.
    """

    def __init__(self, places: Places, seconds: float = SECONDS, bytes_max: int = BYTES) -> None:
        self._places = places
        self._seconds, self._bytes_max = seconds, bytes_max
        self._kept: deque[_Kept] = deque()
        self._first = 0
        self._unpacked: OrderedDict[int, Look] = OrderedDict()
        self._window_asked = (0, 0, 0, 0)
        self._window_kept: list[_Kept | None] = []
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def numbers(self) -> range:
        """Numbers of the looks that are kept; the last one is the newest."""
        return range(self._first, self._first + len(self._kept))

    def append(self, look: Look) -> int:
        """Keep a look, and say its number."""
        number = self.numbers.stop
        main = self._main(Pair(self.look(number - 1) if self._kept else None, look))
        errors = zlib.compress(msgspec.json.encode(look.errors), _FAST) if look.errors else b""
        words = zlib.compress(look.words.tobytes(), _FAST)
        kept = _Kept(
            look.wall_s, look.taken_ns, look.facts, look.is_paused, look.layout, words, errors, look.problems, main
        )
        kept.bytes = len(words) + len(errors) + len(main) * main.itemsize
        if not self._kept or self._kept[-1].layout is not look.layout:
            kept.bytes += _layout_bytes(look.layout)
        self.bytes += kept.bytes
        self._kept.append(kept)
        self._remember(number, look)
        while len(self._kept) > 1 and self._is_over():
            self._drop_oldest()
        return number

    def look(self, number: int) -> Look:
        """The look with this number; IndexError: it is not kept."""
        if number not in self.numbers:
            raise IndexError(number)
        if number in self._unpacked:
            self._unpacked.move_to_end(number)
            return self._unpacked[number]
        kept = self._kept[number - self._first]
        words = array("Q")
        words.frombytes(zlib.decompress(kept.words))
        errors = (
            msgspec.json.decode(zlib.decompress(kept.errors), type=tuple[DistinctError, ...]) if kept.errors else ()
        )
        look = Look(kept.wall_s, kept.taken_ns, kept.facts, kept.is_paused, kept.layout, words, errors, kept.problems)
        self._remember(number, look)
        return look

    def pair(self, number: int) -> Pair:
        """The look with this number, and the one before it if that is kept."""
        now = self.look(number)
        return Pair(self.look(number - 1) if number - 1 in self.numbers else None, now)

    def line(self, key: Key, until: int, length: int) -> list[float | None]:
        """Main rates of a block in the ``length`` looks up to number ``until``; None: not known."""
        found: list[float | None] = []
        layout, block = None, None
        for kept in self._window(until, length):
            if kept is None:
                found.append(None)
                continue
            if kept.layout is not layout:
                layout, block = kept.layout, kept.layout.index.get(key)
            value = math.nan if block is None else kept.main[block.place]
            found.append(None if math.isnan(value) else value)
        return found

    def _window(self, until: int, length: int) -> list[_Kept | None]:
        """The looks from ``until - length + 1`` to ``until``; the same list again for the next row of a table."""
        asked = (self._first, len(self._kept), until, length)
        if self._window_asked != asked:
            begin = until - length + 1 - self._first
            kept = list(islice(self._kept, max(0, begin), max(0, begin + length)))
            missing = min(length, max(0, -begin))
            self._window_kept = [*[None] * missing, *kept]
            self._window_asked = asked
        return self._window_kept

    def _main(self, pair: Pair) -> array[float]:
        layout = pair.now.layout
        rates = array("f")
        places = {kind: self._places.of(kind, *names) for kind, names in _MAIN.items()}
        for block in layout.blocks:
            wanted = places.get(block.kind)
            rate = pair.rate(block, wanted) if wanted else None
            rates.append(math.nan if rate is None else rate)
        _add_up(layout, rates)
        return rates

    def _remember(self, number: int, look: Look) -> None:
        self._unpacked[number] = look
        while len(self._unpacked) > _UNPACKED_LOOKS:
            self._unpacked.popitem(last=False)

    def _is_over(self) -> bool:
        age_ns = self._kept[-1].taken_ns - self._kept[0].taken_ns
        return self.bytes > self._bytes_max or age_ns > self._seconds * SECOND_NS

    def _drop_oldest(self) -> None:
        gone = self._kept.popleft()
        self._unpacked.pop(self._first, None)
        self._first += 1
        self.bytes -= gone.bytes
        if self._kept[0].layout is gone.layout:
            # The layout stays for those after it, so its bytes are theirs now.
            moved = _layout_bytes(gone.layout)
            self._kept[0].bytes += moved
            self.bytes += moved


def _layout_bytes(layout: Layout) -> int:
    return len(layout.blocks) * _LAYOUT_BYTES_A_BLOCK


def _add_up(layout: Layout, rates: array[float]) -> None:
    """Let guests and switches have the sum of their ports' rates."""
    for kind in ("guest", "switch"):
        owners = {block.labels.get(kind): block.place for block in layout.of_kind.get(kind, ())}
        sums: dict[int, float] = {}
        for port in layout.of_kind.get("port", ()):
            owner = owners.get(port.labels.get(kind))
            if owner is not None and not math.isnan(rates[port.place]):
                sums[owner] = sums.get(owner, 0.0) + rates[port.place]
        for owner, rate in sums.items():
            rates[owner] = rate

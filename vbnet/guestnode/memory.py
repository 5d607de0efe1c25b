"""Who uses which part of a guest's memory: a first-fit allocator over offsets. It never touches the memory itself."""

from __future__ import annotations

from dataclasses import dataclass

from vbnet.errors import ResourceError, UsageError

__all__ = ["Block", "Memory"]

_LINE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the guest's memory: ``length`` bytes from ``offset`` on."""

    offset: int
    length: int


class Memory:
    """The free and the used parts of one guest's memory.

    Args:
        start: first byte that may be given out.
        end: first byte behind it.
    """

    def __init__(self, start: int, end: int) -> None:
        self._free: list[tuple[int, int]] = [(start, end)] if start < end else []
        self._used: set[Block] = set()

    @property
    def free_bytes(self) -> int:
        """Bytes not given out, in however many pieces."""
        return sum(end - start for start, end in self._free)

    def allocate(self, length: int, alignment: int = _LINE_BYTES) -> Block:
        """Give out the first piece that fits.

        Args:
            length: bytes, >= 1.
            alignment: of the offset; a power of two.

        Raises:
            UsageError: a length or alignment that makes no sense.
            ResourceError: no piece is long enough; join with more ``ram_bytes``.
        """
        if length < 1 or alignment < 1 or alignment & (alignment - 1):
            raise UsageError(
                f"cannot allocate {length} bytes aligned to {alignment}", length=length, alignment=alignment
            )
        for index, (start, end) in enumerate(self._free):
            offset = (start + alignment - 1) & -alignment
            if offset + length <= end:
                rest = [(start, offset), (offset + length, end)]
                self._free[index : index + 1] = [(low, high) for low, high in rest if low < high]
                block = Block(offset, length)
                self._used.add(block)
                return block
        raise ResourceError(
            f"no {length} bytes in one piece are left of this guest's memory; join with more ram_bytes",
            got=length,
            limit=self.free_bytes,
        )

    def free(self, block: Block) -> None:
        """Take a piece back; only once no device uses it any more (after ShmClose, or ``OpenDevice.close``).

        Raises:
            UsageError: it was not given out, or was taken back.
        """
        if block not in self._used:
            raise UsageError(f"{block} is not in use", offset=block.offset)
        self._used.discard(block)
        pieces = sorted([*self._free, (block.offset, block.offset + block.length)])
        merged = [pieces[0]]
        for start, end in pieces[1:]:
            if start == merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        self._free = merged

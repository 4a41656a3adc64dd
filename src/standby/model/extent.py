"""Byte ranges of a disk and what they hold."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


class Kind(enum.IntEnum):
    """What a range of a disk, or of one layer of it, holds."""

    HOLE = 0
    """Nothing stored. Of a whole disk: reads as zeros. Of one layer: ask the layer below."""
    ZERO = 1
    """Reads as zeros by explicit statement (a zero or unmapped block), whatever lies below."""
    DATA = 2
    """Stored bytes, which may be zeros too."""


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes from `offset` on: `offset <= x < offset + length`."""

    offset: int
    length: int
    kind: Kind = Kind.DATA

    @property
    def stop(self) -> int:
        """First byte behind the range."""
        return self.offset + self.length


def blocks_touched(extents: Iterable[Extent], block_size: int) -> int:
    """How many blocks the ranges, which must be in order, have a part of."""
    count, done = 0, 0
    for extent in extents:
        first = max(extent.offset // block_size, done)
        last = -(-extent.stop // block_size)
        if extent.length and last > first:
            count += last - first
            done = last
    return count


def coalesced(extents: Iterable[Extent]) -> Iterator[Extent]:
    """The same ranges with neighbours of equal kind joined; the input must be in order."""
    held: Extent | None = None
    for extent in extents:
        if extent.length == 0:
            continue
        if held is not None and held.kind == extent.kind and held.stop == extent.offset:
            held = Extent(held.offset, held.length + extent.length, held.kind)
            continue
        if held is not None:
            yield held
        held = extent
    if held is not None:
        yield held

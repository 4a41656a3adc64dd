"""Arithmetic of blocks, chunks and slots of the block allocation table (2.5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from standby.disk.vhdx.structures import SECTORS_PER_CHUNK
from standby.units import MiB

BLOCK_COUNT_GOAL = 1 << 21
"""Blocks a new disk has at most: its table then is 16 MiB."""

STATE_MASK = 7
OFFSET_MASK = 0xFFFFFFFFFFF00000
RESERVED_MASK = 0xFFFF8

NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED = 0, 1, 2, 3
FULLY_PRESENT, PARTIALLY_PRESENT = 6, 7
BITMAP_PRESENT = 6


def default_block_size(virtual_size: int) -> int:
    """The smallest block size with at most 2^21 blocks: 1 MiB up to 2 TiB, 2 MiB up to 4 TiB …"""
    size = MiB
    while -(-virtual_size // size) > BLOCK_COUNT_GOAL:
        size *= 2
    return size


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a disk, and where its blocks' slots are."""

    virtual_size: int
    block_size: int
    logical_sector_size: int
    has_parent: bool

    @property
    def chunk_ratio(self) -> int:
        """Payload blocks per chunk; every chunk has one bitmap slot."""
        return SECTORS_PER_CHUNK * self.logical_sector_size // self.block_size

    @property
    def block_count(self) -> int:
        """Payload blocks."""
        return -(-self.virtual_size // self.block_size)

    @property
    def chunk_count(self) -> int:
        """Chunks, the last one perhaps not full."""
        return -(-self.block_count // self.chunk_ratio)

    @property
    def slot_count(self) -> int:
        """Slots of the table that mean anything."""
        if self.has_parent:
            return self.chunk_count * (self.chunk_ratio + 1)
        return self.block_count + (self.block_count - 1) // self.chunk_ratio

    @property
    def bitmap_bytes(self) -> int:
        """Bytes of the sector bitmap that belong to one block."""
        return self.block_size // self.logical_sector_size // 8

    @property
    def sectors_per_block(self) -> int:
        """Logical sectors of one block."""
        return self.block_size // self.logical_sector_size

    def slot(self, block: int) -> int:
        """Slot of a payload block."""
        return block + block // self.chunk_ratio

    def bitmap_slot(self, chunk: int) -> int:
        """Slot of a chunk's bitmap block."""
        return chunk * (self.chunk_ratio + 1) + self.chunk_ratio

    def slots(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Slots of the payload blocks [first, last)."""
        blocks = np.arange(first, last, dtype=np.int64)
        return blocks + blocks // self.chunk_ratio

    def bytes_in(self, block: int) -> int:
        """Bytes of the disk in a block: the last one may have fewer."""
        return min(self.block_size, self.virtual_size - block * self.block_size)

"""One VHDX file as one layer of a disk: what of the disk it holds, and where in the file."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from standby.disk.file_ranges import plain
from standby.disk.vhdx.bat import BlockTable, Entries
from standby.disk.vhdx.geometry import (
    FULLY_PRESENT,
    NOT_PRESENT,
    OFFSET_MASK,
    PARTIALLY_PRESENT,
    STATE_MASK,
    Geometry,
)
from standby.disk.vhdx.mapping import DATA, HOLE, ZERO, Map, clipped, joined, single
from standby.disk.vhdx.metadata import Metadata
from standby.disk.vhdx.pages import PageCache
from standby.disk.vhdx.replaying import OverlaidFile
from standby.errors import DiskCorrupt
from standby.files import BlockFile, File
from standby.ports import Buffer

Offsets = npt.NDArray[np.int64]

_BLOCKS_MAX = 1 << 14
"""Blocks that one map covers at most: 128 KiB of the table."""
_BITS_MAX = 1 << 21
"""Sectors of partially present blocks that one map looks at, at most (2 MiB once unpacked)."""

_KIND_OF_STATE = np.array([HOLE, ZERO, ZERO, ZERO, HOLE, HOLE, DATA, DATA], dtype=np.int8)


class Layer:
    """The mapping of a VHDX file, without its parents. Reads may come from several threads."""

    def __init__(self, file: BlockFile, metadata: Metadata, table: BlockTable) -> None:
        self.file = file
        self.metadata = metadata
        self.table = table

    @property
    def geometry(self) -> Geometry:
        """Sizes; they change only by growing."""
        return self.table.geometry

    @property
    def pages(self) -> PageCache:
        """The cached parts of the file that hold table and bitmaps."""
        return self.table.pages

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk as this layer has it."""
        return self.table.geometry.virtual_size

    def read_place(self, place: int, buffer: Buffer) -> None:
        """Fill `buffer` from file offset `place` of a DATA run."""
        self.file.read_into(buffer, place)

    @property
    def plain_file(self) -> File | None:
        """The file; one under a log that was not replayed as well, where `reads_plainly`."""
        file = self.file
        return plain(file.base if isinstance(file, OverlaidFile) else file)

    def reads_plainly(self, places: Offsets, lengths: Offsets) -> bool:
        """Whether the file itself, without what its log lays over it, holds these DATA runs."""
        file = self.file
        return not (isinstance(file, OverlaidFile) and file.changes(places, places + lengths))

    def whole(self, offset: int, length: int) -> tuple[int, int] | None:
        """(kind, place) of a range that lies in one block of one kind; None when it does not, or
        when the bitmap has to be asked. The short way of small reads."""
        block, inside = divmod(offset, self.geometry.block_size)
        if inside + length > self.geometry.block_size:
            return None
        entry = self.table.entry(block)
        state = entry & STATE_MASK
        if state == FULLY_PRESENT:
            return DATA, (entry & OFFSET_MASK) + inside
        if state == PARTIALLY_PRESENT:
            return None
        return (HOLE if state == NOT_PRESENT else ZERO), 0

    def places(
        self, offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """File offset of each range that lies in one fully present block, 0 for others. The table
        is read once, from the first to the last of the ranges' blocks."""
        size = self.geometry.block_size
        blocks, inside = np.divmod(offsets, size)
        first = int(blocks.min())
        entries = self.table.entries(first, int(blocks.max()) + 1)[blocks - first]
        is_there = (entries & np.uint64(STATE_MASK)) == FULLY_PRESENT
        is_there &= inside + lengths <= size
        return np.where(is_there, (entries & np.uint64(OFFSET_MASK)).astype(np.int64) + inside, 0)

    def map(self, start: int, stop: int) -> Map:
        """Runs from `start` to `stop` or, where that is much, to some earlier end; ranges past
        this layer's end are ZERO, whatever lies below."""
        size = self.virtual_size
        if start >= size:
            return single(start, stop, ZERO)
        stop = min(stop, size)
        block_size = self.geometry.block_size
        first, last = start // block_size, -(-stop // block_size)
        if last - first > _BLOCKS_MAX:
            skipped = self.table.empty_until(first, last)
            if skipped > first:
                return single(start, min(stop, skipped * block_size), HOLE)
            last = first + _BLOCKS_MAX
        if self.table.is_empty(first, last):
            return single(start, min(stop, last * block_size), HOLE)
        entries = self.table.entries(first, last)
        states = (entries & np.uint64(STATE_MASK)).astype(np.int64)
        partial = np.flatnonzero(states == PARTIALLY_PRESENT)
        limit = max(1, _BITS_MAX // self.geometry.sectors_per_block)
        if partial.size > limit:
            last = first + int(partial[limit])
            entries, states = entries[: last - first], states[: last - first]
            partial = partial[:limit]
        blocks = np.arange(first, last, dtype=np.int64)
        starts = blocks * block_size
        kinds = _KIND_OF_STATE[states]
        offsets = (entries & np.uint64(OFFSET_MASK)).view(np.int64)
        places = np.where(kinds == DATA, offsets, 0)
        if partial.size:
            starts, kinds, places = self._with_sectors(starts, kinds, places, partial)
        whole = joined(starts, kinds, places, last * block_size)
        return clipped(whole, start, min(stop, last * block_size))

    def _with_sectors(
        self,
        starts: npt.NDArray[np.int64],
        kinds: npt.NDArray[np.int8],
        places: npt.NDArray[np.int64],
        partial: npt.NDArray[np.int64],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], npt.NDArray[np.int64]]:
        """The arrays with every partially present block replaced by its runs of sectors."""
        geometry = self.geometry
        first = int(starts[0]) // geometry.block_size
        bits = self.bitmap_bits((partial + first).tolist())
        begins = np.ones(bits.shape, dtype=bool)
        begins[:, 1:] = bits[:, 1:] != bits[:, :-1]
        row, sector = np.divmod(np.flatnonzero(begins), geometry.sectors_per_block)
        present = bits[row, sector] == 1
        inside = sector * geometry.logical_sector_size
        of_block = partial[row]
        run_places = np.where(present, places[of_block] + inside, 0)
        run_kinds = np.where(present, DATA, HOLE).astype(np.int8)
        keep = np.ones(starts.size, dtype=bool)
        keep[partial] = False
        all_starts = np.concatenate((starts[keep], starts[of_block] + inside))
        order = np.argsort(all_starts, kind="stable")
        all_kinds = np.concatenate((kinds[keep], run_kinds))
        all_places = np.concatenate((places[keep], run_places))
        return all_starts[order], all_kinds[order], all_places[order]

    def bitmap_bits(self, blocks: list[int]) -> npt.NDArray[np.uint8]:
        """(n, sectors per block) of 0 and 1: which sectors of these blocks are in this file."""
        size = self.geometry.bitmap_bytes
        rows = np.empty((len(blocks), size), dtype=np.uint8)
        for index, block in enumerate(blocks):
            rows[index] = self.pages.read(self.bitmap_place(block), size)
        return np.unpackbits(rows, axis=1, bitorder="little")

    def bitmap_place(self, block: int) -> int:
        """File offset of the bits of a partially present block."""
        chunk, inside = divmod(block, self.geometry.chunk_ratio)
        offset = self.table.bitmap_offset(chunk)
        if not offset:
            place = self.table.offset + 8 * self.geometry.bitmap_slot(chunk)
            raise DiskCorrupt(
                str(self.file.path),
                f"BAT: block {block} is partially present, its sector bitmap is not there",
                place,
                "0",
            )
        return offset + inside * self.geometry.bitmap_bytes

    def entries(self, first: int, last: int) -> Entries:
        """Checked table entries of the blocks [first, last)."""
        return self.table.entries(first, last)

"""The block allocation table, read and changed by windows, never whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from standby.disk.vhdx.geometry import (
    BITMAP_PRESENT,
    FULLY_PRESENT,
    OFFSET_MASK,
    PARTIALLY_PRESENT,
    RESERVED_MASK,
    STATE_MASK,
    Geometry,
)
from standby.disk.vhdx.pages import PageCache
from standby.disk.vhdx.regions import Regions
from standby.disk.vhdx.structures import BAT_REGION, BITMAP_BLOCK, FIRST_FREE, Header, Region
from standby.errors import DiskCorrupt
from standby.files import BlockFile

Entries = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

_STATE = np.uint64(STATE_MASK)
_OFFSET = np.uint64(OFFSET_MASK)
_RESERVED = np.uint64(RESERVED_MASK)


class BlockTable:
    """The slots of one file. Every entry handed out has been checked: a present block lies in the
    file and outside of headers, log and regions. That no two blocks share space is checked by
    `check_overlaps`."""

    def __init__(
        self,
        file: BlockFile,
        pages: PageCache,
        geometry: Geometry,
        header: Header,
        regions: Regions,
    ) -> None:
        self.file = file
        self.pages = pages
        self.geometry = geometry
        self._log = (header.log_offset, header.log_offset + header.log_length)
        self._place(regions)
        if geometry.slot_count * 8 > regions.bat.length:
            raise DiskCorrupt(
                str(file.path),
                "the BAT region is too short for the disk",
                regions.bat.offset,
                f"{regions.bat.length:#x} bytes for {geometry.slot_count} slots",
            )

    def _place(self, regions: Regions) -> None:
        self.regions = regions
        self.offset, self.room = regions.bat.offset, regions.bat.length
        placed = ((region.offset, region.stop) for region in regions.all)
        self._taken = ((0, FIRST_FREE), self._log, *placed)

    def move(self, regions: tuple[Region, ...]) -> None:
        """The table lies elsewhere from now on."""
        bat = next(region for region in regions if region.kind == BAT_REGION)
        self._place(Regions(regions, bat, self.regions.metadata))

    def is_in_region(self, offset: int) -> bool:
        """Whether a file offset lies in the headers, the log or a region, not in a block."""
        return any(start <= offset < stop for start, stop in self._taken)

    # --- reading ---

    def entry(self, block: int) -> int:
        """The checked entry of a payload block."""
        place = self.offset + 8 * self.geometry.slot(block)
        value = int.from_bytes(self.pages.read(place, 8).tobytes(), "little")
        self._check_one(value, block)
        return value

    def empty_until(self, first: int, last: int) -> int:
        """The block up to which the table is a hole of the file from block `first` on, at most
        `last`: what a disk of terabytes with little in it is passed over by."""
        start = self.offset + 8 * self.geometry.slot(first)
        stop = self.offset + 8 * (self.geometry.slot(last - 1) + 1)
        stop = self.pages.first_change(start, stop)
        limit, _ = next(iter(self.file.data_ranges(start, stop)), (stop, stop))
        slot = (limit - self.offset) // 8
        return min(last, max(first, slot - slot // (self.geometry.chunk_ratio + 1)))

    def is_empty(self, first: int, last: int) -> bool:
        """Whether all slots of the blocks [first, last) are zero."""
        return not self._raw(first, last).any()

    def _raw(self, first: int, last: int) -> Entries:
        """The slots from block `first` to `last - 1`, bitmap slots between them included."""
        start, stop = self.geometry.slot(first), self.geometry.slot(last - 1) + 1
        return self.pages.read(self.offset + 8 * start, 8 * (stop - start)).view("<u8")

    def entries(self, first: int, last: int) -> Entries:
        """(last - first,) checked entries of the payload blocks [first, last)."""
        raw = self._raw(first, last)
        found: Entries = raw
        if raw.size != last - first:
            slots = self.geometry.slots(first, last)
            found = raw[slots - slots[0]]
        self._check(found, first)
        return found

    def bitmap_offset(self, chunk: int) -> int:
        """File offset of a chunk's bitmap block; 0 when it has none."""
        place = self.offset + 8 * self.geometry.bitmap_slot(chunk)
        value = int.from_bytes(self.pages.read(place, 8).tobytes(), "little")
        state = value & STATE_MASK
        if state == 0:
            return 0
        if state != BITMAP_PRESENT or value & RESERVED_MASK:
            raise self._corrupt("bitmap slot: state or reserved bits", place, value)
        problem = self._misplaced(value & OFFSET_MASK, BITMAP_BLOCK, BITMAP_BLOCK)
        if problem:
            raise self._corrupt(f"bitmap block {problem}", place, value)
        return value & OFFSET_MASK

    def _misplaced(self, offset: int, length: int, needed: int) -> str:
        if offset + needed > self.file.size:
            return f"lies outside the file of {self.file.size:#x} bytes"
        for start, stop in self._taken:
            if offset < stop and offset + length > start:
                return f"lies over the headers, the log or a region at {start:#x}"
        return ""

    def _check_one(self, value: int, block: int) -> None:
        state = value & STATE_MASK
        problem = ""
        if state in (4, 5):
            problem = "a reserved state"
        elif state >= FULLY_PRESENT:
            if state == PARTIALLY_PRESENT and not self.geometry.has_parent:
                problem = "partially present in a disk without parent"
            elif value & RESERVED_MASK:
                problem = "reserved bits are set"
            else:
                problem = self._misplaced(
                    value & OFFSET_MASK, self.geometry.block_size, self.geometry.bytes_in(block)
                )
        if problem:
            place = self.offset + 8 * self.geometry.slot(block)
            raise self._corrupt(f"block {block}: {problem}", place, value)

    def _check(self, entries: Entries, first: int) -> None:
        """As `_check_one` for many; finds out whether, and lets that one say what."""
        states = entries & _STATE
        wrong = (states == 4) | (states == 5)
        present = states >= FULLY_PRESENT
        if present.any():
            geometry = self.geometry
            offsets = entries & _OFFSET
            bad = (entries & _RESERVED) != 0
            if not geometry.has_parent:
                bad |= states == PARTIALLY_PRESENT
            size = np.uint64(geometry.block_size)
            # the last block may be cut at the disk's end: `_check_one` knows
            bad |= offsets > np.uint64(max(0, self.file.size - geometry.block_size))
            for start, stop in self._taken:
                bad |= (offsets < np.uint64(stop)) & (offsets + size > np.uint64(start))
            wrong |= bad & present
        for index in np.flatnonzero(wrong).tolist():
            self._check_one(int(entries[index]), first + index)

    def _corrupt(self, check: str, place: int, value: int) -> DiskCorrupt:
        return DiskCorrupt(str(self.file.path), f"BAT: {check}", place, f"{value:#x}")

    # --- all of it ---

    def bitmap_offsets(self) -> list[int]:
        """File offsets of all bitmap blocks, in order of chunks."""
        if not self.geometry.has_parent:
            return []
        chunks = range(self.geometry.chunk_count)
        return [offset for chunk in chunks if (offset := self.bitmap_offset(chunk))]

    def _blocks(self, step: int = 1 << 14, *, with_named: bool = False) -> tuple[Places, Places]:
        """File offsets where blocks, payload and bitmap, start and stop, ascending by start;
        `with_named`: blocks without content too whose entries name a place, as other writers leave
        them to have it again."""
        geometry = self.geometry
        found = []
        first = self.empty_until(0, geometry.block_count)
        while first < geometry.block_count:
            last = min(first + step, geometry.block_count)
            if not self.is_empty(first, last):
                entries = self.entries(first, last)
                has_place = (entries & _STATE) >= FULLY_PRESENT
                if with_named:
                    places = entries & _OFFSET
                    has_place |= (places != 0) & (places < np.uint64(self.file.size))
                entries = entries[has_place]
                found.append((entries & _OFFSET).astype(np.int64))
            first = last
            if first < geometry.block_count:
                first = self.empty_until(first, geometry.block_count)
        payload = np.concatenate([np.empty(0, dtype=np.int64), *found])
        bitmaps = np.array(self.bitmap_offsets(), dtype=np.int64)
        starts = np.concatenate((payload, bitmaps))
        stops = np.concatenate((payload + geometry.block_size, bitmaps + BITMAP_BLOCK))
        order = np.argsort(starts, kind="stable")
        return starts[order], stops[order]

    def check_overlaps(self) -> None:
        """Raise DiskCorrupt when two blocks share space. Memory: 8 bytes per present block."""
        starts, stops = self._blocks()
        clash = np.flatnonzero(starts[1:] < stops[:-1])
        if clash.size:
            raise self._corrupt("two blocks share space", self.offset, int(starts[clash[0] + 1]))

    def unowned(self) -> list[tuple[int, int]]:
        """The (start, stop) ranges of the file that no block, no region, neither the log nor the
        headers own, ascending. What an entry names is its block's, with content or without."""
        starts, stops = self._blocks(with_named=True)
        taken = np.array(self._taken, dtype=np.int64)
        starts, stops = np.append(starts, taken[:, 0]), np.append(stops, taken[:, 1])
        order = np.argsort(starts, kind="stable")
        ends = np.maximum.accumulate(stops[order])
        nexts = np.append(starts[order][1:], self.file.size)
        gaps = np.flatnonzero(ends < nexts)
        return list(zip(ends[gaps].tolist(), nexts[gaps].tolist(), strict=True))

    # --- changing ---

    def set_entry(self, block: int, value: int) -> None:
        """Change a payload block's entry."""
        self._set_slot(self.geometry.slot(block), value)

    def set_bitmap(self, chunk: int, offset: int) -> None:
        """Give a chunk its bitmap block."""
        self._set_slot(self.geometry.bitmap_slot(chunk), offset | BITMAP_PRESENT)

    def _set_slot(self, slot: int, value: int) -> None:
        stored = np.frombuffer(value.to_bytes(8, "little"), dtype=np.uint8)
        self.pages.write(self.offset + 8 * slot, stored)

    def set_entries(self, blocks: npt.NDArray[np.int64], values: Entries) -> None:
        """Change the entries of many blocks, given in ascending order."""
        slots = blocks + blocks // self.geometry.chunk_ratio
        breaks = [0, *(np.flatnonzero(np.diff(slots) != 1) + 1).tolist(), slots.size]
        for start, stop in pairwise(breaks):
            if start < stop:
                data = np.ascontiguousarray(values[start:stop], dtype="<u8").view(np.uint8)
                self.pages.write(self.offset + 8 * int(slots[start]), data)

"""Writing a VHDX file: space, table, bitmaps, and the order that survives a crash.

What reaches the file when (the reference's section 10):

1. Before anything else of a session: an empty log entry, then both headers with new GUIDs and the
   log's name.
2. Payload goes straight to its place: in blocks the file has, or in new space at its end that
   nothing points at yet. Table and bitmap changes stay in memory.
3. `commit`: payload and new bitmap blocks are synced; one log entry (few, if many pages changed:
   then bitmaps come first, and all table pages are in the last one) is written and synced. That is
   the commit point. The pages go to their own place afterwards, unsynced: the next sync covers
   them before the log's room is used again. A commit takes pages and file size as they are when it
   begins, so that writing may go on during its syncs: all of that belongs to the next commit.
4. Space that a committed change released is punched out, where that is wanted, and only then used
   again.

Rejected: QEMU's way of one entry and four header writes per allocated block; 2,400 blocks then
cost 2,400 times five syncs instead of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from standby.disk.vhdx.commits import Commits
from standby.disk.vhdx.geometry import (
    FULLY_PRESENT,
    NOT_PRESENT,
    OFFSET_MASK,
    PARTIALLY_PRESENT,
    STATE_MASK,
    ZERO,
)
from standby.disk.vhdx.planning import Plan, set_bits
from standby.disk.vhdx.replaying import write_zeros
from standby.disk.vhdx.structures import BITMAP_BLOCK
from standby.files import BlockFile, copy_range
from standby.units import KiB, MiB

_BLOCKS_PER_STEP = 64
_PUNCH_MIN = 64 * KiB
_ZEROS = bytes(MiB)


@dataclass(frozen=True, slots=True)
class _Copied:
    """Bytes to be written that lie in another file."""

    source: BlockFile
    place: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> _Copied:
        start, stop, _ = part.indices(self.length)
        return _Copied(self.source, self.place + start, stop - start)


class Writer(Commits):
    """The writing side of one open file. Its methods exclude each other."""

    # --- payload ---

    def write(self, offset: int, view: memoryview) -> None:
        """Write whole sectors inside the disk."""
        with self.lock:
            self.begin(data=True)
            self._write(offset, view)

    def copy_runs(self, rows: npt.NDArray[np.int64], source: BlockFile) -> None:
        """Write what `source` has at `place` for each (offset, length, place) of `rows`. The table
        is asked once for all of them: writing never moves a block that is present."""
        with self.lock:
            self.begin(data=True)
            known = self.layer.places(rows[:, 0], rows[:, 1]).tolist()
            for (offset, length, place), at in zip(rows.tolist(), known, strict=True):
                if at:
                    self._unsynced = True
                    copy_range(source, place, length, self._file, at)
                else:
                    self._write(offset, _Copied(source, place, length))

    def _write(self, offset: int, data: memoryview | _Copied) -> None:
        size = self.geometry.block_size
        done = 0
        while done < len(data):
            block, inside = divmod(offset + done, size)
            take = min(len(data) - done, _BLOCKS_PER_STEP * size - inside)
            self._write_step(block, inside, data[done : done + take])
            self.bound()
            done += take

    def _put(self, data: memoryview | _Copied, place: int) -> None:
        if isinstance(data, _Copied):
            copy_range(data.source, data.place, data.length, self._file, place)
        else:
            self._file.write(data, place)

    def _write_step(self, block: int, inside: int, data: memoryview | _Copied) -> None:
        """Plan, write payload, then change table and bitmaps: a failure changes nothing."""
        mark = self._space.mark
        plan = Plan(self._space)
        self._plan(plan, block, inside, len(data))
        try:
            for offset in plan.bitmaps.values():
                self._extend(offset, BITMAP_BLOCK)
            if plan.new_stop > self._file.size:
                self._file.resize(plan.new_stop)
            if not self.sparse:
                for start, stop in plan.blank:
                    write_zeros(self._file, start, stop - start, may_punch=False)
            for place, start, stop in plan.runs:
                self._put(data[start:stop], place)
        except BaseException:
            self._space.restore(mark)
            raise
        self._unsynced = True
        table = self.layer.table
        for chunk, offset in plan.bitmaps.items():
            self.layer.pages.begin_zero(offset, BITMAP_BLOCK)
            table.set_bitmap(chunk, offset)
            self._new_bitmaps.add(offset)
        for changed, state, place, first, last, is_new in plan.changes:
            if state == PARTIALLY_PRESENT and self._mark_sectors(changed, first, last, is_new):
                state, is_new = FULLY_PRESENT, True
            if is_new:
                table.set_entry(changed, place | state)

    def _plan(self, plan: Plan, block: int, inside: int, length: int) -> None:
        geometry, table = self.geometry, self.layer.table
        sector = geometry.logical_sector_size
        done = 0
        while done < length:
            stop = min(inside + length - done, geometry.block_size)
            entry = table.entry(block)
            state = entry & STATE_MASK
            place = entry & OFFSET_MASK
            is_new = state < FULLY_PRESENT
            if is_new:
                is_whole = inside == 0 and stop >= geometry.bytes_in(block)
                partial = geometry.has_parent and state == NOT_PRESENT and not is_whole
                state = PARTIALLY_PRESENT if partial else FULLY_PRESENT
                if partial:
                    self._plan_bitmap(plan, block // geometry.chunk_ratio)
                place = plan.take(geometry.block_size, inside, stop)
            if is_new or state == PARTIALLY_PRESENT:
                first, last = inside // sector, stop // sector
                plan.changes.append((block, state, place, first, last, is_new))
            plan.add_run(place + inside, done, done + stop - inside)
            done += stop - inside
            block, inside = block + 1, 0

    def _plan_bitmap(self, plan: Plan, chunk: int) -> None:
        if chunk not in plan.bitmaps and not self.layer.table.bitmap_offset(chunk):
            plan.bitmaps[chunk] = self._space.take_at_end(BITMAP_BLOCK)

    def _extend(self, offset: int, length: int) -> None:
        """Make new space at the file's end read as zeros."""
        if offset + length > self._file.size:
            self._file.resize(offset + length)
        if not self.sparse:
            write_zeros(self._file, offset, length, may_punch=False)

    def new_space(self, length: int) -> int:
        """Offset of `length` bytes that read as zeros; the next commit makes them durable."""
        offset = self._space.take_at_end(length)
        self._extend(offset, length)
        self._unsynced = True
        return offset

    def _mark_sectors(self, block: int, first: int, last: int, is_new: bool) -> bool:
        """Set the bits [first, last) of a block; True when all of its bits are set now. A block
        that is new in its bitmap loses what an earlier life left there."""
        place = self.layer.bitmap_place(block)
        size = self.geometry.bitmap_bytes
        old = self.layer.pages.read(place, size)
        row = np.zeros(size, dtype=np.uint8) if is_new else old.copy()
        set_bits(row, first, last)
        changed = np.flatnonzero(row != old)
        if changed.size:
            start, stop = int(changed[0]), int(changed[-1]) + 1
            self.layer.pages.write(place + start, row[start:stop])
        return bool((row == 0xFF).all())

    # --- zeros ---

    def zero(self, offset: int, length: int) -> None:
        """Make whole sectors read as zeros, giving back the space of whole blocks."""
        with self.lock:
            self.begin(data=True)
            size, end = self.geometry.block_size, self.geometry.virtual_size
            stop = offset + length
            first = -(-offset // size)
            last = self.geometry.block_count if stop == end else stop // size
            if first >= last:
                if offset // size == (stop - 1) // size:
                    self._zero_part(offset, stop)
                else:
                    self._zero_part(offset, first * size)
                    self._zero_part(first * size, stop)
                return
            self._zero_part(offset, first * size)
            self._set_states(first, last, ZERO)
            self._zero_part(min(last * size, stop), stop)

    def forget(self, first: int, last: int) -> None:
        """Blocks [first, last) of a differencing file: not present, the parent is asked again."""
        with self.lock:
            self.begin(data=True)
            self._set_states(first, last, NOT_PRESENT)

    def _zero_part(self, start: int, stop: int) -> None:
        """Zero a part of one block."""
        if start >= stop:
            return
        block, inside = divmod(start, self.geometry.block_size)
        entry = self.layer.table.entry(block)
        state = entry & STATE_MASK
        if state == FULLY_PRESENT:
            self.clear((entry & OFFSET_MASK) + inside, stop - start)
        elif state == PARTIALLY_PRESENT or (state == NOT_PRESENT and self.geometry.has_parent):
            for piece in range(start, stop, MiB):
                self.write(piece, memoryview(_ZEROS)[: min(MiB, stop - piece)])

    def clear(self, place: int, length: int) -> None:
        """Zero allocated space where it is."""
        may_punch = self.sparse and length >= _PUNCH_MIN
        write_zeros(self._file, place, length, may_punch=may_punch)
        self._unsynced = True

    def _set_states(self, first: int, last: int, state: int, step: int = 4096) -> None:
        """Blocks [first, last) get `state` (ZERO or NOT_PRESENT) and lose their space; in a fixed
        disk they keep it and are zeroed there."""
        geometry, table = self.geometry, self.layer.table
        for start in range(first, last, step):
            entries = table.entries(start, min(start + step, last))
            states = entries & np.uint64(STATE_MASK)
            present = np.flatnonzero(states >= FULLY_PRESENT)
            offsets = (entries[present] & np.uint64(OFFSET_MASK)).astype(np.int64)
            if self.layer.metadata.is_fixed:
                for index, offset in zip(present.tolist(), offsets.tolist(), strict=True):
                    self.clear(offset, geometry.bytes_in(start + index))
                continue
            changing = states >= FULLY_PRESENT
            if geometry.has_parent:
                changing = states != state if state == NOT_PRESENT else changing | (states == 0)
            blocks = np.flatnonzero(changing).astype(np.int64) + start
            values = np.full(blocks.size, state, dtype=np.uint64)
            table.set_entries(blocks, values)
            self._space.release(offsets, geometry.block_size)
            self.bound()

"""Finding what changed on one disk, page by page: the work of one scanning thread.

Stored ranges are read into the slot that will travel, hashed and compared while they are hot in
cache, and only the changed 4 KiB runs stay in the slot. Where a disk's content lies in plain files,
one kernel call does that for a whole group of pages (`comparing.FileScan`): Python is entered once
for a group and once for a batch, so that threads do not wait for one another. Other disks, and
Windows, go by `read_into`, a READ_SIZE at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from standby import comparing, digesting
from standby.clock import SYSTEM_CLOCK
from standby.digesting import LEAVES_PER_PAGE, PAGE, PIECE, ZERO_LEAF
from standby.disk.file_ranges import FileRanges
from standby.model.extent import Extent
from standby.ports import VirtualDisk
from standby.road.batches import DATA, BatchBuilder, LeafArray, piece_ranges
from standby.road.packing import Packer, packer_for
from standby.road.scan_ranges import PageNumbers, Windows, file_ranges
from standby.units import MiB

PageIndex = tuple[PageNumbers, npt.NDArray[np.uint8]]
"""Numbers of non-zero pages, ascending, and their nodes (n, 16)."""

Change = tuple[LeafArray, npt.NDArray[np.int64]]
"""Of a page that was compared: its leaves, and the runs (k, 2) of pieces that are to be sent."""

READ_SIZE = MiB
"""Bytes per `read_into`: small enough that hashing finds most of them in the L2 cache, large enough
that a call's ~40 us of Python vanish (256 KiB costs a first session a sixth more)."""

_ROWS_AT_ONCE = 4096
"""Rows that one kernel call makes at most."""


class LeafStaging(Protocol):
    """Where new leaves go until the point is committed (repository.Staging)."""

    def put(self, page_numbers: Sequence[int], leaves: LeafArray) -> None: ...
    def set_mark(self, checkpoint_id: str, offset: int) -> None: ...
    def sync(self) -> None: ...


class StoredLeaves(Protocol):
    """A baseline on this side."""

    def index(self) -> PageIndex: ...
    def leaves(self, page_numbers: Sequence[int]) -> LeafArray: ...


@dataclass(frozen=True, slots=True)
class SendTask:
    """What to send: see `source_proxy` for `baseline`. `candidates` None means the whole disk, else
    only these ranges may differ from the baseline. Below `resume_mark` everything is at
    the target and staged already."""

    task: str
    disk: VirtualDisk
    checkpoint_id: str
    baseline: str
    stored: StoredLeaves | None
    staging: LeafStaging | None
    candidates: tuple[Extent, ...] | None = None
    resume_mark: int = 0
    compression: str = "none"
    threads: int = 2


class ScanOwner(Protocol):
    """Who a scanner works for: lends slots, takes batches, leaves and tallies."""

    @property
    def task(self) -> SendTask: ...
    @property
    def changes(self) -> Mapping[int, Change]: ...
    @property
    def stored_index(self) -> PageLookup: ...
    @property
    def keeps(self) -> bool: ...
    def take_slot(self) -> tuple[int, memoryview]: ...
    def give_slot_back(self, index: int) -> None: ...
    def send(self, builder: BatchBuilder, slot: int, packer: Packer | None) -> None: ...
    def stage(self, pages: list[int], leaves: LeafArray) -> None: ...
    def page_done(self, worker: int, next_page: int | None) -> None: ...
    def scanner_done(self, read: int, source_s: float, proxy_s: float) -> None: ...


class PageScanner:
    """One thread's work: scans groups of pages and fills batches."""

    def __init__(self, proxy: ScanOwner, worker: int) -> None:
        self.proxy = proxy
        self.worker = worker
        self.task = proxy.task
        self.disk = proxy.task.disk
        self.builder = BatchBuilder(self.disk.virtual_size, keeps=proxy.keeps)
        self.packer = packer_for(self.task.compression)
        self.slot = -1
        self.page = 0
        self.read = 0
        self.busy_source = 0.0
        self.busy_proxy = 0.0
        self.runs = np.empty((READ_SIZE // PIECE, 3), np.int64)
        self.rows = np.empty((_ROWS_AT_ONCE, 3), np.int64)
        self.kept: LeafArray = np.empty(0, np.uint64)
        self.windows = Windows(self.disk.virtual_size, proxy.task.candidates)
        self.zeros: LeafArray = np.full(LEAVES_PER_PAGE, ZERO_LEAF, np.uint64)
        self.stage_pages: list[int] = []
        self.stage_leaves: list[LeafArray] = []

    def scan(self, group: PageNumbers) -> None:
        """Scan these pages; what changed is sent, or waits in the builder for more."""
        numbers = group.tolist()
        if self.task.baseline == "target":
            for page in numbers:
                self.page = page
                change = self.proxy.changes.get(page)
                if change is None:
                    self._scan_page(page, self.zeros)
                else:
                    self._send_change(page * PAGE, *change)
        else:
            stored = None
            if self.task.baseline == "repository" and self.task.stored is not None:
                stored = self.task.stored.leaves(numbers)
            if stored is None:
                stored = np.broadcast_to(self.zeros, (len(numbers), LEAVES_PER_PAGE))
            ranges = file_ranges(self.disk, group)
            if ranges is not None:
                self._scan_files(group, ranges, np.ascontiguousarray(stored))
            else:
                for position, page in enumerate(numbers):
                    self.page = page
                    self._scan_page(page, stored[position])
        self._stage()
        if self.builder.is_empty:
            self.proxy.page_done(self.worker, None)

    def close(self) -> None:
        """Send what is left."""
        self._send()
        if self.slot >= 0:
            self.proxy.give_slot_back(self.slot)
            self.slot = -1
        self.proxy.page_done(self.worker, None)
        self.proxy.scanner_done(self.read, self.busy_source, self.busy_proxy)

    def _ranges(self, page: int) -> list[tuple[int, int, bool]]:
        """(start, stop, is data) over the parts of one page that may have changed."""
        start = page * PAGE
        stop = min(start + PAGE, self.disk.virtual_size)
        ranges = list(piece_ranges(self.disk.extents(start, stop), start, stop, stop))
        if self.task.candidates is None:
            return ranges
        result: list[tuple[int, int, bool]] = []
        for low, high, _ in self.windows.of(np.array([page])).tolist():
            for first, end, is_data in ranges:
                if first >= high:
                    break
                if end > low:
                    result.append((max(first, low), min(end, high), is_data))
        return result

    def _scan_files(self, group: PageNumbers, ranges: FileRanges, stored: LeafArray) -> None:
        """Compare pages with leaves on this side, the kernel reading the files."""
        leaves = stored.copy()
        windows = self.windows.of(group)
        scan = comparing.FileScan(
            windows, ranges.rows, ranges.files, stored.reshape(-1), leaves.reshape(-1)
        )
        staged, is_done = 0, len(windows) == 0
        while not is_done:
            current = int(windows[scan.place[0], 2]) // LEAVES_PER_PAGE
            done = slice(staged, current)
            self._stage_changed(group[done], stored[done], leaves[done])
            staged, self.page = current, int(group[current])
            self._room(comparing.READ_CHUNK)
            is_done = self._run(scan)
        self._stage_changed(group[staged:], stored[staged:], leaves[staged:])

    def _run(self, scan: comparing.FileScan) -> bool:
        """Fill the rest of the slot; True when all is scanned."""
        rest = self.builder.rest
        if len(self.kept) <= len(rest) // PIECE:
            self.kept = np.empty(len(rest) // PIECE + 1, np.uint64)
        begun = SYSTEM_CLOCK.monotonic()
        is_done = scan.run(rest, self.rows, self.kept, keeps=self.builder.keeps)
        ended = SYSTEM_CLOCK.monotonic()
        filled, rows, kept = scan.made
        self.builder.take(self.rows[:rows], self.kept[:kept], filled)
        read, reading_s = scan.read
        self.read += read
        self.busy_source += reading_s
        self.busy_proxy += ended - begun - reading_s
        return is_done

    def _stage_changed(self, pages: PageNumbers, stored: LeafArray, leaves: LeafArray) -> None:
        """Have those pages staged whose leaves are other ones now."""
        if self.task.staging is not None:
            changed = (stored != leaves).any(axis=1)
            self.stage_pages += pages[changed].tolist()
            self.stage_leaves += list(leaves[changed])

    def _scan_page(self, page: int, stored: LeafArray) -> None:
        """Compare one page with leaves on this side, streaming through the slot."""
        start = page * PAGE
        leaves = stored.copy()
        changed = False
        for first, stop, is_data in self._ranges(page):
            if not is_data:
                low, high = (first - start) // PIECE, -(-(stop - start) // PIECE)
                runs = comparing.changed_runs(stored[low:high], self.zeros[low:high])
                if len(runs):
                    self._room(0)
                    self.builder.zero(first, runs)
                    leaves[low:high] = ZERO_LEAF
                    changed = True
                continue
            position = first
            while position < stop:
                size = min(READ_SIZE, stop - position)
                self._room(size)
                view = self.builder.tail(size)
                begun = SYSTEM_CLOCK.monotonic()
                self.disk.read_into(position, view)
                read = SYSTEM_CLOCK.monotonic()
                low, high = (position - start) // PIECE, -(-(position + size - start) // PIECE)
                count = comparing.scan(view, stored[low:high], leaves[low:high], self.runs)
                if count:
                    self.builder.keep(position, size, self.runs[:count], leaves[low:high])
                    changed = True
                self.busy_source += read - begun
                self.busy_proxy += SYSTEM_CLOCK.monotonic() - read
                self.read += size
                position += size
        if self.task.baseline == "target":  # the repository may have something else than zeros
            changed = self._is_new(page, leaves)
        if changed:
            self.stage_pages.append(page)
            self.stage_leaves.append(leaves)

    def _is_new(self, page: int, leaves: LeafArray) -> bool:
        node = digesting.page_nodes(leaves.reshape(1, -1))[0].tobytes()
        return self.task.staging is not None and node != self.proxy.stored_index.node(page)

    def _send_change(self, start: int, leaves: LeafArray, runs: npt.NDArray[np.int64]) -> None:
        """Read and send these runs of pieces of the page at `start`, which was staged before."""
        for first_piece, stop_piece in runs.tolist():
            self._send_run(start, int(first_piece), int(stop_piece), leaves)

    def _send_run(self, start: int, first: int, stop: int, leaves: LeafArray) -> None:
        """Put one changed run of a page into batches: zero pieces as zeros."""
        zero = leaves[first:stop] == ZERO_LEAF
        edges = np.flatnonzero(np.diff(zero.astype(np.int8))) + 1
        borders = [0, *edges.tolist(), stop - first]
        for low, high in itertools.pairwise(borders):
            position, end = first + low, first + high
            if zero[low]:
                self._room(0)
                self.builder.zero(start + position * PIECE, np.array([[0, high - low]], np.int64))
                continue
            while position < end:
                count = min(READ_SIZE // PIECE, end - position)
                offset = start + position * PIECE
                size = min(count * PIECE, self.disk.virtual_size - offset)
                self._room(size)
                begun = SYSTEM_CLOCK.monotonic()
                self.disk.read_into(offset, self.builder.tail(size))
                self.busy_source += SYSTEM_CLOCK.monotonic() - begun
                runs = np.array([[0, count, DATA]], np.int64)
                self.builder.keep(offset, size, runs, leaves[position : position + count])
                position += count

    def _stage(self) -> None:
        if self.stage_pages:
            self.proxy.stage(self.stage_pages, np.stack(self.stage_leaves))
            self.stage_pages, self.stage_leaves = [], []

    def _room(self, size: int) -> None:
        """Make sure the builder has a slot with room for `size` bytes and some rows."""
        if self.slot >= 0 and self.builder.room() < max(size, 1):
            self._send()
        if self.slot < 0:
            self.slot, memory = self.proxy.take_slot()
            self.builder.begin(memory)

    def _send(self) -> None:
        if self.builder.is_empty:
            return
        self._stage()
        self.proxy.send(self.builder, self.slot, self.packer)
        self.builder.clear()
        self.slot = -1
        self.proxy.page_done(self.worker, self.page)


class PageLookup:
    """Node of a page by number, b'' for a page that is all zero."""

    def __init__(self, stored: StoredLeaves | None) -> None:
        empty = (np.empty(0, np.int64), np.empty((0, 16), np.uint8))
        self.numbers, self.nodes = stored.index() if stored is not None else empty

    def node(self, page: int) -> bytes:
        """16 bytes, or b''."""
        position = int(np.searchsorted(self.numbers, page))
        if position < len(self.numbers) and int(self.numbers[position]) == page:
            return bytes(self.nodes[position].tobytes())
        return b""

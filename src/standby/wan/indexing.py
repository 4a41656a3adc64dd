"""Entries for what a disk file beside the cache holds already: its pieces are named, not copied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from standby.disk import vhdx
from standby.disk.vhdx import VhdxDisk
from standby.ports import Progress
from standby.units import MiB
from standby.wan.appending import OpenSegment, Run
from standby.wan.namespace import Core, Namespace
from standby.wan.segment_file import IN_DISK, PIECE, RAW, DiskFile, Names
from standby.wan.segments import Segment

_STEP = 64 * MiB
"""Of the disk, asked for its ranges at a time."""
_READ = 512
"""Pieces read and named at a time: 2 MiB."""


def index_disk(
    core: Core, namespace: Namespace, path: Path, progress: Progress | None = None
) -> int:
    """Make what the closed VHDX file at `path` holds itself (not its parents) known under the
    namespace's key; how many pieces got an entry. Raises DiskError where it cannot be read.

    Pieces of zeros, those only partly in the file and those known already get none. Entries of an
    earlier state of the file go. The caller leaves the file alone meanwhile; what is written to it
    later makes the entries misses.
    """
    path = path.absolute()
    with closing(vhdx.open_vhdx(path)) as disk:
        file = DiskFile(str(path), disk.data_write_guid, disk.virtual_size)
        for segment in segments_of(core, path):
            if segment.header.disk != file:
                core.intake.drop(segment)
        entries = _Entries(core, namespace, file)
        try:
            for first, count in _held_pieces(disk):
                if not entries.add(first, _read(disk, first, count)):
                    break
                if progress is not None:
                    progress(min(first * PIECE, disk.virtual_size), disk.virtual_size)
        finally:
            entries.close()
        if progress is not None:
            progress(disk.virtual_size, disk.virtual_size)
    return entries.count


def segments_of(core: Core, path: Path) -> list[Segment]:
    """The segments of entries into the file at `path`."""
    return [
        segment
        for segment in core.shelf
        if segment.header.disk is not None and segment.header.disk.path == str(path)
    ]


def drop_changed(core: Core) -> int:
    """Drop the entries into files that are gone or changed; how many segments. Reading does so by
    itself; this saves asking for what cannot be had."""
    gone = 0
    for segment in core.shelf:
        disk = segment.header.disk
        if segment.header.kind == IN_DISK and disk and not core.disks.is_current(disk):
            core.intake.drop(segment)
            gone += 1
    core.counters.add(invalidated=gone)
    return gone


class _Entries:
    """The segments that an indexing writes."""

    def __init__(self, core: Core, namespace: Namespace, file: DiskFile) -> None:
        self._core = core
        self._namespace = namespace
        self._file = file
        self._open: OpenSegment | None = None
        self.count = 0

    def add(self, first: int, data: npt.NDArray[np.uint8]) -> bool:
        """Name the pieces of `data`, which begin with number `first` of the disk; False where the
        cache takes nothing in now."""
        names = self._namespace.names(data)
        fresh = np.flatnonzero(self._namespace.are_new(names))
        if not len(fresh):
            return True
        runs = list(_runs(names, fresh, first))
        pieces = len(fresh)
        if self._open is None or not self._core.intake.take_entries(self._open, runs):
            self.close()
            mark = self._namespace.fingerprint
            self._open = self._core.intake.open_disk_segment(mark, self._file)
            if self._open is None or not self._core.intake.take_entries(self._open, runs):
                return False
        self.count += pieces
        return True

    def close(self) -> None:
        """Seal what was written."""
        if self._open is not None:
            self._core.intake.seal_entries(self._open)
            self._open = None


def _runs(names: Names, fresh: npt.NDArray[np.int64], first: int) -> Iterator[Run]:
    starts = np.flatnonzero(np.diff(fresh, prepend=-2) != 1)
    for group in np.split(fresh, starts[1:]):
        yield Run(names[group], b"", RAW, first + int(group[0]))


def _held_pieces(disk: VhdxDisk) -> Iterator[tuple[int, int]]:
    """(first piece, how many): what this file alone holds whole, _READ pieces at most at a time."""
    size = disk.virtual_size
    for start in range(0, size, _STEP):
        for offset, stop in _joined(disk.mapped(start, min(start + _STEP, size))):
            first = -(-offset // PIECE)
            last = -(-stop // PIECE) if stop == size else stop // PIECE
            for number in range(first, last, _READ):
                yield number, min(_READ, last - number)


def _joined(rows: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """(offset, stop) of rows that follow one another in the disk."""
    if not len(rows):
        return []
    starts, stops = rows[:, 0], rows[:, 0] + rows[:, 1]
    begins = np.flatnonzero(np.concatenate(([True], starts[1:] != stops[:-1])))
    ends = np.concatenate((begins[1:] - 1, [len(rows) - 1]))
    return list(zip(starts[begins].tolist(), stops[ends].tolist(), strict=True))


def _read(disk: VhdxDisk, first: int, count: int) -> npt.NDArray[np.uint8]:
    data = np.zeros((count, PIECE), dtype=np.uint8)
    length = min(data.nbytes, disk.virtual_size - first * PIECE)
    disk.read_into(first * PIECE, data.data.cast("B")[:length])
    return data
